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
        states = list(ProviderState.objects.order_by("alias"))
        outage = self._receiver.outage()  # asked after the rows, which follow it
        if outage.began_at and not self._was_down:
            self._was_down = True
            self._say("mailgun", "goes down: its API answers 503 to all mail")
        for state in states:
            self._say_what_is_worse(state, before=self._before(state))
        if outage.ended_at and not self._is_repaired:
            self._is_repaired = True
            self._say("mailgun", "is repaired, and nobody tells the queue")
        for state in states:
            if state.closed_at and state.closed_at != self._before(state).closed_at:
                self._say(state.alias, "is back: a mail got through, and then another")
        self._seen = {state.alias: state for state in states}

    def _before(self, state: ProviderState) -> ProviderState:
        return self._seen.get(state.alias, ProviderState(alias=state.alias))

    def _say_what_is_worse(self, state: ProviderState, *, before: ProviderState) -> None:
        if state.opened_at and state.opened_at != before.opened_at:
            self._say(state.alias, f"rests after {state.bad_rounds} failures in a row; the others take its share,")
            self._say("", "and one mail each half second goes there to see if it works again")
        if state.slowed_at and state.slowed_at != before.slowed_at:
            rate = f"{state.slowed_to} a second and more"
            self._say(state.alias, f"wants us to slow down: it rests a moment, then gets {rate}")
