"""The action "Send email update": a mail about one object of the project's, to a named audience."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.core.mail import EmailMultiAlternatives
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template import TemplateSyntaxError
from django.template.loader import select_template
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import escape, format_html
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..conf import get_settings
from ..errors import InvalidMail, MailengineError
from ..models import IdempotencyKey, MessageJob
from ..pipeline.audience import Size, find_audience
from ..pipeline.draft import Draft, draft_of, rendered
from ..pipeline.enqueue import queue_job, source_of
from ..pipeline.merge import Field, compile_template
from .base import link_to_progress
from .figures import grouped, recipients_in_words
from .nonce import FIELD_NAME, new_token, nonce_of
from .preview import preview_response

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object

ACTION = "send_email_update"
MOST_AT_ONCE = 50
"""Objects on one confirmation page: each shows its whole mail."""
PAGE = "update"


@dataclass(frozen=True)
class Update:
    """The mail about one object, as it would be queued now."""

    object: Model
    draft: Draft
    audience: str
    size: Size
    preview_url: str
    earlier: MessageJob | None
    """The last job that was queued for the same object."""

    @property
    def pk(self) -> str:
        return str(self.object.pk)

    @property
    def recipients(self) -> str:
        return recipients_in_words(self.size)

    @property
    def from_email(self) -> str:
        return self.draft.from_email or settings.DEFAULT_FROM_EMAIL

    @property
    def subject(self) -> str:
        return shown(self.draft.subject)

    @property
    def text(self) -> str:
        return shown(self.draft.text)

    @property
    def fields(self) -> list[str]:
        """The merge fields of the mail, in alphabetical order."""
        words = (self.draft.subject, self.draft.text, self.draft.html)
        return sorted(frozenset().union(*(compile_template(text).fields for text in words)))


class SendEmailUpdateMixin(_ModelAdmin):
    """Adds "Send email update" to a ModelAdmin, as an action of its list and a link on each object's page.

        class IssueAdmin(SendEmailUpdateMixin, admin.ModelAdmin): ...

    Both lead to a page that shows the mail and the number of its recipients, and asks; its button queues one job for
    each object. The words come from the templates `mailengine/<app>/<model>/update.subject.txt`, `update.txt` and
    `update.html`, at least one of the three. For one object alone, a file in `mailengine/<app>/<model>/<pk>/` takes
    the place of the file of the same name. They see the object as `object` and by its model's name (`issue`), and may
    hold merge fields, which the demonstration project wraps in `{% verbatim %}`.

    Needs the permission `mailengine.add_messagejob`. All attributes and methods without an underscore may be replaced.
    """

    update_audience = "subscribers"
    update_stream = "bulk"
    change_form_template = "admin/mailengine/update/change_form.html"

    def __init__(self, model: type[Model], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        self.actions = [*(self.actions or ()), ACTION]  # so that a ModelAdmin with actions of its own keeps ours

    def get_update_audience(self, request: HttpRequest, obj: Any) -> str:
        """The name of the audience that this object's update goes to."""
        return self.update_audience

    def get_update_context(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """What the templates see. Not the request: the mail is for other people than who asked for it."""
        return {"object": obj, str(obj._meta.model_name): obj}

    def get_update_from_email(self, request: HttpRequest, obj: Any) -> str | None:
        """The sender; None for DEFAULT_FROM_EMAIL."""
        return None

    def has_send_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether this user may send updates: of this object, or at all."""
        return request.user.has_perm("mailengine.add_messagejob")

    @admin.action(description=_("Send email update"), permissions=["send"])
    def send_email_update(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """The confirmation page for what was ticked; once confirmed, None: back to the list."""
        objects = list(queryset[: MOST_AT_ONCE + 1])
        if len(objects) > MOST_AT_ONCE:
            sentence = gettext("Tick at most %(most)s at once. Nothing was queued.") % {"most": grouped(MOST_AT_ONCE)}
            self.message_user(request, sentence, messages.ERROR)
            return None
        return self._confirm_or_queue(request, objects, back=request.get_full_path())

    def email_update_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The same for one object, from its own page. A GET shows the confirmation page and no more."""
        obj = self._object_to_send(request, object_id)
        back = self._url("change", obj)
        return self._confirm_or_queue(request, [obj], back=back) or HttpResponseRedirect(back)

    def email_update_preview_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The HTML of an object's update, for the frame on the confirmation page."""
        obj = self._object_to_send(request, object_id)
        try:
            return preview_response(shown(self._draft(request, obj).html))
        except (MailengineError, TemplateSyntaxError) as error:
            return preview_response(escape(error), status=409)

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_email_update"
        wrap = self.admin_site.admin_view
        return [
            path("<path:object_id>/email-update/", wrap(self.email_update_view), name=name),
            path(
                "<path:object_id>/email-update/preview/", wrap(self.email_update_preview_view), name=f"{name}_preview"
            ),
            *super().get_urls(),
        ]

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = context.get("original")
        app, model = self.opts.app_label, self.opts.model_name
        # What the project itself made of this page stays; ours only adds the link.
        usual = [f"admin/{app}/{model}/change_form.html", f"admin/{app}/change_form.html", "admin/change_form.html"]
        context["change_form_base"] = select_template(usual)
        if obj is not None and self.has_send_permission(request, obj):
            context["email_update_url"] = self._url("email_update", obj)
        return super().render_change_form(request, context, *args, **kwargs)

    def _confirm_or_queue(self, request: HttpRequest, objects: Sequence[Any], *, back: str) -> HttpResponse | None:
        allowed = [obj for obj in objects if self.has_send_permission(request, obj)]
        if refused := len(objects) - len(allowed):
            sentence = ngettext(
                "%(count)s object was left out: you may not send an update of it.",
                "%(count)s objects were left out: you may not send updates of them.",
                refused,
            )
            self.message_user(request, sentence % {"count": grouped(refused)}, messages.WARNING)
        nonce = self._nonce(request)
        if nonce is None:
            return self._confirmation_page(request, allowed, back=back)
        for obj in allowed:
            try:
                self._queue(request, obj, key=f"{nonce}:{source_of(obj)}")
            except (MailengineError, TemplateSyntaxError) as error:
                self._report(request, obj, error)
        return None

    def _confirmation_page(self, request: HttpRequest, objects: Sequence[Any], *, back: str) -> HttpResponse | None:
        """The page that asks, for those of the objects whose mail can be queued; None when there is none."""
        sizes: dict[str, Size] = {}
        earlier = _last_jobs(objects)
        updates = []
        for obj in objects:
            try:
                audience, draft = self.get_update_audience(request, obj), self._draft(request, obj)
                if audience not in sizes:
                    sizes[audience] = _size(audience)
            except (MailengineError, TemplateSyntaxError) as error:
                self._report(request, obj, error)
                continue
            preview = self._url("email_update_preview", obj) if draft.html else ""
            updates.append(Update(obj, draft, audience, sizes[audience], preview, earlier.get(source_of(obj))))
        if not updates:
            return None
        total = Size(sum(u.size.number for u in updates), at_least=any(u.size.at_least for u in updates))
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Send email update"),
            "opts": self.opts,
            "updates": updates,
            "recipients": recipients_in_words(total),
            "token": new_token(request, page=PAGE),
            "action": ACTION,
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
            "back": back,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/mailengine/update/confirmation.html", context)

    def _queue(self, request: HttpRequest, obj: Any, *, key: str) -> None:
        """Queue the update of one object, unless this page has done so already; tell the user which."""
        again = IdempotencyKey.objects.select_related("job__content").find(key, scope="job")
        if again is not None and again.job is not None:
            sentence = _("“%(object)s” was queued already when you pressed the button before; nothing was added.")
            self._tell(request, obj, again.job, sentence, messages.WARNING)
            return
        draft, audience = self._draft(request, obj), self.get_update_audience(request, obj)
        size = _size(audience)
        with transaction.atomic():
            job = queue_job(
                draft.subject,
                draft.text,
                draft.from_email or None,
                audience,
                html_message=draft.html or None,
                source=obj,
                created_by=request.user,
                stream=self.update_stream,
                idempotency_key=key,
            )
            self.log_change(request, obj, gettext("Queued an email update, job %(job)s.") % {"job": job.pk})
        sentence = _("Queued “%(object)s” for %(recipients)s.")
        self._tell(request, obj, job, sentence, messages.SUCCESS, recipients=recipients_in_words(size))

    def _draft(self, request: HttpRequest, obj: Any) -> Draft:
        """The mail about an object. Raises `MailengineError` or `TemplateSyntaxError` for what can't be queued."""
        folder = f"mailengine/{obj._meta.app_label}/{obj._meta.model_name}"
        templates = [f"{folder}/{obj.pk}/update", f"{folder}/update"]
        subject, text, html = rendered(templates, self.get_update_context(request, obj), subject="", text="", html=None)
        email = EmailMultiAlternatives(subject, text, self.get_update_from_email(request, obj))
        if html:
            email.attach_alternative(html, "text/html")
        draft = draft_of(email)
        # An audience brings merge data only when it is expanded; a broken field found then would stop every mail.
        for words in (draft.subject, draft.text, draft.html):
            compile_template(words)
        get_settings().stream(self.update_stream)
        return draft

    def _object_to_send(self, request: HttpRequest, object_id: str) -> Any:
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        if not self.has_view_or_change_permission(request, obj) or not self.has_send_permission(request, obj):
            raise PermissionDenied
        return obj

    def _nonce(self, request: HttpRequest) -> str | None:
        """What tells one confirmation page from all others; None where no such page was confirmed."""
        if request.method != "POST" or FIELD_NAME not in request.POST:
            return None
        nonce = nonce_of(request, page=PAGE)
        if nonce is None:
            sentence = gettext("The page you confirmed was too old or not yours. Look again, then press the button.")
            self.message_user(request, sentence, messages.WARNING)
        return nonce

    def _tell(self, request: HttpRequest, obj: Any, job: MessageJob, sentence: Any, level: int, **words: str) -> None:
        text = str(sentence) % {"object": Truncator(obj).chars(100), **words}
        self.message_user(request, format_html("{} {}", text, self._job_link(request, job)), level)

    def _job_link(self, request: HttpRequest, job: MessageJob) -> str:
        """A link to the job, or its bare number for who may not see it."""
        return link_to_progress(self, request, job) or gettext("Job %(job)s") % {"job": job.pk} + "."

    def _report(self, request: HttpRequest, obj: Any, error: Exception) -> None:
        sentence = gettext("“%(object)s” was not queued: %(error)s")
        named = {"object": Truncator(obj).chars(100), "error": error}
        self.message_user(request, sentence % named, messages.ERROR)

    def _url(self, page: str, obj: Any) -> str:
        name = f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{page}"
        return reverse(name, args=[quote(obj.pk)])


def shown(text: str) -> str:
    """A text of the mail as an editor reads it best: defaults in the place of merge fields, else `{{ name }}`."""
    return "".join(
        (part.default or f"{{{{ {part.name} }}}}") if isinstance(part, Field) else part
        for part in compile_template(text).parts
    )


def _size(name: str) -> Size:
    size = find_audience(name).size()
    if not size.number:
        raise InvalidMail(gettext("the audience “%(name)s” is empty: there is nobody to send to.") % {"name": name})
    return size


def _last_jobs(objects: Iterable[Any]) -> Mapping[str, MessageJob]:
    """The last job queued for each object that isn't cancelled, by source; in one query, whose words stay unread."""
    jobs = MessageJob.objects.filter(source__in=[source_of(obj) for obj in objects])
    wanted = jobs.exclude(status=MessageJob.Status.CANCELLED).order_by("pk").select_related("created_by")
    return {job.source: job for job in wanted.only("source", "created_at", "created_by")}
