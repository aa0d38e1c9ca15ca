"""The HTML of a mail, shown where it can do nothing."""

from __future__ import annotations

from django.http import HttpResponse

POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
"""No scripts, no forms, nothing loaded, no access to the admin's cookies; framed by our own pages only."""


def preview_response(html: str, *, status: int = 200) -> HttpResponse:
    """A page with the HTML of a mail. What is in it stays inert, framed or opened by itself."""
    return HttpResponse(
        html,
        status=status,
        headers={
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "SAMEORIGIN",  # Django's middleware would say DENY
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )
