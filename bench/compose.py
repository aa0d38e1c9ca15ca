"""How long it takes from a message to the bytes of its mail: by Django, and by a run that sends by `SMTPBackend`.

Microseconds of processor time for each mail. Of a job; of a job whose readers have names that are not ASCII; with three
merge fields in subject, text and HTML; and for single mails, each with words of its own, without and with loading them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from support import Figures, Medians, main, scratch_database, words

if TYPE_CHECKING:
    from mailengine.models import Content, Message
    from mailengine.pipeline.composer import Composer

MAILERS = {
    "default": {"BACKEND": "mailengine.backends.EmailBackend"},
    "relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "127.0.0.1"}},
}
WRITTEN_AT = datetime(2026, 1, 1, tzinfo=timezone.utc)
FIELDS = "Dear {{ name }} of {{ city }}, your number is {{ number }}."
IN_HAND = 50
"""Single mails whose words are loaded together, as by a run with as many connections."""


def compose(count: int) -> Figures:
    with scratch_database():
        from django.test import override_settings

        from mailengine.backends.wire import render
        from mailengine.pipeline.compose import compose, load_words

        with override_settings(MAILERS=MAILERS, MAILENGINE={"PROVIDERS": {"relay": {}}}):
            few = count // 20
            alike, own = _content(), [_content(number=number) for number in range(few)]
            loaded = load_words(alike.pk)
            mails = _messages([alike] * count)
            named = _messages([alike] * few, names=True)
            merged = _messages([_content(FIELDS)] * few, data=True)
            single = _messages(own)
            return {
                "django": _each(mails[:few], lambda message: render(compose(message, loaded))),
                "job": _cast(mails),
                "named": _cast(named),
                "merged": _cast(merged),
                "single": _cast(single),
                "django_loaded": _each(single, lambda m: render(compose(m, load_words(m.content_id)))),
                "single_loaded": _cast(single, is_loaded=False),
            }


def line(figures: Medians) -> str:
    return (
        f"Django {figures['django']:.0f} µs; of a job {figures['job']:.0f} ({figures.range('job')}), with names "
        f"{figures['named']:.0f}, with merge fields {figures['merged']:.0f}; single {figures['single']:.0f}, "
        f"with loading {figures['single_loaded']:.0f} where Django takes {figures['django_loaded']:.0f}"
    )


def _cast(messages: Sequence[Message], *, is_loaded: bool = True) -> float:
    """By the composer of a run, with all that it does for each mail."""
    from mailengine.models import Lease, Worker
    from mailengine.pipeline.items import Item

    lease = Lease(Worker.objects.register("bench"), trusted_until=float("inf"))
    items = [Item(message, lease, reserved="relay") for message in messages]
    composer = _composer()
    composer.compose(items[0])
    seconds = 0.0
    for start in range(0, len(items), IN_HAND):
        some = items[start : start + IN_HAND]
        started_at = time.process_time()
        composer.load(item.message for item in some)
        if is_loaded:
            started_at = time.process_time()
        for item in some:
            composer.compose(item)
        seconds += time.process_time() - started_at
        if not all(hasattr(item.email, "pieces") for item in some):
            raise SystemExit("not all of them are bytes")
    return seconds / len(items) * 1e6


def _composer() -> Composer:
    from mailengine.conf import get_settings
    from mailengine.pipeline.composer import Composer
    from mailengine.pipeline.health import Health

    return Composer(Health(get_settings()))


def _each(messages: Iterable[Any], act: Callable[[Any], object]) -> float:
    started_at = time.process_time()
    count = sum(1 for message in messages if act(message))
    return (time.process_time() - started_at) / count * 1e6


def _content(fields: str = "", number: int = 0) -> Content:
    from mailengine.models import Content

    subject, text, html = words()
    return Content.objects.create(
        subject=f"{fields[:15]}{subject} {number}",
        text=f"{number} {fields}\n{text}",
        html=html.replace("<body>", f"<body>\n<h1>{number} {fields}</h1>\n", 1),
        from_email="News <news@example.org>",
        headers={"List-Unsubscribe": "<https://example.org/leave>"},
        created_at=WRITTEN_AT,
    )


def _messages(contents: Sequence[Content], *, data: bool = False, names: bool = False) -> list[Message]:
    from mailengine.models import Message

    messages = [
        Message(
            pk=uuid.uuid4(),
            content=content,
            recipient=f"reader.{number}@example.org",
            created_at=WRITTEN_AT,
            merge_data={"name": f"Reader {number}", "city": "Zürich", "number": number} if data else None,
        )
        for number, content in enumerate(contents)
    ]
    for number, message in enumerate(messages if names else ()):
        entry = {"address": message.recipient, "name": f"Änn {number}", "kind": "to", "outcome": ""}
        message.other_recipients = [entry]
    return messages


CASES: dict[str, Callable[[], Figures]] = {"10000": partial(compose, 10_000)}

if __name__ == "__main__":
    main(CASES, line, title="compose: from a message to the bytes of its mail, 22 kB of text and HTML", repeats=3)
