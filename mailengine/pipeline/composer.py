"""Compose what was claimed, before anything of it begins: what can't be composed was never in doubt."""

from __future__ import annotations

import logging
from datetime import timedelta

from ..conf import Settings
from ..errors import InvalidMail
from ..models import Lease, Message
from ..models.messages import Status, Verdict
from .compose import NoSender, Words, compose, load_words
from .health import Health
from .items import Item
from .verdict import back

logger = logging.getLogger("mailengine.dispatch")

WORDS_KEPT = 16
"""Contents that a run keeps loaded, with their files."""


class Composer:
    """Composes the messages of a run; the words they share are loaded once."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self.settings = settings
        self.health = health
        self._words: dict[int, Words] = {}

    def item(self, message: Message, lease: Lease) -> Item:
        """The message with its email, or with what becomes of it instead."""
        item = Item(message, lease)
        try:
            item.email = compose(message, self._load(message.content_id))
        except NoSender as error:
            logger.error("%s", error)
            item.verdict = self._later(message, f"misconfigured: {error}")
        except FileNotFoundError as error:
            item.verdict = Verdict(Status.DEAD, f"invalid: an attachment's file is gone: {error}")
        except OSError as error:
            item.verdict = self._later(message, f"the storage of attachments does not answer: {error}")
        except (InvalidMail, ValueError, TypeError, LookupError) as error:
            item.verdict = Verdict(Status.DEAD, f"invalid: it can't be composed: {error}")
        return item

    def _later(self, message: Message, reason: str) -> Verdict:
        """Not now, by no fault of the message or of a provider: again in one probe interval."""
        now = self.health.now
        until = now + timedelta(seconds=max(self.settings.probe_interval_seconds, 1))
        return back(message, reason, now=now, settings=self.settings, until=until)

    def _load(self, content_id: int) -> Words:
        words = self._words.get(content_id)
        if words is None:
            words = load_words(content_id)
            while len(self._words) >= WORDS_KEPT:
                del self._words[next(iter(self._words))]
            self._words[content_id] = words
        return words
