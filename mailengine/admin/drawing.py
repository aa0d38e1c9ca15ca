"""Traffic drawn: a column for each hour, in SVG, with words for who can't see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from ..reporting.traffic import HOUR, Hour, Traffic
from .figures import grouped

LEAST = 1.5
"""The height of what is there at all, so that one failure among thousands is seen."""
GAP = 1.0
AXIS = 16.0
"""Below the columns of a large drawing, for the hours."""
LABELLED_HOURS = 3


@dataclass(frozen=True)
class Box:
    """A part of a column: numbers are text, since templates would write them as the reader's language does."""

    kind: str
    y: str
    height: str


@dataclass(frozen=True)
class Column:
    """One hour."""

    words: str
    x: str
    width: str
    boxes: list[Box]
    label: str = ""


def drawing(traffic: Traffic, *, width: int = 168, height: int = 36, is_large: bool = False) -> SafeString:
    """The last 24 hours as a picture of so many units; a large one names the hours."""
    room = height - AXIS if is_large else float(height)
    most = max((hour.total for hour in traffic.hours), default=0)
    step = width / len(traffic.hours) if traffic.hours else 0.0
    columns = [
        Column(
            _hour_in_words(hour),
            f"{number * step:.1f}",
            f"{step - GAP:.1f}",
            list(_boxes(hour, most=most, room=room)),
            _o_clock(hour.begins_at) if is_large and number % LABELLED_HOURS == 0 else "",
        )
        for number, hour in enumerate(traffic.hours)
    ]
    context = {
        "columns": columns, "width": width, "height": height, "floor": f"{room:.1f}", "is_large": is_large,
        "words": _in_words(traffic), "most": most,
    }  # fmt: skip
    return render_to_string("admin/mailengine/providerstate/drawing.html", context)


def _boxes(hour: Hour, *, most: int, room: float) -> Iterator[Box]:
    """From the floor upwards."""
    y = room
    for kind, number in (("accepted", hour.accepted), ("refused", hour.refused), ("failed", hour.failed)):
        if number:
            # Room for three that are drawn larger than they are.
            height = max(number / most * (room - 2 * LEAST), LEAST)
            y -= height
            yield Box(kind, f"{y:.1f}", f"{height:.1f}")


def _in_words(traffic: Traffic) -> str:
    if not traffic.total:
        return gettext("Last 24 hours: nothing was handed over.")
    most = max(traffic.hours, key=lambda hour: hour.total)
    words = {"most": grouped(most.total), "hour": _o_clock(most.begins_at)}
    words |= {name: grouped(getattr(traffic, name)) for name in ("accepted", "refused", "failed")}
    text = gettext(
        "Last 24 hours: %(accepted)s accepted, %(refused)s refused, %(failed)s failed; at most %(most)s in an hour, "
        "that from %(hour)s on."
    )
    return text % words


def _hour_in_words(hour: Hour) -> str:
    words = {"from": _o_clock(hour.begins_at), "to": _o_clock(hour.begins_at + HOUR)}
    words |= {name: grouped(getattr(hour, name)) for name in ("accepted", "refused", "failed")}
    return gettext("%(from)s to %(to)s: %(accepted)s accepted, %(refused)s refused, %(failed)s failed") % words


def _o_clock(instant: datetime) -> str:
    return date_format(timezone.localtime(instant), "H:i")
