"""Keys to the HTTP API: make one, list them, revoke one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import router

from ...clock import read_now
from ...models import ApiKey
from ...models.api_keys import DEFAULT_SCOPES
from ..base import USAGE, MailCommand


class Command(MailCommand):
    """`manage.py mail_key create shop --sender @shop.example`; `mail_key list`; `mail_key revoke me_ab12cd34`."""

    help = "Make, list and revoke keys to the HTTP API. A key is shown once: when it is made."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="make a key, and show it")
        create.add_argument("client", help="whose it is; all keys of a client see the same mail")
        create.add_argument(
            "--scope",
            action="append",
            metavar="SCOPE",
            help="send:STREAM, urgent, read, cancel, suppressions, template:BEGINNING, audience:NAME; may be repeated;"
            f" default: {', '.join(DEFAULT_SCOPES)}",
        )
        create.add_argument(
            "--sender", action="append", metavar="ADDRESS", help="whom it may send as, or @domain; may be repeated"
        )
        create.add_argument(
            "--network", action="append", metavar="CIDR", help="where it may come from; may be repeated"
        )
        create.add_argument("--rate", default="", metavar="RATE", help="mails, as '100/min, 5000/day'")
        create.add_argument("--days", type=float, metavar="N", help="for how long it is valid; default: for ever")
        super().add_arguments(create)
        super().add_arguments(actions.add_parser("list", help="show all keys, and nothing that could be used"))
        revoke = actions.add_parser("revoke", help="end keys at once")
        revoke.add_argument(
            "keys", nargs="+", metavar="KEY", help="what they begin with, as the list has it: me_ab12cd34"
        )
        super().add_arguments(revoke)

    def handle(self, *args: Any, **options: Any) -> None:
        {"create": self._create, "list": self._list, "revoke": self._revoke}[options["action"]](options)

    def _create(self, options: dict[str, Any]) -> None:
        fields: dict[str, Any] = {
            "allowed_senders": options["sender"] or [], "networks": options["network"] or [], "rate": options["rate"],
        }  # fmt: skip
        if options["scope"]:
            fields["scopes"] = options["scope"]
        if options["days"] is not None:
            fields["expires_at"] = read_now(router.db_for_write(ApiKey)) + timedelta(days=options["days"])
        try:
            key, secret = ApiKey.objects.issue(options["client"], **fields)
        except ValidationError as error:
            found = "; ".join(f"{name}: {' '.join(texts)}" for name, texts in error.message_dict.items())
            raise CommandError(found, returncode=USAGE) from error
        if options["json"]:
            self.stdout.write(json.dumps({"command": "mail_key", "key": secret, **_facts(key)}))
        else:
            self.stdout.write(secret)
            self.stderr.write("Keep it: it can't be shown again.")

    def _list(self, options: dict[str, Any]) -> None:
        keys = [_facts(key) for key in ApiKey.objects.all()]
        if options["json"]:
            self.stdout.write(json.dumps({"command": "mail_key", "keys": keys}))
            return
        for key in keys:
            ends = "revoked" if key["revoked_at"] else f"until {key['expires_at']}" if key["expires_at"] else "valid"
            used = f"last used {key['last_used_at']}" if key["last_used_at"] else "never used"
            senders = ", ".join(key["allowed_senders"]) or "the site itself"
            rate = f"; {key['rate']}" if key["rate"] else ""
            self.stdout.write(
                f"{key['begins_with']}  {key['client']}  {ends}, {used}; {', '.join(key['scopes'])}; as {senders}{rate}"
            )
        if not keys:
            self.stdout.write("no keys")

    def _revoke(self, options: dict[str, Any]) -> None:
        prefixes = {text.removeprefix("me_").rstrip("_…") for text in options["keys"]}
        known = ApiKey.objects.filter(prefix__in=prefixes)
        if missing := prefixes - set(known.values_list("prefix", flat=True)):
            raise CommandError(f"no key begins with me_{min(missing)[:20]}; nothing was revoked", returncode=USAGE)
        count = known.revoke()
        if options["json"]:
            self.stdout.write(json.dumps({"command": "mail_key", "revoked": count}))
        else:
            self.stdout.write(f"revoked {count}")


def _facts(key: ApiKey) -> dict[str, Any]:
    instants = {
        name: value.isoformat(timespec="seconds") if (value := getattr(key, name)) else None
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
    }
    return {
        "client": key.client,
        "begins_with": f"me_{key.prefix}",
        "scopes": key.scopes,
        "allowed_senders": key.allowed_senders,
        "networks": key.networks,
        "rate": key.rate,
        **instants,
    }
