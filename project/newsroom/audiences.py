"""Whom an update can go to."""

from __future__ import annotations

from collections.abc import Iterator

import mailengine

from .models import Subscriber


@mailengine.audience("subscribers", count=lambda: Subscriber.objects.active().count())
def subscribers() -> Iterator[tuple[str, dict[str, str]]]:
    """Every active subscriber with the merge field `name`, in the order they joined."""
    people = Subscriber.objects.active().order_by("pk").values_list("email", "name")
    for email, name in people.iterator(chunk_size=2000):
        yield email, {"name": name}
