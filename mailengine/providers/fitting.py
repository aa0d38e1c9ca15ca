"""What an email must be without for an ESP that would refuse it otherwise: `fitted()`."""

from __future__ import annotations

import copy

from django.core.mail import EmailMessage

WRITES_ITSELF = {
    # ESP: headers of ours that it refuses, with the whole mail, since it writes them itself; in lower case
    "Mailjet": frozenset({"date", "list-id", "message-id"}),  # https://github.com/symfony/symfony/issues/44000
    "Postmark": frozenset({"date"}),  # https://github.com/symfony/symfony/issues/60254
    # Of these nobody says whether they would take it, and they write one.
    "Brevo": frozenset({"date"}),
    "Resend": frozenset({"date"}),
}


def fitted(email: EmailMessage, esp: str) -> EmailMessage:
    """The email as this ESP takes it: itself, or a copy without what the ESP writes in its place."""
    refused = WRITES_ITSELF.get(esp)
    if not refused or not any(name.lower() in refused for name in email.extra_headers):
        return email
    fitting = copy.copy(email)
    headers = email.extra_headers.items()
    fitting.extra_headers = {name: value for name, value in headers if name.lower() not in refused}
    return fitting
