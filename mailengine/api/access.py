"""Who asks, and what they may: the key in `Authorization`, its scopes, senders and rate."""

from __future__ import annotations

import math
import re

from django.conf import settings
from django.http import HttpRequest

from ..addresses import is_among, parse_address
from ..errors import InvalidAddress
from ..models import ApiKey
from ..models.api_keys import SECRET, SEND
from .refusals import Refusal

_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
NOT_KNOWN = "Give a valid key in the header: Authorization: Bearer me_…"
_IN_URL = ("key", "api_key", "apikey", "token", "access_token", "authorization")


def key_of(request: HttpRequest) -> ApiKey:
    """The key that the request was made with. Raises `Refusal`: 401, in the same words whatever is wrong with it."""
    given = [(name, str(value)) for name, values in request.GET.lists() for value in values]
    if any(name.lower() in _IN_URL or SECRET.search(value) for name, value in given):
        raise Refusal(
            400, "A key in the address of a request ends up in logs. Send it in Authorization, and revoke it."
        )
    found = _BEARER.fullmatch(request.headers.get("Authorization", ""))
    key = ApiKey.objects.authenticate(found[1] if found else "", address=request.META.get("REMOTE_ADDR", ""))
    if key is None:
        raise Refusal(401, NOT_KNOWN)
    return key


def check_scope(key: ApiKey, scope: str) -> None:
    """Raise `Refusal`, 403, where this key may not do that."""
    if not key.may(scope):
        raise Refusal(403, f"This key has no scope {scope!r}.")


def check_stream(key: ApiKey, stream: str) -> None:
    """Raise `Refusal`, 403, where this key may not send mail of this stream."""
    check_scope(key, f"{SEND}{stream}")


def may_send_as(key: ApiKey, from_email: str | None) -> bool:
    """Whether mail of this key may have this sender; None is the site's own."""
    if not from_email and not key.allowed_senders:
        return True
    own = settings.DEFAULT_FROM_EMAIL
    try:
        wanted = parse_address(from_email or own).key
        allowed = key.allowed_senders or [parse_address(own).spec]
    except InvalidAddress:
        return False
    return is_among(wanted, {str(entry).casefold() for entry in allowed})


def spend(key: ApiKey, count: int) -> None:
    """Count so many mails of this key. Raises `Refusal`: 429 where its rate has no room now, 422 where it never has."""
    seconds = key.spend(count)
    if math.isinf(seconds):
        raise Refusal(422, f"This key may send {key.rate}, and these are {count:,} mails: send fewer at once.")
    if seconds:
        raise Refusal(429, f"This key may send {key.rate}.", retry_after=seconds)
