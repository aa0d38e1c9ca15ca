"""Who may use the HTTP API: `ApiKey`. Of a key nothing is kept that could be used."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import math
import re
import secrets
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.utils.translation import gettext_lazy as _

from ..addresses import parse_address
from ..clock import db_now, read_now
from ..conf import get_settings
from ..errors import InvalidAddress
from ..rate import free_at, left, limits_of, taken
from .bulk import instances, select_among
from .fields import JSONField

READ, CANCEL, SUPPRESSIONS, URGENT = "read", "cancel", "suppressions", "urgent"
SEND, TEMPLATE, AUDIENCE = "send:", "template:", "audience:"
"""Followed by the name of a stream, by how the names of templates begin, by the name of an audience."""
DEFAULT_SCOPES = (f"{SEND}transactional", READ, CANCEL)

SEEN_SECONDS = 60
"""The last use is noted by the minute, so that not each request writes."""

# MariaDB would take names that differ in case alone, or in spaces at their end, for one.
_CLIENT = re.compile(r"[a-z0-9]([a-z0-9 ._-]{0,48}[a-z0-9._-])?")
SECRET = re.compile(r"me_([a-z2-7]{8})_([A-Za-z0-9_-]{43})")


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def issue(self, client: str, **fields: Any) -> tuple[ApiKey, str]:
        """A new key for this client, and its secret, which nobody can show again.

        Raises Django's `ValidationError`, by field.
        """
        key = self.model(client=client, **{"scopes": list(DEFAULT_SCOPES), **fields})
        secret = key.renew()
        key.full_clean()
        key.save(force_insert=True, using=self.db)
        return key, secret

    def authenticate(self, secret: str, *, address: str) -> ApiKey | None:
        """The key that this is the secret of, if it may be used from this IP address now; its use is entered.

        It is looked up by its hash: all that is no valid key takes the same time, whatever it is like.
        """
        fields = self.model._meta.concrete_fields
        rows = select_among(
            self.model,
            [field.name for field in fields],
            key="digest",
            values=[_digest(secret)],
            using=self.db,
            with_now=True,
        )
        if not rows:
            return None
        (*values, now) = rows[0]
        (key,) = instances(self.model, fields, [values], using=self.db)
        if not key.is_valid(at=now) or not key.may_come_from(address):
            return None
        if key.last_used_at is None or key.last_used_at < now - timedelta(seconds=SEEN_SECONDS):
            self.filter(pk=key.pk).update(last_used_at=now)
        return key

    def revoke(self) -> int:
        """From the next request on they are none; how many were keys before. Their hashes go, too."""
        return self.filter(revoked_at=None).update(revoked_at=db_now(), digest=None)


class ApiKey(models.Model):
    """A key to the HTTP API, and what its holder may do."""

    client = models.CharField(
        _("client"), max_length=50, help_text=_("Whose it is. All keys of a client see the same mail.")
    )
    prefix = models.CharField(_("begins with"), max_length=8, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, null=True, editable=False)  # noqa: DJ001  "" is not unique
    scopes = JSONField(
        _("may"),
        default=list,
        help_text=_(
            'A list of "send:" and a stream, "urgent", "read", "cancel", "suppressions",'
            ' "template:" and how names of templates begin, "audience:" and its name.'
        ),
    )
    allowed_senders = JSONField(
        _("may send as"),
        default=list,
        blank=True,
        help_text=_('A list of addresses and "@domains". Empty: as the site itself alone.'),
    )
    networks = JSONField(
        _("may come from"), default=list, blank=True, help_text=_("A list of IP networks. Empty: from anywhere.")
    )
    rate = models.CharField(
        _("rate"), max_length=100, blank=True, default="", help_text=_('Mails, such as "100/min, 5000/day".')
    )
    usage = JSONField(default=dict, editable=False)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    revoked_at = models.DateTimeField(_("revoked"), null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("made"), auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+", editable=False
    )

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        ordering = ["client", "-created_at"]

    def __str__(self) -> str:
        return f"{self.client}: me_{self.prefix}_…"

    def renew(self) -> str:
        """Give it another secret; the row has still to be saved."""
        self.prefix = base64.b32encode(secrets.token_bytes(5)).decode().lower()
        secret = f"me_{self.prefix}_{secrets.token_urlsafe(32)}"
        self.digest = _digest(secret)
        return secret

    def clean(self) -> None:
        """Raise `ValidationError` for a field that makes no sense, with the mend."""
        wrong: dict[str, Any] = {}
        if not _CLIENT.fullmatch(self.client):
            wrong["client"] = _(
                "Give a name of small letters, digits, spaces, dots, - and _, which begins with one of the first two."
            )
        known = [*(f"{SEND}{stream}" for stream in get_settings().streams), READ, CANCEL, SUPPRESSIONS, URGENT]
        named = ", ".join([*known, f"{TEMPLATE}…", f"{AUDIENCE}…"])
        for name, check, mend in (
            (
                "scopes",
                lambda scope: scope in known or scope.startswith((TEMPLATE, AUDIENCE)),
                _("One of %(known)s.") % {"known": named},
            ),
            ("allowed_senders", _is_sender, _("An address, or @ and a domain.")),
            ("networks", _is_network, _("An IP address or network, such as 192.0.2.0/24.")),
        ):
            entries = getattr(self, name)
            if not isinstance(entries, list):
                wrong[name] = _("Give a list.")
            elif bad := [entry for entry in entries if not isinstance(entry, str) or not check(entry)]:
                wrong[name] = f"{str(bad[0])[:80]!r}: {mend}"
        if not wrong.get("scopes") and not self.scopes:
            wrong["scopes"] = _("A key that may do nothing is none: give it a scope.")
        try:
            if self.rate:
                limits_of(self.rate)
        except ValueError as error:
            wrong["rate"] = str(error)
        if wrong:
            raise ValidationError(wrong)

    def is_valid(self, *, at: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    def is_valid_now(self) -> bool:
        return self.is_valid(at=read_now(router.db_for_read(ApiKey)))

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def may_use_template(self, name: str) -> bool:
        beginnings = (scope.removeprefix(TEMPLATE) for scope in self.scopes if scope.startswith(TEMPLATE))
        return any(name.startswith(beginning) for beginning in beginnings)

    def may_come_from(self, address: str) -> bool:
        if not self.networks:
            return True
        try:
            host = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(host in ipaddress.ip_network(network, strict=False) for network in self.networks)

    def spend(self, count: int) -> float:
        """Count so many mails for the rate; 0, or in how many seconds they may be sent, and then nothing is counted.

        Infinity where that is never.
        """
        if not self.rate:
            return 0
        if count > min(limit.most for limit in limits_of(self.rate)):
            return math.inf
        using = router.db_for_write(ApiKey)
        with transaction.atomic(using=using):
            row = ApiKey.objects.using(using).select_for_update().get(pk=self.pk)
            limits, now = limits_of(row.rate), read_now(using)
            room = left(limits, row.usage, now=now)
            if room is not None and room < count:
                return max((free_at(limits, row.usage, now=now) - now).total_seconds(), 1)
            row.usage = taken(limits, row.usage, now=now, count=count)
            row.save(update_fields=["usage"])
        return 0


def _is_sender(text: str) -> bool:
    try:
        parsed = parse_address(f"x{text}" if text.startswith("@") else text)
    except InvalidAddress:
        return False
    return not parsed.name


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
