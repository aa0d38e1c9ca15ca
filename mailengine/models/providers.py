"""ProviderState: the health of a provider, shared by all processes and hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, fields
from datetime import datetime
from typing import TYPE_CHECKING

from django.db import IntegrityError, models, transaction
from django.utils.translation import gettext_lazy as _

from ..circuit import Circuit
from ..clock import db_now

_CIRCUIT = [f.name for f in fields(Circuit)]


class ProviderQuerySet(models.QuerySet["ProviderState"]):
    def of(self, aliases: Iterable[str]) -> dict[str, ProviderState]:
        """The state of each provider, `row.now` being the instant it was read at; new ones start healthy (G24)."""
        wanted = list(aliases)
        found = self._read(wanted)
        if missing := [alias for alias in wanted if alias not in found]:
            for alias in missing:
                try:
                    with transaction.atomic(using=self.db):
                        self.create(alias=alias)
                except IntegrityError:  # another process was first
                    continue
            found = self._read(wanted)
        return {alias: found[alias] for alias in wanted}

    def locked(self, aliases: Collection[str]) -> dict[str, ProviderState]:
        """The same rows, locked in the order of their aliases so that no two workers wait for each other."""
        rows = self.filter(pk__in=aliases).select_for_update().annotate(now=db_now()).order_by("alias")
        return {row.alias: row for row in rows}

    def told(self, alias: str, *, alerting_until: datetime, has_arrived: bool) -> None:
        """Enter whether the admins were told, by the one who was to do so until then; if not, the next one may."""
        ours = self.filter(pk=alias, misconfigured=True, alerting_until=alerting_until)
        ours.update(
            **({"alerted_at": db_now(), "alerting_until": None} if has_arrived else {"alerting_until": db_now()})
        )

    def _read(self, aliases: Collection[str]) -> dict[str, ProviderState]:
        return {row.alias: row for row in self.filter(pk__in=aliases).annotate(now=db_now())}


class ProviderState(models.Model):
    """One provider's circuit, and what an operator wants to know about it."""

    alias = models.CharField(_("provider"), max_length=64, primary_key=True)
    is_open = models.BooleanField(_("circuit open"), default=False)
    bad_rounds = models.PositiveIntegerField(_("bad rounds in a row"), default=0)
    good_rounds = models.PositiveIntegerField(_("good probes in a row"), default=0)
    misconfigured = models.BooleanField(_("misconfigured"), default=False)
    opened_at = models.DateTimeField(_("opened"), null=True, blank=True)
    closed_at = models.DateTimeField(_("closed"), null=True, blank=True)
    interval_factor = models.PositiveSmallIntegerField(_("intervals between probes"), default=1)
    probe_at = models.DateTimeField(_("next probe"), null=True, blank=True)
    probes_left = models.PositiveIntegerField(default=0)
    throttled_until = models.DateTimeField(_("asked us to wait until"), null=True, blank=True)
    throttle_count = models.PositiveSmallIntegerField(default=0)
    took_over_at = models.DateTimeField(_("took over"), null=True, blank=True)
    alerted_at = models.DateTimeField(_("admin told"), null=True, blank=True)
    alerting_until = models.DateTimeField(null=True, blank=True, editable=False)
    """Until then a process is telling the admins of this incident; later, should nobody have been told, another may."""
    refusals = models.JSONField(default=list, blank=True, editable=False)
    """Since it last accepted anything: see `pipeline/promotion.py`."""
    last_error = models.TextField(_("last error"), blank=True, default="")
    last_error_at = models.DateTimeField(_("last error at"), null=True, blank=True)

    objects = ProviderQuerySet.as_manager()

    if TYPE_CHECKING:
        now: datetime  # annotated by of() and locked()

    class Meta:
        verbose_name = _("provider")
        verbose_name_plural = _("providers")
        ordering = ["alias"]

    def __str__(self) -> str:
        return self.alias

    @property
    def circuit(self) -> Circuit:
        return Circuit(**{name: getattr(self, name) for name in _CIRCUIT})

    def record(self, circuit: Circuit, **changes: object) -> bool:
        """Store the circuit and `changes`; writes nothing, and says False, when that changes nothing."""
        values = {**asdict(circuit), **changes}
        changed = {name: value for name, value in values.items() if getattr(self, name) != value}
        if changed:
            ProviderState.objects.filter(pk=self.pk).update(**changed)
            for name, value in changed.items():
                setattr(self, name, value)
        return bool(changed)
