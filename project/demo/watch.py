"""What a spectator would miss between the lines of the commands: when a provider fails, rests and is back."""

from __future__ import annotations

from collections.abc import Callable

from mailengine.models import ProviderState

from .receiver import Receiver


class Watch:
    """Says what has changed since the last look: at the receiving side, and in the rows of the providers."""

    def __init__(self, receiver: Receiver, say: Callable[[str, str], None]) -> None:
        self._receiver = receiver
        self._say = say
        self._seen: dict[str, ProviderState] = {}
        self._was_down = self._is_repaired = False

    def look(self) -> None:
        outage = self._receiver.outage()
        if outage.began_at and not self._was_down:
            self._was_down = True
            self._say("mailgun", "goes down: its API answers 503 to all mail")
        for state in ProviderState.objects.order_by("alias"):
            self._compare(self._seen.get(state.alias, ProviderState(alias=state.alias)), state)
            self._seen[state.alias] = state
        if outage.ended_at and not self._is_repaired:
            self._is_repaired = True
            self._say("mailgun", "is repaired, and nobody tells the queue")

    def _compare(self, before: ProviderState, now: ProviderState) -> None:
        if now.opened_at and now.opened_at != before.opened_at:
            self._say(now.alias, f"rests after {now.bad_rounds} failures in a row; the others take its share,")
            self._say("", "and one mail each half second goes there to see if it works again")
        if now.closed_at and now.closed_at != before.closed_at:
            self._say(now.alias, "is back: a mail got through, and then another")
        if now.slowed_at and now.slowed_at != before.slowed_at:
            self._say(
                now.alias, f"wants us to slow down: it rests a moment, then gets {now.slowed_to} a second and more"
            )
