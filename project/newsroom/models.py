"""What a newsroom writes, and for whom."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone


class Issue(models.Model):
    """One number of the paper: its articles, and a word to open it."""

    title = models.CharField(max_length=200)
    date = models.DateField(default=timezone.localdate)
    intro = models.TextField(blank=True)

    class Meta:
        ordering = ("-date", "-pk")

    def __str__(self) -> str:
        return self.title


class Article(models.Model):
    """A story, in an issue or on its own."""

    issue = models.ForeignKey(Issue, on_delete=models.SET_NULL, null=True, blank=True, related_name="articles")
    headline = models.CharField(max_length=200)
    body = models.TextField()
    published_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-published_at", "-pk")

    def __str__(self) -> str:
        return self.headline


class LowercaseEmailField(models.EmailField):
    """An address in lower case, in forms, rows and lookups alike, so that one person can't subscribe twice."""

    def to_python(self, value: Any) -> Any:
        address = super().to_python(value)
        return address.lower() if isinstance(address, str) else address


class SubscriberQuerySet(models.QuerySet["Subscriber"]):
    """Subscribers by what may be done with them."""

    def active(self) -> SubscriberQuerySet:
        """Those who want mail."""
        return self.filter(is_active=True)


class Subscriber(models.Model):
    """Somebody who asked for our mail."""

    email = LowercaseEmailField(unique=True)
    name = models.CharField(max_length=100, blank=True)
    is_active = models.BooleanField(default=True)
    joined_at = models.DateTimeField(default=timezone.now)

    objects = SubscriberQuerySet.as_manager()

    class Meta:
        ordering = ("email",)

    def __str__(self) -> str:
        return str(self.email)
