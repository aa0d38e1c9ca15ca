"""Providers: which are in use, which rest, and why."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..conf import get_settings
from ..models import ProviderState
from .base import BannerMixin, ReadOnlyAdmin


@admin.register(ProviderState)
class ProviderStateAdmin(BannerMixin, ReadOnlyAdmin):
    """The health of each provider, as all workers share it."""

    list_display = ("alias", "circuit_in_words", "since", "next_probe", "last_error", "last_error_at")
    list_filter = ("is_open", "misconfigured")
    fields = (
        "alias", "circuit_in_words", "since", "bad_rounds", "good_rounds", "next_probe", "throttled_until",
        "took_over_at", "alerted_at", "last_error", "last_error_at",
    )  # fmt: skip
    readonly_fields = ("circuit_in_words", "since", "next_probe")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProviderState]:
        rows: QuerySet[ProviderState] = super().get_queryset(request)
        return rows.annotate(now=db_now())  # type: ignore[no-redef]

    @admin.display(description=_("circuit"), ordering="is_open")
    def circuit_in_words(self, provider: Any) -> str:
        circuit = provider.circuit
        if circuit.misconfigured:
            return gettext("Open: it rejects our configuration, which a person must mend")
        if circuit.is_open:
            return gettext("Open: it failed too often, and rests but for single probes")
        if circuit.is_throttled(now=provider.now):
            return gettext("Closed, but it asked us to wait")
        if circuit.bad_rounds:
            return gettext("Closed: in use, though the last handovers failed")
        return gettext("Closed: in use")

    @admin.display(description=_("next probe"))
    def next_probe(self, provider: ProviderState) -> Any:
        return provider.circuit.next_probe_at(get_settings().circuit_policy) if provider.is_open else None

    @admin.display(description=_("since"))
    def since(self, provider: ProviderState) -> Any:
        return provider.opened_at if provider.is_open else provider.closed_at
