"""The page on which staff write a mail: one to all of some people together, or a job with a mail to each of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import AdminForm
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.admin.widgets import AdminTextareaWidget, AdminTextInputWidget
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseFault
from django.db import router
from django.db.models import TextChoices
from django.forms.boundfield import BoundField
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import normalize_newlines
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.debug import sensitive_post_parameters

from ..addresses import split_addresses
from ..conf import get_settings
from ..errors import MailengineError
from ..models import IdempotencyKey, Message, MessageJob, Priority
from ..pipeline.audience import audience_names
from ..pipeline.enqueue import patiently, queue_job, queue_mail
from ..pipeline.mistakes import mistakes_in
from ..pipeline.outage import passes
from .base import link_to_progress
from .nonce import FIELD_NAME, new_token, nonce_of

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object

logger = logging.getLogger("mailengine.admin")

PAGE = "compose"
MOST_SENTENCES = 20
"""Mistakes shown beside one field: a pasted list may have thousands."""
RETRY_SECONDS = 5
"""After how long a browser is told to try again while the database does not answer."""


class Kind(TextChoices):
    """What is queued."""

    MAIL = "mail", _("One mail to all of them together")
    JOB = "job", _("A mail to each of them (a job)")


PERMISSIONS = {Kind.MAIL: "mailengine.add_message", Kind.JOB: "mailengine.add_messagejob"}


class AddressesField(forms.Field):
    """Addresses as people paste them, as a list; whether they are any is found out with the rest of the mail."""

    def to_python(self, value: Any) -> list[str]:
        return [item for _line, item in split_addresses(str(value or ""))]


class TagsField(forms.Field):
    """Words between commas, as a list."""

    def to_python(self, value: Any) -> list[str]:
        return [tag for tag in (part.strip() for part in str(value or "").split(",")) if tag]


class WordsField(forms.CharField):
    """Text of many lines, as it was typed; but browsers end each by two characters, whatever the system."""

    def to_python(self, value: Any) -> str:
        return normalize_newlines(super().to_python(value) or "")


class FilesInput(forms.FileInput):
    allow_multiple_selected = True


class FilesField(forms.FileField):
    """Any number of files, as (name, bytes, type)."""

    widget = FilesInput

    def clean(self, data: Any, initial: Any = None) -> list[tuple[str, bytes, str]]:
        files = [super(FilesField, self).clean(file, initial) for file in data or []]
        return [(file.name, file.read(), file.content_type or "") for file in files]


def _line() -> forms.Widget:
    return AdminTextInputWidget({"class": "vLargeTextField"})


def _lines(rows: int) -> forms.Widget:
    return AdminTextareaWidget({"rows": rows})


def _moment() -> forms.Widget:
    """The browser's own picker, which needs no script."""
    return forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


def _audiences() -> list[tuple[str, Any]]:
    return [("", _("none: the addresses above")), *((name, name) for name in audience_names())]


def _streams() -> list[tuple[str, Any]]:
    usual = _("transactional for one mail, bulk for a job")
    return [("", usual), *((name, name) for name in get_settings().streams)]


