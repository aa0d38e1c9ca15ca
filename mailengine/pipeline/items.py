"""What travels through the loop: a claim of messages, each message on its way, and the call that it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ..backends.wire import Mail
from ..models import Lease, Message
from ..models.messages import Verdict


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
    email: Mail | None = None
    """Once it is composed: in the form that its provider takes."""
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
    goes_alone: bool = False
    """A call of many that it was in was refused as a whole: by itself, it shows whose fault that was."""
    has_waited: bool = False
    """For others to go with it in one call, which are still to be composed."""
    call: Call | None = None
    """The one by which it was handed over."""

    @property
    def is_ready(self) -> bool:
        """Whether it can begin, or be settled without."""
        return self.email is not None or self.verdict is not None

    @property
    def has_company(self) -> bool:
        """Whether it was handed over in one call with others."""
        return self.call is not None and len(self.call.items) > 1


@dataclass(eq=False)
class Call:
    """What one handover carries: one message nearly always, or several that one call of an ESP's API takes."""

    items: list[Item]

    @property
    def provider(self) -> str:
        return self.items[0].provider

    @property
    def is_trusted(self) -> bool:
        """Whether no lease can end before the handover does."""
        return all(item.lease.is_trusted for item in self.items)

    @property
    def key(self) -> str:
        """The idempotency key of the call; many have another one than any of them has alone."""
        first = self.items[0]
        return f"call-{first.key}" if first.key and len(self.items) > 1 else first.key
