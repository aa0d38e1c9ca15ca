"""What the limits of providers leave to be given to them, counted in their rows by the commit that begins it."""

from __future__ import annotations

from ..clock import stopped_at
from ..models import Message, Priority
from ..rate import LONGEST_MOMENT_SECONDS, Limit, free_at, left, taken
from .picture import Picture


class Limits:
    """The limits of all providers in this picture."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self._counted: set[str] = set()
        """Providers whose usage has grown since it was last written."""

    def exist(self) -> bool:
        """Whether any provider has one now."""
        return any(self.exist_at(alias) for alias in self.picture.settings.providers)

    def exist_at(self, alias: str) -> bool:
        """Whether this provider has one now."""
        return bool(self._of(alias))

    def bind(self) -> bool:
        """Whether at least one provider may be given nothing at this very moment, or no bulk mail."""
        return any(self._left(alias, is_bulk=True) == 0 for alias in self.picture.settings.providers)

    def seconds_until_free(self) -> float:
        """How long until the first of the providers that `bind()` is about may be given something again."""
        seconds = [self._free_in_seconds(alias, is_bulk=True) for alias in self.picture.settings.providers]
        return min((wait for wait in seconds if wait > 0), default=0.0)

    def allow(self, alias: str, message: Message, *, planned: int = 0) -> bool:
        """Whether this message may begin there at this very moment, besides so many that are planned."""
        count = self._left(alias, is_bulk=is_bulk(message))
        return count is None or planned < count

    def forbid_for_long(self, alias: str, *, is_bulk: bool) -> bool:
        """Whether it takes more than a moment until this provider may be given something; `is_bulk`: bulk mail."""
        moment = LONGEST_MOMENT_SECONDS if stopped_at() is None else 0.0  # none passes while a test stops the clock
        return self._free_in_seconds(alias, is_bulk=is_bulk) > moment

    def count(self, alias: str) -> None:
        """A handover to this provider begins."""
        if limits := self._of(alias):
            state = self.picture.states[alias]
            state.usage = taken(limits, state.usage, now=self.picture.now)
            self._counted.add(alias)

    def enter(self) -> None:
        """Write what was counted, in the transaction that has locked the rows."""
        for alias in sorted(self._counted):
            state = self.picture.states[alias]
            if self.picture.policy(alias).warm_up and state.warming_since is None:
                state.warming_since = self.picture.now
            state.enter_usage()
        self._counted.clear()

    def forget(self) -> None:
        """What was counted was rolled back."""
        self._counted.clear()

    def _of(self, alias: str) -> tuple[Limit, ...]:
        state, policy = self.picture.states[alias], self.picture.policy(alias)
        # Most have none at all, and are asked for each message.
        return state.limits(policy, now=self.picture.now) if state.may_have_limits(policy) else ()

    def _left(self, alias: str, *, is_bulk: bool) -> int | None:
        if not (limits := self._of(alias)):
            return None
        share = self._share(alias, is_bulk=is_bulk)
        return left(limits, self.picture.states[alias].usage, now=self.picture.now, share=share)

    def _free_in_seconds(self, alias: str, *, is_bulk: bool) -> float:
        if not (limits := self._of(alias)):
            return 0.0
        now, usage = self.picture.now, self.picture.states[alias].usage
        free = free_at(limits, usage, now=now, share=self._share(alias, is_bulk=is_bulk))
        return (free - now).total_seconds()

    def _share(self, alias: str, *, is_bulk: bool) -> float:
        """The part of its limits that this mail may use."""
        return 1 - self.picture.policy(alias).reserve if is_bulk else 1.0


def is_bulk(message: Message) -> bool:
    """Whether it leaves the reserve to other mail."""
    return message.priority >= Priority.BULK