class ComposeForm(forms.Form):
    """What an editor may say of a mail, by the names of the arguments of `queue_mail()`.

    It knows nothing of its own about addresses, headers and files: `mistakes_in()` does.
    """

    kind = forms.ChoiceField(label=_("What to queue"), widget=forms.RadioSelect)
    to = AddressesField(
        label=_("To"),
        required=False,
        widget=_lines(3),
        help_text=_("Addresses, between commas, semicolons, white space or line breaks."),
    )
    audience = forms.ChoiceField(
        label=_("Audience"), required=False, choices=_audiences, help_text=_("For a job, in place of addresses.")
    )
    subject = forms.CharField(label=_("Subject"), widget=_line())
    message = WordsField(
        label=_("Text"), required=False, strip=False, widget=_lines(12), help_text=_("Empty: made from the HTML.")
    )
    attachments = FilesField(label=_("Files"), required=False, allow_empty_file=True)
    html_message = WordsField(label=_("HTML"), required=False, strip=False, widget=_lines(12))
    cc = AddressesField(
        label=_("Cc"), required=False, widget=_line(), help_text=_("For one mail to all of them together.")
    )
    bcc = AddressesField(
        label=_("Bcc"),
        required=False,
        widget=_line(),
        help_text=_("For one mail to all of them together, who don't see these."),
    )
    from_email = forms.CharField(label=_("From"), required=False, widget=_line())
    reply_to = AddressesField(
        label=_("Reply to"), required=False, widget=_line(), help_text=_("Empty: answers go to the sender.")
    )
    send_at = forms.DateTimeField(label=_("Not before"), required=False, widget=_moment())
    expires_at = forms.DateTimeField(label=_("Not after"), required=False, widget=_moment())
    stream = forms.ChoiceField(label=_("Stream"), required=False, choices=_streams)
    priority = forms.TypedChoiceField(
        label=_("Priority"),
        required=False,
        coerce=int,
        empty_value=None,
        choices=[("", _("that of the stream")), *Priority.choices],
    )
    tags = TagsField(
        label=_("Tags"), required=False, widget=_line(), help_text=_("Between commas, for the provider's statistics.")
    )

    fieldsets: Sequence[tuple[Any, Sequence[str]]] = (
        (None, ("kind", "to", "audience", "subject", "message", "attachments")),
        (_("HTML"), ("html_message",)),
        (_("Copies and sender"), ("cc", "bcc", "from_email", "reply_to")),
        (_("When and how"), ("send_at", "expires_at", "stream", "priority", "tags")),
    )

    def __init__(self, kinds: Sequence[Kind], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["kind"].choices = [(kind.value, kind.label) for kind in kinds]  # type: ignore[attr-defined]
        if Kind.MAIL not in kinds:
            del self.fields["cc"], self.fields["bcc"]
        if Kind.JOB not in kinds or not audience_names():
            del self.fields["audience"]
        self.fields["from_email"].help_text = gettext("Empty: %(sender)s") % {"sender": settings.DEFAULT_FROM_EMAIL}
        for name in ("send_at", "expires_at"):
            self.fields[name].help_text = gettext("Time zone: %(zone)s") % {"zone": get_current_timezone_name()}
        if names := [str(file.name) for file in self.files.getlist("attachments")] if self.is_bound else []:
            sentence = gettext("Choose them again to send them again: a browser doesn't keep files. You had chosen:")
            self.fields["attachments"].help_text = format_html(
                '<strong class="mailengine-warning">{} {}</strong>', sentence, ", ".join(names)
            )

    def clean(self) -> dict[str, Any]:
        super().clean()
        self._check_recipients(self.cleaned_data)
        if not any(self.cleaned_data.get(name, "").strip() for name in ("message", "html_message")):
            self._blame("message", [gettext("Write a text, or HTML.")])
        arguments = self.arguments()
        if "audience" in arguments:
            arguments["merge_data"] = {}  # an audience brings its own: what looks like a merge field has to be one
        wrong: dict[str, list[str]] = {}
        for place, sentence in mistakes_in(arguments).items():
            wrong.setdefault(place.partition(".")[0], []).append(sentence)
        for name, sentences in wrong.items():
            self._blame(name, sentences)
        return self.cleaned_data

    def arguments(self) -> dict[str, Any]:
        """What was filled in, by the names of `queue_mail()`; what was left empty is left to its defaults."""
        return {n: value for n, value in self.cleaned_data.items() if n != "kind" and value not in (None, "", [])}

    def queue(self, *, user: Any, key: str) -> Message | MessageJob:
        """Queue what was filled in, as `queue_mail()` and `queue_job()` do."""
        given = self.arguments()
        words = given.pop("subject"), given.pop("message", ""), given.pop("from_email", None)
        to = given.pop("to", [])
        if self.cleaned_data["kind"] == Kind.MAIL:
            return queue_mail(*words, to, idempotency_key=key, **given)
        return queue_job(*words, given.pop("audience", to), created_by=user, idempotency_key=key, **given)

    def add_refusal(self, error: MailengineError) -> None:
        """Show what `queue()` raised: beside the field whose name its sentence begins with, where there is one."""
        name = str(error).partition(" ")[0].rstrip(":")
        self._blame(name if name in self.fields else None, [str(error)])

    @property
    def groups(self) -> AdminForm:
        """The fields as the admin shows them; those rarely used are folded up while there is nothing in them."""
        groups = []
        for title, names in self.fieldsets:
            fields = [name for name in names if name in self.fields]
            is_folded = title is not None and not self._has_any(fields)
            groups.append((title, {"fields": fields, "classes": ["collapse"] if is_folded else []}))
        return AdminForm(self, groups, {})  # type: ignore[arg-type]  # it need not be of a model

    @property
    def wrong_fields(self) -> list[tuple[BoundField, str]]:
        """Those with mistakes, each with the id to jump to."""
        return [(field, field.id_for_label or f"{field.auto_id}_0") for field in self if field.errors]

    def _check_recipients(self, given: Mapping[str, Any]) -> None:
        """Whether there is anybody, and what was chosen fits them."""
        named = {name for name in ("to", "cc", "bcc", "audience") if given.get(name)}
        if given.get("kind") == Kind.MAIL:
            if "audience" in named:
                self._blame("audience", [gettext("Choose “A mail to each of them” for an audience.")])
            elif not named:
                self._blame("to", [gettext("Give at least one address.")])
        elif given.get("kind") == Kind.JOB:
            for name in ("cc", "bcc"):
                if name in named:
                    self._blame(name, [gettext("A mail to each of them has no copies.")])
            if named >= {"audience", "to"}:
                self._blame("audience", [gettext("Choose an audience or give addresses, not both.")])
            elif not named & {"audience", "to"}:
                self._blame("to", [gettext("Give at least one address, or choose an audience.")])

    def _blame(self, name: str | None, sentences: Sequence[str]) -> None:
        for sentence in sentences[:MOST_SENTENCES]:
            self.add_error(name, sentence.removeprefix(f"{name}: "))
        if (more := len(sentences) - MOST_SENTENCES) > 0:
            words = ngettext("And %(count)s more like these.", "And %(count)s more like these.", more)
            self.add_error(name, words % {"count": more})

    def _has_any(self, names: Iterable[str]) -> bool:
        return any(self[name].value() for name in names)


class ComposeLinkMixin(_ModelAdmin):
    """A link to the page above the list, for who may use it."""

    compose_kind: Kind
    compose_label: Any

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = dict(extra_context or {})
        if request.user.has_perm(PERMISSIONS[self.compose_kind]):
            url = reverse(f"{self.admin_site.name}:mailengine_message_compose")
            context |= {"compose_url": f"{url}?kind={self.compose_kind.value}", "compose_label": self.compose_label}
        return super().changelist_view(request, context)


@sensitive_post_parameters()
def compose(request: HttpRequest, pages: admin.ModelAdmin[Any]) -> HttpResponse:
    """The page. A POST queues, and is answered by the same page with all that was filled in, ready for another."""
    kinds = [kind for kind, permission in PERMISSIONS.items() if request.user.has_perm(permission)]
    kind = (request.POST if request.method == "POST" else request.GET).get("kind")
    if not kinds or (kind in Kind.values and kind not in kinds):
        raise PermissionDenied
    if request.method != "POST":
        return _page(request, pages, ComposeForm(kinds, initial={"kind": kind or kinds[0]}))
    form = ComposeForm(kinds, request.POST, request.FILES)
    nonce = nonce_of(request, page=PAGE)
    if nonce is None:
        sentence = gettext("This page was too old or not yours: nothing was queued. Look again, then press the button.")
        pages.message_user(request, sentence, messages.WARNING)
    elif form.is_valid():
        try:
            _tell(request, pages, *_queue_once(request, form, nonce))
        except MailengineError as error:
            form.add_refusal(error)
        except DatabaseFault as error:
            if not passes(error):
                raise
            logger.warning("a mail could not be queued: %s", type(error).__name__)
            return _unavailable(request, pages, form)
    return _page(request, pages, form)


def _queue_once(request: HttpRequest, form: ComposeForm, nonce: str) -> tuple[Message | MessageJob, bool]:
    """What the page led to, and whether it did so now: one that was submitted before got it then."""
    using = router.db_for_write(Message)
    keys = IdempotencyKey.objects.using(using)

    def queue() -> tuple[Message | MessageJob, bool]:
        for known in (keys.find(nonce, scope="message"), keys.find(nonce, scope="job")):
            if known is not None and (earlier := known.message or known.job):
                return earlier, False
        made = form.queue(user=request.user, key=nonce)
        # By its id alone: words and addresses stay out of the log.
        LogEntry.objects.create(
            user_id=request.user.pk,  # type: ignore[misc]  # nobody unknown has the permission
            content_type=ContentType.objects.get_for_model(made),
            object_id=str(made.pk),
            object_repr=_name_of(made),
            action_flag=ADDITION,
            change_message='[{"added": {}}]',
        )
        return made, True

    return patiently(queue, using=using)


def _tell(request: HttpRequest, pages: admin.ModelAdmin[Any], made: Message | MessageJob, is_new: bool) -> None:
    sentence = (
        gettext("Queued: %(name)s.")
        if is_new
        else gettext(
            "This page was sent before, and queued then: %(name)s. Nothing was added. To queue what stands here as"
            " another, press the button once more."
        )
    )
    text = sentence % {"name": _name_of(made)}
    level = messages.SUCCESS if is_new else messages.WARNING
    pages.message_user(request, format_html("{} {}", text, link_to_progress(pages, request, made)), level)


def _name_of(made: Message | MessageJob) -> str:
    name = gettext("message %(id)s") if isinstance(made, Message) else gettext("job %(id)s")
    return name % {"id": made.pk}


def _unavailable(request: HttpRequest, pages: admin.ModelAdmin[Any], form: ComposeForm) -> HttpResponse:
    # With the same token: where only the answer to the commit was lost, trying again adds nothing.
    response = _page(request, pages, form, unavailable=True, token=request.POST[FIELD_NAME], status=503)
    response["Retry-After"] = str(RETRY_SECONDS)
    return response


def _page(
    request: HttpRequest,
    pages: admin.ModelAdmin[Any],
    form: ComposeForm,
    *,
    unavailable: bool = False,
    token: str | None = None,
    status: int = 200,
) -> HttpResponse:
    title = gettext("Write a mail")
    context = {
        **pages.admin_site.each_context(request),
        "title": title,
        "original": title,  # for the trail above the page
        "opts": pages.opts,
        "has_view_permission": pages.has_view_permission(request),
        "form": form,
        "errors": form.errors,
        "unavailable": unavailable,
        "token": token or new_token(request, page=PAGE),
    }
    request.current_app = pages.admin_site.name
    return TemplateResponse(request, "admin/mailengine/message/compose.html", context, status=status)
