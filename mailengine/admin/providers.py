"""Providers: how each stands and why, what it was given, and the switches to add, drain and retire it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Case, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..clock import read_now
from ..conf import Mode, get_settings
from ..errors import UnknownName
from ..models import Attempt, Message, ProviderState
from ..outcomes import Kind
from ..reporting.providers import (
    DRAINING,
    IN_USE,
    LIMITED,
    MISCONFIGURED,
    RESTING,
    SLOWED,
    THROTTLED,
    Picture,
    ProviderReport,
    addable,
    as_written,
    picture,
)
from ..reporting.switches import (
    MOST_WEIGHT,
    Changes,
    SwitchError,
    check_addable,
    check_removable,
    consequences,
    in_words,
)
from ..reporting.traffic import MAILS_FAULT
from ..reporting.waits import switched_off
from .base import BannerMixin, OperatedAdmin, link_to
from .drawing import drawing
from .figures import grouped

TONES = {
    IN_USE: "good", SLOWED: "warn", LIMITED: "warn", THROTTLED: "warn", DRAINING: "warn", RESTING: "bad",
    MISCONFIGURED: "bad",
}  # fmt: skip
"""The colour of a state's dot; of all others: off."""
FAILURES = 10
MODES = [
    (Mode.ENABLED.value, _("Enabled: it carries mail.")),
    (Mode.DRAINING.value, _("Draining: no new mail; what may have gone by it already is brought to an end.")),
    (Mode.DISABLED.value, _("Disabled: nothing at all; what may have gone by it already waits.")),
    (Mode.RETIRED.value, _("Retired: as if the settings did not name it; what may have gone by it is kept for you.")),
]


class SwitchesForm(forms.ModelForm):
    """What an operator may set. The settings say the rest."""

    mode = forms.ChoiceField(label=_("Mode"), choices=MODES, widget=forms.RadioSelect)
    weight = forms.IntegerField(
        label=_("Weight"), min_value=0, max_value=MOST_WEIGHT, required=False,
        help_text=_("Its share among the others, where the strategy is “weighted”. Empty: as the settings say."),
    )  # fmt: skip

    class Meta:
        model = ProviderState
        fields = ("mode", "weight", "rate")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        policy = get_settings().providers.get(self.instance.pk or "")
        if policy is not None:
            said = {"weight": str(policy.weight), "rate": ", ".join(as_written(limit) for limit in policy.rate)}
            for name in said.keys() & self.fields.keys():  # for who may only look there are not all of them
                self.fields[name].widget.attrs["placeholder"] = said[name]


class Overview(ChangeList):
    """The list, with what is reported of each row as its `report`: the same few queries however many there are."""

    seen: Picture
    uncarried: list[str]
    """Streams that no provider may be given new mail of."""

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        self.seen = _picture()
        self.uncarried = switched_off(self.seen) if self.seen.reports else []
        rows = super().get_queryset(request, *args, **kwargs)
        places = [When(pk=alias, then=Value(place)) for place, alias in enumerate(self.seen.reports)]
        rows = rows.filter(pk__in=list(self.seen.reports))
        return rows.order_by(Case(*places, default=Value(len(places)))) if places else rows

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        for row in rows:
            row.report = self.seen.reports[row.pk]
        self.result_list = rows


