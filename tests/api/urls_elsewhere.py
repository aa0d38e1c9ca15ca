"""The API under a path and a name of the project's own choice."""

from django.urls import include, path

urlpatterns = [path("post/<slug:site>/", include(("mailengine.api.urls", "mail"), namespace="mail"))]
