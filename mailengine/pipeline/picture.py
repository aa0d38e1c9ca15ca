"""The rows of the providers as one run sees them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from ..circuit import Circuit
from ..clock import seconds_since
from ..compat import mailer_aliases
from ..conf import ProviderPolicy, Settings
from ..models import ProviderState

REFRESH_SECONDS = 1.0
"""How old it may be: other processes and hosts change circuits and limits, too, and operators the switches."""


class Picture:
    """Circuits, limits and switches of all providers: read each second, and whenever the rows are locked."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """As the operator's switches leave them, so that a run follows these."""
        self.states: dict[str, ProviderState] = {}
        self._written_settings = settings
        self._read_at = float("-inf")

    def refresh(self, *, at_once: bool = False) -> bool:
        """Read it anew when it is old; whether it was."""
        if not at_once and time.monotonic() - self._read_at < REFRESH_SECONDS:
            return False
        # Also those seen before: should somebody have deleted a row, handovers may be under way there.
        self.states = ProviderState.objects.everything({**self._written_settings.providers, **self.states})
        self._read_at = time.monotonic()
        self.settings = self.under_switches(self._written_settings)
        return True

    def under_switches(self, settings: Settings) -> Settings:
        """These settings as the operator's switches leave them."""
        switches = {alias: state.switches for alias, state in self.states.items()}
        return settings.under(switches, known=mailer_aliases())

    def lock(self) -> None:
        """Lock the rows until the transaction commits, and see what stands there now.

        All rows, always: who needs a second one later in the same transaction holds it already, in order.
        """
        for alias, state in ProviderState.objects.locked(list(self.states)).items():
            state.now = self.states[alias].now  # the picture has one instant, from which time goes on
            self.states[alias] = state

    @property
    def now(self) -> datetime:
        """This instant by the database's clock, as it has gone on since the last look at it."""
        first: ProviderState | None = next(iter(self.states.values()), None)
        if first is None:
            raise LookupError("no provider")
        return first.now + timedelta(seconds=seconds_since(self._read_at))

    def circuit(self, alias: str) -> Circuit:
        return self.states[alias].circuit

    def policy(self, alias: str) -> ProviderPolicy:
        return self.settings.provider(alias)
