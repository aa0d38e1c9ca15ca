"""What travels through the loop: a claim of messages, and each message on its way to a provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ..models import Lease, Message
from ..models.messages import Verdict
from .compose import ComposedEmail


@dataclass(frozen=True)
class Claim:
    """Messages that were claimed together."""

    messages: Sequence[Message]
    lease: Lease
    is_suspect: bool = False
    """One alone, which may have killed its workers."""


@dataclass
class Item:
    """A claimed message on its way."""

    message: Message
    lease: Lease
    size: int | None = None
    """Of the words and files of its mail, in bytes; None until somebody asked."""
    email: ComposedEmail | None = None
    """Once it is composed."""
    verdict: Verdict | None = None
    """What becomes of it, where it can't be composed."""
    is_suspect: bool = False
    tried: set[str] = field(default_factory=set)
    """Providers that it was at in this claim, or that may not send it."""
    refused_by: set[str] = field(default_factory=set)
    """Those of them that won't have it, for a reason of their own."""
    reserved: str = ""
    """The provider that has room for it, if it begins now."""
    provider: str = ""
    """Where it is, once begun."""
    number: int = 0
    """Of its attempt there."""
    key: str = ""
    """For a provider that takes an idempotency key: the same for each handover of which one may have arrived."""
    key_since: datetime | None = None
    """When the first handover with this key began."""
    must_stay: bool = False
    """It may have arrived at its provider a moment ago, who takes a key: no other provider yet, however urgent."""
    is_probe: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it can begin, or be settled without."""
        return self.email is not None or self.verdict is not None
