"""Where the API answers, below the path that it is included under."""

from __future__ import annotations

from django.urls import path

from .documented import router
from .door import open_door

api = open_door(
    title="mailengine",
    description="Queue mail, and look up what became of it.",
    version="1",
    urls_namespace="mailengine-api",
    docs_url="/api/v1/docs",
    openapi_url="/api/v1/openapi.json",
)
api.add_router("", router)

urlpatterns = [path("", api.urls)]
