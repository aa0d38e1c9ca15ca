"""Suppressed addresses: enter one, or take one off."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..addresses import parse_address
from ..conf import get_settings
from ..errors import InvalidAddress
from ..models import Suppression
from ..models.suppressions import EVERY_STREAM
from .base import ReadOnlyAdmin, StreamFilter, with_address


def _streams() -> list[tuple[str, Any]]:
    return [(EVERY_STREAM, _("All mail")), *((name, name) for name in get_settings().streams)]


class SuppressionForm(forms.ModelForm):
    """An address as people type it, kept as the queue compares it."""

    address = forms.CharField(label=_("Address"), widget=forms.TextInput(attrs={"class": "vTextField"}))
    stream = forms.ChoiceField(label=_("Stream"), choices=_streams, required=False)

    class Meta:
        model = Suppression
        fields = ("address", "stream", "reason", "detail")

    def clean_address(self) -> str:
        try:
            return parse_address(self.cleaned_data["address"]).key
        except InvalidAddress as error:
            raise ValidationError(str(error)) from error


@admin.register(Suppression)
class SuppressionAdmin(ReadOnlyAdmin):
    """Addresses that get no mail. To change one, take it off and enter it anew."""

    form = SuppressionForm
    list_display = ("address", "stream_in_words", "reason", "detail", "created_at")
    list_filter = ("reason", StreamFilter)
    search_fields = ("address",)  # shows the field; what it finds is in get_search_results()
    search_help_text = _("An address, or the beginning of one")
    ordering = ("-id",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("mailengine.add_suppression")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("mailengine.delete_suppression")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (with_address(queryset, "address", term) if term else queryset), False

    @admin.display(description=_("stream"), ordering="stream")
    def stream_in_words(self, row: Suppression) -> str:
        return row.stream or str(_("All mail"))
