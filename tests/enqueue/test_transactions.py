"""Mail is queued if and only if the caller's transaction commits, and no provider is asked meanwhile."""

from __future__ import annotations

import time

import pytest
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction

from mailengine import queue_job, queue_mail
from mailengine.models import Content, Message, MessageJob


class HangingBackend(BaseEmailBackend):
    """A provider that must not be asked: building it takes 30 seconds."""

    def __init__(self, **options):
        time.sleep(30)
        super().__init__(**options)


@pytest.mark.django_db
def test_rolled_back_means_never_queued(provider):
    """F-X22"""
    with transaction.atomic():
        queue_mail("Hello", "", None, ["ann@example.org"])
        queue_job("Hello", "", None, ["ann@example.org"])
        transaction.set_rollback(True)
    assert not Message.objects.exists()
    assert not MessageJob.objects.exists()
    assert not Content.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_committed_means_queued(provider):
    """F-X22"""
    with transaction.atomic():
        message = queue_mail("Hello", "", None, ["ann@example.org"])
    assert Message.objects.get(pk=message.pk).status == "queued"


@pytest.mark.django_db
def test_a_refused_mail_leaves_the_callers_transaction_usable(provider):
    with transaction.atomic():
        with pytest.raises(ValueError, match="recipients"):
            queue_mail("Hello", "", None, [])
        queue_mail("Hello", "", None, ["ann@example.org"])
    assert Message.objects.count() == 1


@pytest.mark.django_db
def test_a_hanging_provider_costs_the_caller_nothing(configure, settings):
    """C01, S04"""
    configure()
    settings.MAILERS = {**settings.MAILERS, "relay": {"BACKEND": f"{__name__}.HangingBackend"}}
    started_at = time.monotonic()
    queue_mail("Hello", "", None, ["ann@example.org"])
    queue_job("Hello", "", None, ["ann@example.org"])
    assert time.monotonic() - started_at < 0.3
