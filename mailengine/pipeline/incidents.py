"""Providers that need a person: tell the admins once, whichever process it is that tells them."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..conf import Mode, get_settings
from ..models import ProviderState
from .alerts import Alert, about_provider
from .picture import Picture


class Incidents:
    """What this run has to tell the admins."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.alerts: list[Alert] = []
        """What they are to be told once the transaction has committed."""
        self._to_tell: dict[str, tuple[Alert, datetime]] = {}
        """By provider: the alert that is this process's to tell, and until when it is."""

    def roads(self, *, but: str = "") -> list[str]:
        """By which aliases of MAILERS the admins can be told: the one for alerts, then the providers that work.

        `but` is the one that doesn't. Providers that this run may not use will do.
        """
        settings, states = self.picture.under_switches(get_settings()), self.picture.states
        enabled = [alias for alias, policy in settings.providers.items() if policy.mode is Mode.ENABLED]
        healthy = [a for a in enabled if a not in states or states[a].circuit.is_usable(now=self.picture.now)]
        first = [settings.alert_mailer] if settings.alert_mailer else []
        return [alias for alias in dict.fromkeys([*first, *healthy]) if alias != but]

    def tell(self, state: ProviderState, problem: str) -> None:
        """Let the admins be told after the commit, unless they were, or another process is at it."""
        now, before = self.picture.now, state.alerting_until
        if state.alerted_at is not None or (before is not None and now < before):
            return
        roads = self.roads(but=state.alias)
        until = now + timedelta(seconds=(len(roads) + 1) * self.picture.settings.send_deadline_seconds)
        state.write({"alerting_until": until})
        alert = about_provider(state.alias, problem, roads=roads, is_repeated=before is not None)
        alert.record = self.enter
        self.alerts.append(alert)
        self._to_tell[state.alias] = alert, until

    def enter(self) -> None:
        """Write whether the admins were told, once that is known, and again until the row is found to say so."""
        for alias, (alert, until) in list(self._to_tell.items()):
            if alert.has_arrived is None:
                continue
            if not ProviderState.objects.told(alias, alerting_until=until, has_arrived=alert.has_arrived):
                del self._to_tell[alias]
