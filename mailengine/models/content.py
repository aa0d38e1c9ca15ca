"""The words and files of a mail, stored once however many get it."""

from __future__ import annotations

import hashlib

from django.core.files.base import ContentFile as StoredBytes
from django.core.files.storage import Storage, storages
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, transaction
from django.db.models import Exists, OuterRef
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from .fields import JSONField

STORAGE = "mailengine"
"""Alias in `STORAGES` for attachments; without one they go to the default storage."""


def attachment_storage() -> Storage:
    """Where the files are, by the settings as they are now: a field's own `storage` is looked up once."""
    return storages[STORAGE] if STORAGE in storages.backends else storages["default"]


class Content(models.Model):
    """The words of a mail. Never edited in place: a correction is a new row with the next `version`.

    In the words of a message with merge data, `{{ name }}` is a merge field; in all others it is what it says.
    """

    subject = models.TextField(_("subject"), blank=True)
    text = models.TextField(_("text"), blank=True)
    html = models.TextField(_("HTML"), blank=True)
    from_email = models.TextField(_("from"))
    reply_to = JSONField(_("reply to"), default=list, blank=True)
    headers = JSONField(_("further headers"), default=dict, blank=True)
    extras = JSONField(_("tags, metadata and the like"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    version = models.PositiveIntegerField(_("version"), default=1)
    created_at = models.DateTimeField(_("written"))
    attachments: models.ManyToManyField[Attachment, ContentFile] = models.ManyToManyField(
        "Attachment", through="ContentFile", related_name="contents"
    )

    class Meta:
        verbose_name = _("content")
        verbose_name_plural = _("contents")

    def __str__(self) -> str:
        return self.subject


class AttachmentQuerySet(models.QuerySet["Attachment"]):
    def keep(self, data: bytes) -> Attachment:
        """The row of a file with these bytes; its file is written if no attachment had them before."""
        digest = hashlib.sha256(data).hexdigest()
        # The touch also holds off a purge: whoever comes second waits for the row, and sees what the first one did.
        if self.filter(pk=digest).update(used_at=db_now()):
            return self.get(pk=digest)
        storage = attachment_storage()
        # A file of that name may be about to go with a purge: save() gives this row one of its own.
        name = storage.save(f"mailengine/{digest[:2]}/{digest}", StoredBytes(data))
        attachment, created = self.get_or_create(
            sha256=digest, defaults={"size": len(data), "file": name, "used_at": db_now()}
        )
        if not created:  # a twin was quicker
            storage.delete(name)
        return attachment

    def purge(self, *, unused_days: float = 1, limit: int = 1000) -> int:
        """Remove the files that no content names any more; how many there were."""
        with transaction.atomic(using=self.db):
            used = Exists(ContentFile.objects.filter(attachment=OuterRef("pk")))
            idle = self.filter(~used, used_at__lt=db_now(-86_400 * unused_days))
            rows = list(idle.order_by("pk").select_for_update()[:limit])
            self.filter(pk__in=[row.pk for row in rows]).delete()
        storage = attachment_storage()
        for row in rows:  # after the commit: a file without a row is waste, a row without its file is a loss
            storage.delete(str(row.file.name))
        return len(rows)


class Attachment(models.Model):
    """A file that goes out with mail, stored once by the SHA-256 of its bytes."""

    sha256 = models.CharField("SHA-256", max_length=64, primary_key=True)
    size = models.PositiveBigIntegerField(_("bytes"))
    file = models.FileField(_("file"), storage=attachment_storage, max_length=255)
    used_at = models.DateTimeField(_("last used"))

    objects = AttachmentQuerySet.as_manager()

    class Meta:
        verbose_name = _("attachment")
        verbose_name_plural = _("attachments")

    def __str__(self) -> str:
        return self.sha256

    def read(self) -> bytes:
        """The bytes. Raises `FileNotFoundError` when there is no such file, `OSError` when the storage fails."""
        try:
            with attachment_storage().open(str(self.file.name), "rb") as file:
                data: bytes = file.read()
                return data
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a storage is anybody's code; those of the clouds have errors of their own
            raise OSError(f"{type(error).__name__}: {error}") from error


class ContentFile(models.Model):
    """One attachment of one content: under which name, and as what."""

    content = models.ForeignKey(Content, on_delete=models.CASCADE, related_name="files")
    attachment = models.ForeignKey(Attachment, on_delete=models.PROTECT, related_name="uses")
    position = models.PositiveSmallIntegerField()
    filename = models.CharField(_("file name"), max_length=255, blank=True)
    mimetype = models.CharField(_("type"), max_length=127, blank=True)
    is_part = models.BooleanField(
        _("is a whole MIME part"),
        default=False,
        help_text=_("The bytes are a part with its own headers, such as an inline image."),
    )

    class Meta:
        verbose_name = _("attached file")
        verbose_name_plural = _("attached files")
        ordering = ["content", "position"]
        constraints = [models.UniqueConstraint(fields=["content", "position"], name="mailengine_one_file_a_place")]

    def __str__(self) -> str:
        return self.filename or self.attachment_id
