"""What a try at a provider came to, and whose fault it was.

An outcome is a value: the senders make it from what a backend returned or raised (`providers/classify/`), the ledger
stores its `kind`, `code` and `detail`, and `pipeline/verdict.py` alone decides what becomes of the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

DETAIL_LENGTH = 500
CODE_LENGTH = 64
ID_LENGTH = 255
_LENGTHS = {"code": CODE_LENGTH, "detail": DETAIL_LENGTH, "provider_message_id": ID_LENGTH}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Kind(str, Enum):
    """The seven outcomes, as `Attempt.outcome` stores them."""

    ACCEPTED = "accepted"  # a provider took it
    REFUSED = "refused"  # the message or its address is at fault, for good
    DEFERRED = "deferred"  # the message's fault, for now
    UNAVAILABLE = "unavailable"  # the provider's fault; it surely has not taken it
    MISCONFIGURED = "misconfigured"  # ours: a wrong password, an unverified sender
    THROTTLED = "throttled"  # the provider asks us to wait
    UNCERTAIN = "uncertain"  # it may have gone; nothing proves either

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Outcome:
    """What one handover came to.

    `code` is short and sorts alike things together ("550 5.1.1", "HTTP 503", "ConnectionRefusedError"); `detail` is
    the provider's own text in one line of at most 500 characters.
    """

    kind: Kind
    code: str = ""
    detail: str = ""
    retry_after_seconds: float | None = None
    """How long the provider asked us to wait, with `THROTTLED`. With `DEFERRED`, 0: its next try need not wait."""
    address_is_bad: bool = False
    """With `REFUSED`: nobody can be reached there, so the address is suppressed."""
    elsewhere: bool = False
    """With `REFUSED`: only this provider won't have it (too large, a feature it lacks); another may at once."""
    cancelled: bool = False
    """With `REFUSED`: a function of the project's own withdrew it, such as a receiver of Anymail's `pre_send`."""
    greylisted: bool = False
    """With `DEFERRED`: the server wants to see us again after some minutes."""
    counts_as_bad: bool = False
    """With `DEFERRED`: it may as well be the provider's fault, so that it is a bad round, too."""
    tries: int = 0
    """With `DEFERRED`: after so many alike tries of a message, this one included, it is `then` instead; 0: never."""
    then: Kind = Kind.REFUSED
    ours_after_seconds: float | None = None
    """With `UNAVAILABLE`: a circuit that has been open for so long shows that it is misconfigured; None: never."""
    is_local: bool = False
    """With `UNAVAILABLE`: this host is at fault (out of sockets, say, or frozen for too long), and no provider."""
    is_repeatable: bool = False
    """With `UNCERTAIN`: it went with an idempotency key, so that the same provider takes it no second time."""
    phase: str = ""
    """At which step of the dialogue the provider answered: "rcpt", "await", "http"; empty where it did not."""
    provider_message_id: str = ""
    sha256: bytes = b""
    """Of the bytes that went out, where the backend knows them."""
    refusals: Mapping[str, Outcome] = field(default_factory=dict)
    """With `ACCEPTED`, for several recipients: the addresses that were refused, each with its own outcome."""

    def __post_init__(self) -> None:
        for name, length in _LENGTHS.items():
            if (text := getattr(self, name)) != "":
                object.__setattr__(self, name, one_line(text, length=length))

    @property
    def is_bad_round(self) -> bool:
        """Whether it counts against the provider's circuit."""
        is_bad = self.kind in {Kind.UNAVAILABLE, Kind.MISCONFIGURED, Kind.UNCERTAIN} or self.counts_as_bad
        return is_bad and not self.is_local

    @property
    def is_good_round(self) -> bool:
        """Whether it shows that the provider works."""
        return self.kind is Kind.ACCEPTED

    def __str__(self) -> str:
        return " ".join(part for part in (self.code, self.detail) if part) or str(self.kind)


def one_line(text: object, *, length: int) -> str:
    """`text` as one printable line of at most `length` characters.

    A server's reply goes into ledgers, logs and terminals; it must not be able to forge a line there.
    """
    line = _CONTROL.sub(lambda found: _escape(found[0]), str(text)).strip()
    return line if len(line) <= length else line[: length - 1] + "…"


def _escape(character: str) -> str:
    return " " if character in "\r\n\t" else character.encode("unicode_escape").decode("ascii")
