"""ProviderState: the health of a provider, shared by all processes and hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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

    def told(self, alias: str, *, alerting_until: datetime, has_arrived: bool) -> bool:
        """Enter whether the admins were told, by the one who was to do so until then; if not, the next one may.

        False when that is entered already, or the incident is over.
        """
        entry = {"alerted_at": db_now(), "alerting_until": None} if has_arrived else {"alerting_until": db_now()}
        return self.filter(pk=alias, misconfigured=True, alerting_until=alerting_until).update(**entry) > 0

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
    """In a row: see `pipeline/promotion.py`."""
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

    def changes(self, circuit: Circuit, **fields: object) -> dict[str, object]:
        """What of this circuit and these fields the row does not say already."""
        values = {**asdict(circuit), **fields}
        return {name: value for name, value in values.items() if getattr(self, name) != value}

    def write(self, changes: Mapping[str, object]) -> None:
        """Change these fields, if there are any."""
        if changes:
            ProviderState.objects.filter(pk=self.pk).update(**changes)
        for name, value in changes.items():
            setattr(self, name, value)
