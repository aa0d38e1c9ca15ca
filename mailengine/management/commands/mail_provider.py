"""Add, drain, disable and retire providers while mail flows, and see how they stand."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.utils import translation

from ...clock import read_now
from ...conf import Mode
from ...errors import UnknownName
from ...models import ProviderState
from ...rate import limits_of
from ...reporting.providers import Picture, picture
from ...reporting.switches import (
    MOST_WEIGHT,
    SwitchError,
    check_addable,
    check_removable,
    check_switchable,
    consequences,
    in_words,
)
from ..base import USAGE, MailCommand
from ..providers import provider_lines

SWITCHES: dict[str, dict[str, object]] = {
    "enable": {"mode": Mode.ENABLED.value},
    "drain": {"mode": Mode.DRAINING.value},
    "disable": {"mode": Mode.DISABLED.value},
    "retire": {"mode": Mode.RETIRED.value},
    "add": {"is_added": True, "mode": Mode.ENABLED.value},
    "remove": {"is_added": False, "mode": Mode.ENABLED.value},
}
HELP = {
    "enable": "let it carry mail again",
    "drain": "give it no new mail, but what only it may carry",
    "disable": "give it nothing; what only it may carry waits",
    "retire": "as if the settings did not name it",
    "add": "put an entry of MAILERS to use that is no provider yet",
    "remove": "take back what was added so",
}


class Command(MailCommand):
    """`manage.py mail_provider ses --drain`; without a name, the providers as `mail_status` shows them."""

    help = "Show the providers, or switch one: running workers follow within a second, and need no restart."
    requires_system_checks = []  # noqa: RUF012  a provider that fails one is what an operator may want to switch off

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("provider", nargs="?", metavar="ALIAS", help="the entry of MAILERS; default: show them all")
        group = parser.add_mutually_exclusive_group()
        for name, text in HELP.items():
            group.add_argument(f"--{name}", dest="switch", action="store_const", const=name, help=text)
        parser.add_argument(
            "--weight", type=_weight, metavar="N", help="its share among others, or 'settings' for that of the settings"
        )
        parser.add_argument(
            "--rate", type=_rate, metavar="RATE", help="as 14/s, or 'settings' for that of the settings"
        )
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        with translation.override("en"):  # as all that it says by itself
            wanted = _wanted(options)
            if options["provider"] is None:
                self._show(has_wishes=bool(wanted), as_json=options["json"])
            elif not wanted:
                raise CommandError(f"say what to do with {options['provider']}, as --drain", returncode=USAGE)
            else:
                self._switch(options["provider"], options["switch"], wanted, as_json=options["json"])

    def _show(self, *, has_wishes: bool, as_json: bool) -> None:
        if has_wishes:
            raise CommandError("name the provider to switch", returncode=USAGE)
        reports = _picture().reports.values()
        as_dicts = [report.as_dict() for report in reports]
        table = "\n".join(provider_lines(reports)) or "no providers"
        self._write(table, {"providers": as_dicts}, as_json=as_json)

    def _switch(self, alias: str, switch: str | None, wanted: dict[str, object], *, as_json: bool) -> None:
        before = _picture()
        checks = {"add": check_addable, "remove": check_removable}
        try:
            checks.get(switch or "", check_switchable)(alias, seen=before)
        except (SwitchError, UnknownName) as error:
            raise CommandError(str(error), returncode=USAGE) from error
        changes = ProviderState.objects.switch(alias, **wanted)
        warnings = list(consequences(changes, alias=alias, before=before, after=_picture()))
        told = f"{in_words(changes)}; running workers follow within a second" if changes else "nothing changed"
        self._write(
            "\n".join([f"{alias}: {told}", *(f"WARNING: {text}" for text in warnings)]),
            {"provider": alias, "changed": {name: list(pair) for name, pair in changes.items()}, "warnings": warnings},
            as_json=as_json,
        )

    def _write(self, text: str, as_dict: dict[str, Any], *, as_json: bool) -> None:
        self.stdout.write(json.dumps({"command": "mail_provider", **as_dict}) if as_json else text)


def _picture() -> Picture:
    return picture(now=read_now(router.db_for_read(ProviderState)))


def _wanted(options: dict[str, Any]) -> dict[str, object]:
    """The values of the switches that were asked for."""
    wanted = dict(SWITCHES[options["switch"]]) if options["switch"] else {}
    if options["weight"] is not None:
        wanted["weight"] = None if options["weight"] == "settings" else options["weight"]
    if options["rate"] is not None:
        wanted["rate"] = "" if options["rate"] == "settings" else options["rate"]
    return wanted


def _weight(text: str) -> int | str:
    if text == "settings" or (text.isdecimal() and int(text) <= MOST_WEIGHT):
        return text if text == "settings" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number from 0 to {MOST_WEIGHT:,} nor 'settings'")


def _rate(text: str) -> str:
    try:
        if text != "settings":
            limits_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
