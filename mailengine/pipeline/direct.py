"""`send_direct_email()`: send now, while the caller waits, with its ledger."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.db import router, transaction

from ..clock import db_now, read_now
from ..compat import mailer_aliases
from ..conf import Settings, get_settings
from ..errors import InvalidMail, NotSent
from ..models import Lease, Message, Priority, ProviderState, Worker
from ..models.messages import Status
from .dispatch import Dispatcher
from .draft import draft_of, recipients_of
from .enqueue import email_of, store_message, terms_of


def send_direct_email(
    subject: str,
    message: str,
    from_email: str | None,
    recipient_list: Sequence[str],
    *,
    html_message: str | None = None,
    template: str | None = None,
    context: Mapping[str, object] | None = None,
    cc: Sequence[str] | None = None,
    bcc: Sequence[str] | None = None,
    reply_to: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    attachments: Sequence[Any] | None = None,
    stream: str = "transactional",
    priority: Priority | int | str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    metadata: Mapping[str, object] | None = None,
    tags: Iterable[str] | None = None,
    provider: str | None = None,
) -> Message:
    """The `Message`, sent: by `provider`, or by the first that takes it. The arguments are those of `queue_mail()`.

    It waits for the provider, so it is not for a web request. Raises `NotSent` when no provider took it, and the mail
    is not sent later either; when that can't be told, `NotSent` says so and the message is kept as uncertain. Raises
    `DatabaseLost` when the database failed meanwhile and did not come back: what came of it is in the log then. Raises
    RuntimeError inside a transaction, whose rollback could not call the mail back: use `queue_mail()` there. Raises
    `InvalidMail` as `queue_mail()`, also for `send_at` and `idempotency_key`, which make no sense here.
    """
    if send_at is not None or idempotency_key is not None:
        raise InvalidMail("send_direct_email() sends now: use queue_mail() for send_at and idempotency_key.")
    settings = get_settings()
    if not settings.providers or (provider is not None and provider not in settings.providers):
        settings = settings.under(ProviderState.objects.switches(), known=mailer_aliases())
    if provider is not None:
        settings = _with_one_provider(settings, provider)
    if not settings.providers:
        raise NotSent('There is no provider to send it. Name aliases of MAILERS in MAILENGINE["PROVIDERS"].')
    email = email_of(
        subject, message, from_email, html_message, template, context, reply_to, headers, attachments,
        to=recipient_list, cc=cc, bcc=bcc,
    )  # fmt: skip
    draft, recipients = draft_of(email, metadata=metadata, tags=tags), recipients_of(email)
    terms = terms_of(stream, priority, None, expires_at)
    using = router.db_for_write(Message)
    try:
        with transaction.atomic(using=using, durable=True):
            trusted_until = time.monotonic() + settings.trusted_seconds
            lease = Lease(Worker.objects.register("send_direct_email"), trusted_until=trusted_until)
            row = store_message(
                draft,
                recipients,
                terms,
                now=read_now(using),
                status=Status.SENDING,
                claimed_from=Status.DEAD,  # should this process die, nobody sends it later
                lease=lease.id,
                leased_until=db_now(settings.lease_seconds),
                worker=lease.worker,
                claim_count=1,
            )
    except RuntimeError as error:
        raise RuntimeError(
            "send_direct_email() was called inside a transaction, whose rollback could not call the mail back. "
            "Use queue_mail(), which is sent if and only if the transaction commits."
        ) from error
    Dispatcher("send_direct_email", max_time=None, settings=settings).run_direct(row, lease)
    row.refresh_from_db()
    if row.status != Status.SENT:
        last = row.attempts.order_by("number").last()
        raise NotSent(f"{row.status}: {row.reason or last}", outcome=last.result if last else None, message=row)
    return row


def _with_one_provider(settings: Settings, alias: str) -> Settings:
    """These settings as if this provider were the only one, of every stream. Raises `UnknownProvider`."""
    streams = {name: replace(policy, providers=None) for name, policy in settings.streams.items()}
    return replace(settings, providers={alias: settings.provider(alias)}, streams=streams, takes_added=False)


asend_direct_email = sync_to_async(send_direct_email, thread_sensitive=True)
