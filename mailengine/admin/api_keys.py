"""Keys to the HTTP API: made here and shown once, looked at, revoked."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..conf import get_settings
from ..models import ApiKey
from ..models.api_keys import AUDIENCE, CANCEL, DEFAULT_SCOPES, READ, SEND, SUPPRESSIONS, TEMPLATE, URGENT
from .base import OperatedAdmin


def _scopes() -> list[tuple[str, Any]]:
    streams = [(f"{SEND}{stream}", _("send mail of the stream “%s”") % stream) for stream in get_settings().streams]
    return [
        *streams,
        (URGENT, _("send it before other mail of its stream")),
        (READ, _("look up its client's mail")),
        (CANCEL, _("cancel its client's mail, pause its jobs")),
        (SUPPRESSIONS, _("look up, enter and lift suppressed addresses")),
    ]


class ListField(forms.Field):
    """Entries on lines of their own, or between commas."""

    widget = forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"})

    def to_python(self, value: Any) -> list[str]:
        return [entry for entry in re.split(r"[,\s]+", str(value or "")) if entry]


class ApiKeyForm(forms.ModelForm):
    """What the holder of a key may do."""

    scopes = forms.MultipleChoiceField(
        label=_("May"), choices=_scopes, initial=list(DEFAULT_SCOPES), widget=forms.CheckboxSelectMultiple
    )
    templates = ListField(
        label=_("May use templates"), required=False, help_text=_("How their names begin, such as shop/. Empty: none.")
    )
    audiences = ListField(
        label=_("May write to audiences"),
        required=False,
        help_text=_("Their names. It sees who is in them. Empty: none."),
    )
    allowed_senders = ListField(
        label=_("May send as"),
        required=False,
        help_text=_("Addresses and @domains. Empty: as the site itself (DEFAULT_FROM_EMAIL) alone."),
    )
    networks = ListField(
        label=_("May come from"), required=False, help_text=_("IP addresses and networks. Empty: from anywhere.")
    )

    class Meta:
        model = ApiKey
        fields = ("client", "scopes", "allowed_senders", "networks", "rate", "expires_at")

    def clean(self) -> dict[str, Any]:
        """All scopes together, which are one field of the key."""
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if "scopes" in given:
            given["scopes"] += [f"{TEMPLATE}{beginning}" for beginning in given.get("templates", [])]
            given["scopes"] += [f"{AUDIENCE}{name}" for name in given.get("audiences", [])]
        return given


@admin.register(ApiKey)
class ApiKeyAdmin(OperatedAdmin):
    """What a key may do is not changed afterwards: make a new one for the client, and revoke the old."""

    form = ApiKeyForm
    list_display = ("client", "beginning", "state", "scopes_in_words", "rate", "last_used_at", "created_at")
    search_fields = ("client", "prefix")
    actions = ("revoke",)
    final_verbs = ("revoke",)
    readonly_fields = ("beginning", "state", "last_used_at", "created_at", "created_by")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        client, scopes, *further = ApiKeyForm.Meta.fields
        if obj is None:
            return [(None, {"fields": [client, scopes, "templates", "audiences", *further]})]
        return [(None, {"fields": ["beginning", "state", client, scopes, *further, *self.readonly_fields[2:]]})]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("mailengine.add_apikey")

    def verbs_for(self, obj: ApiKey) -> list[str]:
        return [] if obj.revoked_at else ["revoke"]

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        secret = obj.renew()
        obj.created_by_id = request.user.pk
        super().save_model(request, obj, form, change)
        text = gettext("The key of %(client)s, which can't be shown again:") % {"client": obj.client}
        self.message_user(request, format_html("{} <code>{}</code>", text, secret), messages.WARNING)

    @admin.action(description=_("Revoke"), permissions=["operate"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        self.operate(
            request, queryset, "revoke", lambda keys: keys.revoke(), why=gettext("The others were revoked before.")
        )

    @admin.display(description=_("begins with"))
    def beginning(self, obj: ApiKey) -> str:
        return f"me_{obj.prefix}_…"

    @admin.display(description=_("may"))
    def scopes_in_words(self, obj: ApiKey) -> str:
        return ", ".join(obj.scopes)

    @admin.display(description=_("state"))
    def state(self, obj: ApiKey) -> str:
        if obj.revoked_at:
            return gettext("revoked")
        return gettext("valid") if obj.is_valid_now() else gettext("over")
