"""EmailBackend: for `MAILERS["default"]`, it queues what Django itself sends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from ..compat import mailer_aliases, mailer_backend_path, mailer_options

logger = logging.getLogger(__name__)

PRIORITY_HEADER = "x-mailengine-priority"


class EmailBackend(BaseEmailBackend):
    """Queues mail instead of sending it; a worker sends it after the transaction has committed.

    `stream` and `priority` are OPTIONS of `MAILERS`; one mail's own are its attribute `mailengine`, a dictionary of
    keywords of `queue_message()`, and its header X-Mailengine-Priority, which does not go out.
    """

    is_queue = True
    """Of subclasses, too: none of them can be a provider."""

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        stream: str | None = None,
        priority: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        options = {} if "alias" in kwargs else _options_of_default()
        self.terms = {
            "stream": stream or options.get("stream", "transactional"),
            "priority": priority if priority is not None else options.get("priority", "high"),
        }

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Queue these mails, all or none; how many there were. Mail without recipients is passed over.

        Raises `ValueError` for a mail that can't be sent, unless `fail_silently`; ImproperlyConfigured for one that a
        provider was given to send.
        """
        from django.db import Error, router, transaction

        from ..models import Message
        from ..pipeline.compose import ComposedEmail

        if any(isinstance(email, ComposedEmail) for email in email_messages):
            raise ImproperlyConfigured("A provider handed back to the queue what came from it: let its backend send.")
        emails = [email for email in email_messages if email.recipients()]
        if not emails:
            return 0
        try:
            with transaction.atomic(using=router.db_for_write(Message)):
                for email in emails:
                    self._queue(email)
        except (ValueError, Error):
            # Django's password reset catches everything: without this line a lost mail would leave no trace.
            logger.exception("%d mails could not be queued", len(emails))
            if not self.fail_silently:
                raise
            return 0
        return len(emails)

    def _queue(self, email: EmailMessage) -> None:
        from ..pipeline.enqueue import queue_message

        terms = {**self.terms, **getattr(email, "mailengine", {})}
        headers = dict(email.extra_headers)
        for name in [name for name in headers if str(name).lower() == PRIORITY_HEADER]:
            terms["priority"] = headers.pop(name)
        original, email.extra_headers = email.extra_headers, headers
        try:
            queue_message(email, **terms)
        finally:
            email.extra_headers = original


def _options_of_default() -> dict[str, Any]:
    """The OPTIONS of `MAILERS["default"]`, which Django before 6.1 does not hand to the backend that it names."""
    if "default" not in mailer_aliases() or not mailer_backend_path("default").startswith("mailengine.backends."):
        return {}
    return mailer_options("default")
