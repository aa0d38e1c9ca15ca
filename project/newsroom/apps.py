"""The newsroom app."""

from __future__ import annotations

from django.apps import AppConfig


class NewsroomConfig(AppConfig):
    """Issues, articles and subscribers."""

    name = "project.newsroom"
    label = "newsroom"
    default_auto_field = "django.db.models.BigAutoField"
