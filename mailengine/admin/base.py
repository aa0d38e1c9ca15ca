"""What the admins of mailengine's rows have in common: they show, and change nothing but by the rows' own verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import ShowFacets
from django.contrib.admin.utils import quote
from django.contrib.auth.models import AnonymousUser
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..addresses import parse_address
from ..conf import Mode, get_settings
from ..errors import InvalidAddress
from ..models import ProviderState
from .figures import grouped

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin

AT_ONCE = 1_000
"""Rows changed by one statement, so that an action on a whole table holds no worker up."""
LOGGED_IDS = 100
"""How many of the rows that an action was asked for are named in the admin's log."""


class ReadOnlyAdmin(_ModelAdmin):
    """Rows to look at. No form writes them, since saving a row as it was read undoes what a worker did since."""

    actions_on_bottom = False
    show_full_result_count = False  # a count of all rows for each search is what makes large tables slow
    show_facets = ShowFacets.NEVER

    class Media:
        css = {"all": ["mailengine/admin.css"]}  # noqa: RUF012  Django's own form of it

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class OperatedAdmin(ReadOnlyAdmin):
    """Rows that a person with the model's `change` permission moves on by actions, each one verb of the queryset."""

    final_verbs: Sequence[str] = ()
    """Those that nothing undoes: on a row's own page they ask once more."""

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the actions are offered and done. The change permission opens no form here, see `ReadOnlyAdmin`."""
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def verbs_for(self, obj: Any) -> Sequence[str]:
        """The names of the actions that make sense for this row as it stands."""
        raise NotImplementedError

    def operate(
        self, request: HttpRequest, queryset: QuerySet[Any], action: str, verb: Callable[[Any], int], *, why: str
    ) -> None:
        """Do an action by a verb of the rows that were ticked; say how many changed, and why the others did not.

        `why` is the sentence that says which rows the verb is for.
        """
        ids = list(queryset.order_by().values_list("pk", flat=True))
        # By their ids alone: a search joins other tables, and an UPDATE of a join doesn't look at the status again
        # after it waited for a row that a worker had locked.
        rows = self.model._default_manager
        changed = sum(verb(rows.filter(pk__in=ids[i : i + AT_ONCE])) for i in range(0, len(ids), AT_ONCE))
        name = str(dict(self.get_action_choices(request))[action])
        figures = {"action": name, "changed": grouped(changed), "ticked": grouped(len(ids))}
        if changed < len(ids):
            text = gettext("Done for %(changed)s of %(ticked)s: %(action)s.") % figures
            self.message_user(request, f"{text} {why}", messages.WARNING)
        else:
            self.message_user(request, gettext("Done for %(changed)s: %(action)s.") % figures, messages.SUCCESS)
        self._log(request, f"{name}: {changed}/{len(ids)}", [str(pk) for pk in ids])

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        obj = None if object_id is None else self.get_object(request, object_id)
        labels = dict(self.get_action_choices(request))
        verbs = [] if obj is None else [name for name in self.verbs_for(obj) if name in labels]
        context = {
            "verbs": [{"name": name, "label": labels[name], "is_final": name in self.final_verbs} for name in verbs],
            "changelist_url": reverse(_url_name(self, "changelist")),
        }
        return super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _log(self, request: HttpRequest, what: str, ids: Sequence[str]) -> None:
        named = ", ".join(ids[:LOGGED_IDS]) + (" …" if len(ids) > LOGGED_IDS else "")
        if isinstance(request.user, AnonymousUser):
            return
        LogEntry.objects.create(
            user_id=request.user.pk,
            content_type=ContentType.objects.get_for_model(self.model),
            object_id=ids[0] if len(ids) == 1 else None,
            object_repr=what[:200],
            action_flag=CHANGE,
            change_message=f"{what} ({named})",
        )


class BannerMixin(_ModelAdmin):
    """Says above the list which providers reject our configuration: mail waits for a person then."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        # Of one that is switched off or gone nobody will find out that it was mended.
        named = Q(pk__in=list(get_settings().providers)) | Q(is_added=True)
        misconfigured = ProviderState.objects.filter(named, misconfigured=True, mode=Mode.ENABLED)
        return super().changelist_view(request, {"misconfigured": misconfigured, **(extra_context or {})})


class ChoiceFilter(admin.SimpleListFilter):
    """A filter on one column with values known beforehand: Django's own would read the whole table for them."""

    def choices_known(self) -> Iterable[tuple[Any, Any]]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        return list(self.choices_known())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else queryset.filter(**{str(self.parameter_name): value})


class StreamFilter(ChoiceFilter):
    title = _("stream")
    parameter_name = "stream"

    def choices_known(self) -> Iterable[tuple[Any, Any]]:
        return ((name, name) for name in get_settings().streams)


class ProviderFilter(ChoiceFilter):
    title = _("provider")
    parameter_name = "provider"

    def choices_known(self) -> Iterable[tuple[Any, Any]]:
        return ((alias, alias) for alias in get_settings().providers)


def with_address(queryset: QuerySet[Any], field: str, term: str) -> QuerySet[Any]:
    """The rows with this address, however it was typed; where there are none, those whose address begins so."""
    try:
        exact = queryset.filter(**{field: parse_address(term).key})
    except InvalidAddress:
        exact = queryset.none()
    return exact if exact.exists() else queryset.filter(**{f"{field}__startswith": term.casefold()})


def link_to(model_admin: admin.ModelAdmin[Any], obj: Model, text: object) -> str:
    """A link to the page of another row in the same admin."""
    opts = obj._meta
    name = f"{model_admin.admin_site.name}:{opts.app_label}_{opts.model_name}_change"
    return format_html('<a href="{}">{}</a>', reverse(name, args=[quote(obj.pk)]), text)


def link_to_progress(model_admin: admin.ModelAdmin[Any], request: HttpRequest, obj: Model) -> str:
    """A link to the page where a message or a job can be followed; empty for who may not see it."""
    pages = model_admin.admin_site._registry.get(type(obj))
    if pages is None or not pages.has_view_permission(request, obj):
        return ""
    return link_to(model_admin, obj, gettext("Follow its progress"))


def _url_name(model_admin: admin.ModelAdmin[Any], page: str) -> str:
    opts = model_admin.opts
    return f"{model_admin.admin_site.name}:{opts.app_label}_{opts.model_name}_{page}"
