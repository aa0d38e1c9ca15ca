"""The HTTP API: `path("", include("mailengine.api.urls"))` in a project's URLs. It needs the extra `api`."""
