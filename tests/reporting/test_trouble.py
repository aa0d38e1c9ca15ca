"""A provider's last error in plain words."""

from __future__ import annotations

import pytest

from mailengine.conf import Mode
from mailengine.outcomes import Kind
from mailengine.reporting import trouble
from mailengine.reporting.trouble import trouble_of


@pytest.mark.parametrize(
    ("last_error", "what"),
    [
        ("misconfigured: 535 5.7.8 Authentication credentials invalid", trouble.LOG_IN),
        ("misconfigured: 530 5.7.0 Must issue a STARTTLS command first", trouble.NO_TLS),
        ("misconfigured: HTTP 401 Unauthorized", trouble.LOG_IN),
        ("misconfigured: HTTP 403 Forbidden", trouble.LOG_IN),
        ("misconfigured: 401 Unauthorized", trouble.LOG_IN),
        ("misconfigured: the last 5 refusals were alike: 550 5.7.1 Sender not verified", trouble.SENDER),
        ("misconfigured: 553 5.1.8 Sender address rejected", trouble.SENDER),
        ("misconfigured: SSLCertVerificationError certificate has expired", trouble.CERTIFICATE),
        ("misconfigured: SMTPNotSupportedError STARTTLS extension not supported by server.", trouble.NO_TLS),
        ("misconfigured: gaierror [Errno -2] Name or service not known", trouble.NAME),
        ("misconfigured: InvalidMailer MAILERS has no 'ses'.", trouble.ENTRY),
        ("misconfigured: HTTP 402 not_enough_credits", trouble.ACCOUNT),
        ("misconfigured: HTTP 302", trouble.MOVED),
        ("misconfigured: 554 5.3.2 go away", trouble.BLOCKED),
        ("misconfigured: never seen before", trouble.CONFIGURATION),
        ("unavailable: ConnectionRefusedError [Errno 111] Connection refused", trouble.NOTHING_ANSWERS),
        ("unavailable: TimeoutError timed out", trouble.TOO_LATE),
        ("unavailable: HTTP 503 Service Unavailable", trouble.ITS_OWN),
        ("unavailable: 421 4.3.2 Service shutting down", trouble.ITS_OWN),
        ("unavailable: SMTPServerDisconnected Connection unexpectedly closed", trouble.BROKE),
        ("unavailable: SSLError handshake failure", trouble.HANDSHAKE),
        ("deferred: SMTPServerDisconnected Connection unexpectedly closed", trouble.BROKE),
        ("throttled: HTTP 429 Too many requests", trouble.TOO_FAST),
        ("uncertain: HTTP 500", trouble.MAYBE),
        ("no kind at all", trouble.OUT_OF_REACH),
    ],
)
def test_an_error_means(last_error, what):
    found = trouble_of(last_error, alias="ses")

    assert found.what == what
    assert "%" not in found.mend
    assert found.said in last_error


def test_the_mend_names_the_entry():
    assert "MAILERS['ses']" in trouble_of("misconfigured: 535 no", alias="ses").mend


def test_without_an_error_there_is_no_trouble():
    assert trouble_of("", alias="ses") is None


@pytest.mark.parametrize("kind", list(Kind))
def test_whatever_the_kind_there_are_words(kind):
    assert trouble_of(f"{kind}: 100 % of it {Mode.ENABLED}", alias="50 % off").mend
