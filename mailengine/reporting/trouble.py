"""What a provider's last error means, and what to do next, for somebody who was woken by it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy as _

from ..outcomes import Kind

# What it was
LOG_IN = _("It refuses our user name, password or key.")
SENDER = _("It does not let us send as this sender.")
ENTRY = _("No backend can be made of its entry of MAILERS.")
CERTIFICATE = _("Its certificate can't be trusted: it has expired, is for another name, or nobody we know signed it.")
NO_TLS = _("It offers no encryption or no log-in that we could use, and nothing is sent without.")
HANDSHAKE = _("An encrypted connection to it can't be agreed on.")
NAME = _("Nobody knows its host name.")
BLOCKED = _("It turns us away before we have said anything: our address may be on a block list.")
MOVED = _("It sends us to another address, which we never follow.")
ACCOUNT = _("The account there is suspended, under review or out of credit.")
CONFIGURATION = _("It rejects our configuration.")
NOTHING_ANSWERS = _("Nothing answers at its address.")
TOO_LATE = _("It does not answer in time.")
ITS_OWN = _("It says that it has trouble of its own.")
BROKE = _("The connection to it breaks.")
TOO_FAST = _("It finds that we send too much.")
MAYBE = _(
    "Nobody knows if it has taken the last mail: it went silent after the last byte, or its answer made no sense."
)
OUT_OF_REACH = _("It can't be used.")

# What to do next; %(alias)s is the provider
MEND_LOG_IN = _(
    "Compare MAILERS['%(alias)s'] with the account at the provider: was a password changed, a key withdrawn?"
)
MEND_SENDER = _(
    "Verify the sender or its domain (SPF, DKIM) at the provider, or let it carry only what it may: ALLOWED_SENDERS."
)
MEND_ENTRY = _("Mend MAILERS['%(alias)s']: manage.py check says what is wrong with it.")
MEND_CERTIFICATE = _(
    "If it is your server, renew its certificate. If not, compare the host name in MAILERS['%(alias)s'] with the "
    "provider's manual."
)
MEND_TLS = _("Compare port, use_tls and use_ssl in MAILERS['%(alias)s'] with the provider's manual.")
MEND_NAME = _("Look for a typing error in the host of MAILERS['%(alias)s']; then at this host's DNS.")
MEND_ACCOUNT = _("Log in at the provider and look what it wants; its mail goes by the others meanwhile, or waits.")
MEND_NETWORK = _(
    "Is the server up, and do host and port in MAILERS['%(alias)s'] still hold? Is there a firewall in between?"
)
WAIT = _("There is nothing to do here: it is tried again by itself. If it lasts, look at the provider's status page.")
WAIT_FOR_PROOF = _(
    "There is nothing to do here: nothing is sent twice unasked. If it lasts, look at the provider's own log."
)
SLOW_DOWN = _("There is nothing to do here: we wait, then send less. If it comes back, set its RATE.")

TROUBLES: tuple[tuple[str, str, Any, Any], ...] = (
    # kind                 what the code and the words are like                     what it was        what to do
    ("misconfigured", r"InvalidMailer|ImproperlyConfigured|MailerDoesNotExist|AnymailConfig", ENTRY, MEND_ENTRY),
    ("misconfigured", r"CertVerif|CertificateError|certificate", CERTIFICATE, MEND_CERTIFICATE),
    ("misconfigured|unavailable", r"gaierror|NameResolution|[Nn]ame or service|node?name", NAME, MEND_NAME),
    ("misconfigured|unavailable", r"SSL|(?<!START)TLS", HANDSHAKE, MEND_TLS),
    ("misconfigured", r"NotSupported|SMTPException|STARTTLS", NO_TLS, MEND_TLS),
    ("misconfigured", r"(?i:not verified|unverified|sender|spf|dkim|dmarc|from address)|5\.1\.[78]|5\.7\.2", SENDER,
     MEND_SENDER),
    ("misconfigured", r"(?i:suspend|credit|under.validation|disabled|paused|payment)|\b402\b", ACCOUNT, MEND_ACCOUNT),
    ("misconfigured", r"\b(5[23][0-9]|40[13])\b|5\.7\.[89]|(?i:credential|token|password|api.?key|authenticat)",
     LOG_IN, MEND_LOG_IN),
    ("misconfigured", r"\b554\b", BLOCKED, MEND_ACCOUNT),
    ("misconfigured", r"\b30[1278]\b|TooManyRedirects", MOVED, MEND_NETWORK),
    ("misconfigured", r"", CONFIGURATION, MEND_LOG_IN),
    ("unavailable", r"(?i:refused|unreachable|no route)", NOTHING_ANSWERS, MEND_NETWORK),
    ("unavailable", r"(?i:time)", TOO_LATE, WAIT),
    ("unavailable", r"^(HTTP )?[45]", ITS_OWN, WAIT),
    ("unavailable|deferred", r"(?i:closed|disconnected|reset|broken|aborted|EOF)", BROKE, WAIT),
    ("unavailable|deferred", r"", OUT_OF_REACH, WAIT),
    ("throttled", r"", TOO_FAST, SLOW_DOWN),
    ("uncertain", r"", MAYBE, WAIT_FOR_PROOF),
    ("accepted|refused", r"", OUT_OF_REACH, WAIT),
)  # fmt: skip
"""The first line that fits is the one; there is one for each kind of outcome, whatever was said."""


@dataclass(frozen=True)
class Trouble:
    """An error in plain words, and what to do next."""

    what: str
    mend: str
    kind: str
    """The outcome as the ledger has it."""
    said: str
    """In the words of the provider, or of the system."""


def trouble_of(last_error: str, *, alias: str) -> Trouble | None:
    """What `ProviderState.last_error` of this provider means; None where there is none."""
    if not last_error:
        return None
    kind, _colon, said = last_error.partition(": ")
    if kind not in set(Kind):
        kind, said = Kind.UNAVAILABLE, last_error
    what, mend = next(
        (what, mend) for kinds, pattern, what, mend in TROUBLES if kind in kinds.split("|") and re.search(pattern, said)
    )
    return Trouble(str(what), str(mend) % {"alias": alias}, str(kind), said)
