"""ProviderState: a provider's circuit, switches and rate, shared by all processes and hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction
from django.utils.translation import gettext_lazy as _

from ..circuit import Circuit
from ..clock import db_now
from ..conf import Mode, ProviderPolicy, Switches
from ..rate import Limit, after_slowing, limits_of, of_the_day

_CIRCUIT = [f.name for f in fields(Circuit)]


class ProviderQuerySet(models.QuerySet["ProviderState"]):
    def everything(self, aliases: Iterable[str]) -> dict[str, ProviderState]:
        """All rows, `row.now` being the instant they were read at; these `aliases` get one, and start healthy (G24)."""
        found = self._read()
        if missing := [alias for alias in aliases if alias not in found]:
            for alias in missing:
                try:
                    with transaction.atomic(using=self.db):
                        self.create(alias=alias)
                except IntegrityError:  # another process was first
                    continue
            found = self._read()
        return found

    def switches(self) -> dict[str, Switches]:
        """What an operator has set, by provider."""
        return {row.alias: row.switches for row in self.all()}

    def switch(self, alias: str, **switches: object) -> dict[str, tuple[object, object]]:
        """Set `mode`, `weight`, `rate` or `is_added` of a provider: what that has changed, by name (before, after).

        Nothing else of the row is written, which workers write, too. They follow within a second.
        """
        with transaction.atomic(using=self.db):
            self.everything([alias])
            row = self.select_for_update().get(pk=alias)
            changed = {name: value for name, value in switches.items() if getattr(row, name) != value}
            if changed:
                self.filter(pk=alias).update(**changed)
        return {name: (getattr(row, name), value) for name, value in changed.items()}

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

    def _read(self) -> dict[str, ProviderState]:
        return {row.alias: row for row in self.annotate(now=db_now())}


MODES = [
    (Mode.ENABLED.value, _("enabled")),
    (Mode.DRAINING.value, _("draining")),
    (Mode.DISABLED.value, _("disabled")),
    (Mode.RETIRED.value, _("retired")),
]


def check_rate(text: str) -> None:
    """Raise ValidationError for what is no rate."""
    try:
        limits_of(text)
    except ValueError as error:
        raise ValidationError(str(error)) from error


class ProviderState(models.Model):
    """One provider's circuit, what it was given of late, and the switches that an operator has set."""

    alias = models.CharField(_("provider"), max_length=64, primary_key=True)
    mode = models.CharField(_("mode"), max_length=8, choices=MODES, default=Mode.ENABLED.value)
    weight = models.PositiveIntegerField(_("weight"), null=True, blank=True, help_text=_("Empty: as the settings say."))
    rate = models.CharField(
        _("rate"), max_length=100, blank=True, default="", validators=[check_rate],
        help_text=_("As 14/s, 50000/day; empty: as the settings say."),
    )  # fmt: skip
    is_added = models.BooleanField(_("added here"), default=False, editable=False)
    """The settings don't name it as a provider, and it is one all the same."""
    usage = models.JSONField(default=dict, blank=True, editable=False)
    """What was begun of late, as far as its limits ask: see `rate.py`."""
    warming_since = models.DateTimeField(_("warm-up began"), null=True, blank=True)
    slowed_to = models.PositiveIntegerField(_("slowed down to"), null=True, blank=True, editable=False)
    """Handovers a second, at `slowed_at`; more since."""
    slowed_at = models.DateTimeField(_("slowed down at"), null=True, blank=True, editable=False)
    is_open = models.BooleanField(_("circuit open"), default=False)
    bad_rounds = models.PositiveIntegerField(_("bad rounds in a row"), default=0)
    good_rounds = models.PositiveIntegerField(_("good probes in a row"), default=0)
    misconfigured = models.BooleanField(_("misconfigured"), default=False)
    opened_at = models.DateTimeField(_("opened"), null=True, blank=True)
    closed_at = models.DateTimeField(_("closed"), null=True, blank=True)
    interval_factor = models.PositiveSmallIntegerField(_("intervals between probes"), default=1)
    failed_at = models.DateTimeField(_("last failure"), null=True, blank=True)
    probing_until = models.DateTimeField(_("probe under way until"), null=True, blank=True)
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

    @property
    def switches(self) -> Switches:
        """What an operator has set. A rate or mode that nobody can read is none."""
        mode = {mode.value: mode for mode in Mode}.get(self.mode, Mode.ENABLED)
        try:
            limits = limits_of(self.rate) if self.rate else None
        except ValueError:
            limits = None
        return Switches(mode, self.weight, limits, self.is_added)

    def may_have_limits(self, policy: ProviderPolicy) -> bool:
        """Whether `limits()` may give any, at any time."""
        return bool(policy.rate or policy.warm_up or self.slowed_to is not None)

    def limits(self, policy: ProviderPolicy, *, now: datetime) -> tuple[Limit, ...]:
        """All that bounds what it may be given at `now`: its rate, its warm-up, and what it has asked for itself."""
        warm_up = of_the_day(policy.warm_up, since=self.warming_since, now=now)
        return (*policy.rate, *warm_up, *self.slowing(now=now))

    def slowing(self, *, now: datetime) -> tuple[Limit, ...]:
        """What it may be given since it asked us to slow down."""
        if self.slowed_to is None or self.slowed_at is None:
            return ()
        return after_slowing(self.slowed_to, since=self.slowed_at, now=now)

    def enter_usage(self) -> None:
        """Write what has been counted. To be called in the transaction that has locked the row."""
        ProviderState.objects.filter(pk=self.pk).update(usage=self.usage, warming_since=self.warming_since)

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
