"""Where the API answers, below the path that it is included under."""

from __future__ import annotations

from django.urls import path, re_path

from . import documented, jobs, messages, suppressions
from .door import Api, Page, unknown

api = Api(
    title="mailengine",
    description="Queue mail, look up what became of it, withdraw it.\n\n"
    "What is queued is in the database when the answer comes; what is refused left nothing there. Times are ISO 8601 "
    "with an offset. Lists come in pages, the newest first: `next` is the `cursor` of the page after this one.",
    version="1",
    urls_namespace="mailengine-api",
    servers=[{"url": "/", "description": "The site that gave this document"}],
    docs=Page(),
    docs_url="/api/v1/docs",
    openapi_url="/api/v1/openapi.json",
)
api.add_router("", documented.router)
api.add_router("/api/v1/messages", messages.router)
api.add_router("/api/v1/jobs", jobs.router)
api.add_router("/api/v1/suppressions", suppressions.router)

urlpatterns = [path("", api.urls), re_path(r"^api/v1(?:/[\s\S]*)?$", unknown)]
