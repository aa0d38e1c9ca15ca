"""How long a processor takes to compose a mail to bytes: by Django, and cast in a mould as for an `SMTPBackend`.

The mail has 23 kB of text and HTML, in lines as newsletters have them. Microseconds for each mail: rendered by Django; one
of a job; one of a job with three merge fields; a single mail with words of its own; a name that is not ASCII.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from support import Figures, Medians, main, scratch_database

if TYPE_CHECKING:
    from mailengine.models import Content, Message

MAILERS = {
    "default": {"BACKEND": "mailengine.backends.EmailBackend"},
    "relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "127.0.0.1", "port": 9}},
}
PARAGRAPH = '<p style="margin:0">Liebe Leserinnen, {n}: frische Brötchen und mehr für Sie, {text}.</p>'
LINE = "Zeile {n}: frische Brötchen und mehr für Sie, wie jeden Montag."
FIELDS = "Dear {{ name }} of {{ city }}, your number is {{ number }}."


def composed(count: int) -> Figures:
    """Microseconds per mail."""
    with scratch_database():
        from django.test import override_settings

        from mailengine.pipeline.compose import compose, load_words
        from mailengine.backends.wire import render

        with override_settings(MAILERS=MAILERS, MAILENGINE={"PROVIDERS": {"relay": {}}}):
            plain = _content(0)
            some = _messages(plain, 200)
            words = load_words(plain.pk)
            django = _each(some, lambda message: render(compose(message, words)))
            return {
                "django": django,
                "job": _by_composer(_messages(plain, count)),
                "named": _by_composer(_messages(plain, count // 10, named=True)),
                "merged": _by_composer(_messages(_content(0, FIELDS), count // 10, merged=True)),
                "single": _by_composer([_messages(_content(n), 1)[0] for n in range(count // 10)]),
            }


def line(figures: Medians) -> str:
    return (
        f"µs per mail: by Django {figures['django']:.0f}; of a job {figures['job']:.1f} ({figures.range('job')}), "
        f"named 'Änn' {figures['named']:.0f}, with three merge fields {figures['merged']:.0f}; "
        f"with words of its own {figures['single']:.0f}"
    )


def _by_composer(messages: Sequence[Message]) -> float:
    """By a run's `Composer`, all that it does for a mail included, but for the queries that load its words."""
    from mailengine.models import Lease, Worker
    from mailengine.pipeline.composer import Composer
    from mailengine.pipeline.compose import load_words
    from mailengine.pipeline.health import Health
    from mailengine.pipeline.items import Item
    from mailengine.conf import get_settings

    composer = Composer(Health(get_settings()))
    loaded = {content_id: load_words(content_id) for content_id in {message.content_id for message in messages}}
    composer._load = loaded.__getitem__  # type: ignore[method-assign]
    lease = Lease(Worker.objects.register("bench"), trusted_until=time.monotonic() + 3_600)
    items = [Item(message, lease, reserved="relay") for message in messages]
    taken = _each(items, composer.compose)
    if not all(hasattr(item.email, "pieces") for item in items):
        raise SystemExit("not all of them were cast")
    return taken


def _each(things: Sequence[Any], act: Callable[[Any], object]) -> float:
    act(things[0])
    started_at = time.process_time()
    for thing in things:
        act(thing)
    return (time.process_time() - started_at) / len(things) * 1e6


def _content(number: int, further: str = "") -> Content:
    from mailengine.models import Content

    text = "\n".join([f"Hello {number}", further, *(LINE.format(n=n) for n in range(60))])
    html = "\n".join([f"<h1>{number}</h1>", further, *(PARAGRAPH.format(n=n, text="x" * 20) for n in range(160))])
    return Content.objects.create(
        subject=f"News for {{{{ name }}}} {number}" if further else f"News, number {number}",
        text=text,
        html=html,
        from_email="News <news@example.org>",
        headers={"List-Unsubscribe": "<https://example.org/leave>"},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def _messages(content: Content, count: int, *, merged: bool = False, named: bool = False) -> list[Message]:
    import uuid

    from mailengine.models import Message

    messages = []
    for n in range(count):
        message = Message(
            pk=uuid.uuid4(),
            content_id=content.pk,
            recipient=f"reader.{n}@example.org",
            stream="transactional",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            merge_data={"name": f"Reader {n}", "city": "Zürich", "number": n} if merged else None,
        )
        if named:
            message.other_recipients = [{"address": message.recipient, "name": f"Änn {n}", "kind": "to", "outcome": ""}]
        messages.append(message)
    return messages


CASES: dict[str, Callable[[], Figures]] = {"10000": lambda: composed(10_000)}

if __name__ == "__main__":
    main(CASES, line, title=__doc__.splitlines()[0], repeats=3)
