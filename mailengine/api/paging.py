"""Lists, a page at a time: by a cursor, so that what comes meanwhile shifts nothing, and no page costs more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, QuerySet
from ninja import Schema
from pydantic import Field

from .refusals import QUERY, Refusal

M = TypeVar("M", bound=Model)

MOST = 100


class Paging(Schema):
    limit: int = Field(50, ge=1, le=MOST)
    cursor: str | None = Field(None, description="`next` of the page before", max_length=40)


def page_of(rows: QuerySet[M], paging: Paging, *, by: str, show: Callable[[M], dict[str, Any]]) -> dict[str, Any]:
    """A page of these rows, the newest first; `by` is a field of UUIDs that sort by time, or of growing numbers."""
    if paging.cursor is not None:
        rows = rows.filter(**{f"{by}__lt": _place(rows, by, paging.cursor)})
    found = list(rows.order_by(f"-{by}")[: paging.limit + 1])
    page = found[: paging.limit]
    is_last = len(found) == len(page)
    return {"items": [show(row) for row in page], "next": None if is_last else str(getattr(page[-1], by))}


def _place(rows: QuerySet[Any], by: str, cursor: str) -> UUID | int:
    kind = UUID if rows.model._meta.get_field(by).get_internal_type() == "UUIDField" else int
    try:
        place = kind(cursor)
    except ValueError:
        place = -1
    if isinstance(place, int) and not 0 <= place < 2**63:
        raise Refusal(422, "The cursor is none of ours.", fields={f"{QUERY}cursor": "is none that a page gave"})
    return place
