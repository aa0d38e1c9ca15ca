"""What tells one page from all others, so that what is submitted twice from the same page is done once."""

from __future__ import annotations

import secrets

from django.core import signing
from django.http import HttpRequest

FIELD_NAME = "token"
"""The hidden field of the form that carries it."""
PAGE_SECONDS = 86_400
"""How long a page may be looked at before its button is pressed."""


def new_token(request: HttpRequest, *, page: str) -> str:
    """A nonce for the form of a page that is about to be shown, signed for this user and this kind of page."""
    return signing.dumps(secrets.token_urlsafe(16), salt=_salt(request, page))


def nonce_of(request: HttpRequest, *, page: str) -> str | None:
    """The nonce of the page that was submitted; None where it is too old, of somebody else, or was never shown."""
    try:
        return str(signing.loads(request.POST.get(FIELD_NAME, ""), salt=_salt(request, page), max_age=PAGE_SECONDS))
    except signing.BadSignature:
        return None


def _salt(request: HttpRequest, page: str) -> str:
    return f"mailengine.{page}:{request.user.pk}"