@admin.register(ProviderState)
class ProviderStateAdmin(BannerMixin, OperatedAdmin):
    """How all providers stand, as all workers share it. Whoever may change them may switch them."""

    form = SwitchesForm
    list_display = ("alias", "standing", "limits", "traffic", "day", "switches")
    sortable_by = ()
    actions = ("enable", "drain", "disable", "retire", "take_back")
    fieldsets = (
        (
            _("Switches"),
            {
                "fields": ("mode", "weight", "rate"),
                "description": _("Running workers follow within a second, on all hosts. Nothing is restarted."),
            },
        ),
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The form writes nothing but the switches, see `save_model()`: what workers have written meanwhile stays."""
        return self.has_operate_permission(request)

    # The overview

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Overview

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        states = ProviderState.objects.everything(get_settings().providers)
        may_add = self.has_operate_permission(request)
        added = [alias for alias, state in states.items() if state.is_added]
        context = {"title": gettext("Providers"), "addable": addable(added) if may_add else []}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    @admin.display(description=_("state"))
    def standing(self, row: Any) -> SafeString:
        return render_to_string("admin/mailengine/providerstate/standing.html", _facts(row.report))

    @admin.display(description=_("limits"))
    def limits(self, row: Any) -> SafeString | str:
        return render_to_string("admin/mailengine/providerstate/limits.html", {"report": row.report})

    @admin.display(description=_("sent"))
    def traffic(self, row: Any) -> SafeString:
        return render_to_string("admin/mailengine/providerstate/sent.html", _facts(row.report))

    @admin.display(description=_("last 24 hours"))
    def day(self, row: Any) -> SafeString:
        return drawing(row.report.traffic)

    @admin.display(description=_("switches"))
    def switches(self, row: Any) -> SafeString:
        return render_to_string("admin/mailengine/providerstate/switches.html", _facts(row.report))

    # Actions

    @admin.action(description=_("Enable"), permissions=["operate"])
    def enable(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        self._switch_all(request, queryset, mode=Mode.ENABLED.value)

    @admin.action(description=_("Drain: no new mail"), permissions=["operate"])
    def drain(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        self._switch_all(request, queryset, mode=Mode.DRAINING.value)

    @admin.action(description=_("Disable: nothing at all"), permissions=["operate"])
    def disable(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        self._switch_all(request, queryset, mode=Mode.DISABLED.value)

    @admin.action(description=_("Retire: as if not configured"), permissions=["operate"])
    def retire(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        self._switch_all(request, queryset, mode=Mode.RETIRED.value)

    @admin.action(description=_("Take back what was put to use here"), permissions=["operate"])
    def take_back(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        self._switch_all(request, queryset, is_possible=check_removable, is_added=False, mode=Mode.ENABLED.value)

    def put_to_use_view(self, request: HttpRequest) -> HttpResponse:
        """Make an entry of MAILERS a provider."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_operate_permission(request):
            raise PermissionDenied
        alias = request.POST.get("alias", "")
        switches = {"is_added": True, "mode": Mode.ENABLED.value}
        self._switch(request, alias, before=_picture(), is_possible=check_addable, **switches)
        return HttpResponseRedirect(reverse(f"{self.admin_site.name}:mailengine_providerstate_changelist"))

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.put_to_use_view)
        return [path("put-to-use/", view, name="mailengine_providerstate_put_to_use"), *super().get_urls()]

    # One provider

    def verbs_for(self, obj: ProviderState) -> list[str]:
        return ["take_back"] if obj.is_added else []

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        state = self.get_object(request, unquote(object_id))
        context: dict[str, Any] = {}
        if state is not None and self.has_view_or_change_permission(request, state):
            report = _picture().reports.get(state.pk)
            context = {"title": gettext("Provider %(alias)s") % {"alias": state.pk}, "subtitle": "", "state": state}
            if report is not None:
                context |= {
                    **_facts(report),
                    "drawing": drawing(report.traffic, width=720, height=160, is_large=True),
                    "hours": report.traffic.hours[::-1],
                    "failures": self._failures(request, report),
                }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def save_model(self, request: HttpRequest, obj: ProviderState, form: Any, change: bool) -> None:
        before = _picture()
        wanted = {name: form.cleaned_data[name] for name in form.changed_data}
        form.changes = ProviderState.objects.switch(obj.pk, **wanted)
        self._warn(request, obj.pk, form.changes, before=before)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        return in_words(form.changes) if form.changes else []

    def _failures(self, request: HttpRequest, report: ProviderReport) -> list[dict[str, Any]]:
        """Its last failures within the time that the drawing shows, by when they began."""
        attempts = (
            Attempt.objects.filter(provider=report.alias, begun_at__gte=report.traffic.hours[0].begins_at)
            .exclude(outcome__in=["", Kind.ACCEPTED, *MAILS_FAULT])
            .order_by("-begun_at")[:FAILURES]
        )
        mail = self.admin_site._registry.get(Message)
        may_see = mail is not None and mail.has_view_permission(request)
        clock = _clock_on(report.now)
        return [
            {
                "attempt": attempt,
                "at": clock(attempt.begun_at),
                # The end of an id is what tells it from others of the same hour.
                "link": link_to(self, Message(pk=attempt.message_id), str(attempt.message_id)[-12:]) if may_see else "",
            }
            for attempt in attempts
        ]

    def _switch_all(
        self,
        request: HttpRequest,
        queryset: QuerySet[ProviderState],
        *,
        is_possible: Callable[..., None] | None = None,
        **switches: object,
    ) -> None:
        before = _picture()
        for alias in list(queryset.values_list("pk", flat=True)):
            self._switch(request, alias, before=before, is_possible=is_possible, **switches)

    def _switch(
        self,
        request: HttpRequest,
        alias: str,
        *,
        before: Picture,
        is_possible: Callable[..., None] | None = None,
        **switches: object,
    ) -> None:
        """Switch one, enter it in the history, and say what follows."""
        try:
            if is_possible is not None:
                is_possible(alias, seen=before)
        except (SwitchError, UnknownName) as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        changes = ProviderState.objects.switch(alias, **switches)
        if not changes:
            text = gettext("%(alias)s: nothing changed.") % {"alias": alias}
            self.message_user(request, text, messages.INFO)
            return
        told = in_words(changes)
        self.log_change(request, ProviderState(pk=alias), told)
        text = gettext("%(alias)s: %(changes)s. Running workers follow within a second.")
        self.message_user(request, text % {"alias": alias, "changes": told}, messages.SUCCESS)
        self._warn(request, alias, changes, before=before)

    def _warn(self, request: HttpRequest, alias: str, changes: Changes, *, before: Picture) -> None:
        for text in consequences(changes, alias=alias, before=before, after=_picture()):
            self.message_user(request, text, messages.WARNING)


def _picture() -> Picture:
    return picture(now=read_now(router.db_for_read(ProviderState)))


def _facts(report: ProviderReport) -> dict[str, Any]:
    """What the templates see of a provider."""
    tone = TONES.get(report.state, "off")
    if tone == "good" and report.trouble is not None:
        tone = "warn"
    traffic = report.traffic
    numbers = {
        "today": traffic.sent_today, "accepted": traffic.accepted, "refused": traffic.refused, "failed": traffic.failed,
        "uncertain": report.uncertain, "kept": report.kept, "weight": report.weight,
    }  # fmt: skip
    return {
        **{name: grouped(number) for name, number in numbers.items()},
        "report": report,
        "tone": tone,
        "told": report.told(_clock_on(report.now)),
    }


def _clock_on(now: datetime) -> Callable[[datetime], str]:
    """Instants as the reader's clock shows them, with the date where it isn't today's."""
    today = timezone.localtime(now).date()

    def clock(instant: datetime) -> str:
        local = timezone.localtime(instant)
        return date_format(local, "TIME_FORMAT" if local.date() == today else "SHORT_DATETIME_FORMAT")

    return clock
