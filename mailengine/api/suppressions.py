"""`/api/v1/suppressions`: the addresses that the site leaves alone. They are the site's, and no client's own."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Query, Router, Schema, Status

from ..conf import get_settings
from ..consent.suppress import suppress
from ..errors import InvalidMail
from ..headers import checked_line
from ..models import Suppression
from ..models.api_keys import SUPPRESSIONS
from ..models.suppressions import EVERY_STREAM
from .access import check_scope
from .door import BearerKey, caller_of
from .messages import READING
from .once import once
from .orders import NO_STREAM, key_of_address
from .paging import Paging, page_of
from .refusals import PROBLEM, QUERY, Refusal
from .schemas import (
    ENTERING,
    LISTING,
    Email,
    LiftedOut,
    Problem,
    StreamFilter,
    SuppressionIn,
    SuppressionOut,
    SuppressionsOut,
)

router = Router(tags=["suppressions"])
WRITING = BearerKey(shape=PROBLEM, limit="body_bytes")


class SuppressionFilters(Paging):
    address: Email | None = None
    stream: StreamFilter | None = None


class SuppressionKey(Schema):
    address: Email
    stream: StreamFilter = EVERY_STREAM


@router.get(
    "",
    auth=READING,
    response={200: SuppressionsOut, **LISTING},
    operation_id="listSuppressions",
    summary="Look suppressions up",
)
def list_suppressions(request: HttpRequest, filters: Query[SuppressionFilters]) -> Any:
    """All of them, or those of an address; the newest first."""
    check_scope(caller_of(request), SUPPRESSIONS)
    found = Suppression.objects.all()
    if filters.address is not None:
        found = found.filter(address=key_of_address(filters.address, f"{QUERY}address"))
    if filters.stream is not None:
        found = found.filter(stream=filters.stream)
    return page_of(found, filters, by="id", show=_shown)


@router.post(
    "",
    auth=WRITING,
    response={201: SuppressionOut, **ENTERING},
    operation_id="createSuppression",
    summary="Leave an address alone",
)
def create(request: HttpRequest, payload: SuppressionIn) -> Any:
    """No mail of that stream, or of any, goes to it from now on. Where it is suppressed already, that entry stays."""
    key = caller_of(request)
    check_scope(key, SUPPRESSIONS)

    def enter(address: str) -> dict[str, Any]:
        reason = Suppression.Reason(payload.reason)
        detail = payload.detail or f"by {key.client}"
        return _shown(suppress(address, reason=reason, stream=payload.stream, detail=detail))

    return Status(201, once(request, key, lambda: _checked(payload), enter))


@router.delete(
    "",
    auth=READING,
    response={200: LiftedOut, **LISTING, 404: Problem},
    operation_id="deleteSuppression",
    summary="Write to an address again",
)
def lift(request: HttpRequest, entry: Query[SuppressionKey]) -> Any:
    """Takes the entry of that stream away, or the one for every stream; 404 where there is none."""
    check_scope(caller_of(request), SUPPRESSIONS)
    address = key_of_address(entry.address, f"{QUERY}address")
    lifted, _by_model = Suppression.objects.filter(address=address, stream=entry.stream).delete()
    if not lifted:
        raise Refusal(404, "Not found.")
    return {"lifted": lifted}


def _checked(entry: SuppressionIn) -> str:
    """The key of its address. Raises `Refusal`, by field."""
    wrong: dict[str, str] = {}
    if entry.stream != EVERY_STREAM and entry.stream not in get_settings().streams:
        wrong["stream"] = NO_STREAM
    try:
        checked_line("detail", entry.detail)
    except InvalidMail as error:
        wrong["detail"] = str(error)
    if wrong:
        raise Refusal(422, "The entry has fields that are wrong.", fields=wrong)
    return key_of_address(entry.address, "address")


def _shown(row: Suppression) -> dict[str, Any]:
    return {
        "address": row.address,
        "stream": row.stream,
        "reason": row.reason,
        "detail": row.detail,
        "since": row.created_at,
    }
