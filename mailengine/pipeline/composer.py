"""Compose what was claimed, before anything of it begins: what can't be composed was never in doubt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Generic, TypeVar
from uuid import UUID

from django.core.exceptions import ObjectDoesNotExist
from django.db import Error as DatabaseFault
from django.db import router, transaction

from ..addresses import parse_address
from ..backends.wire import Mail, WireMail
from ..errors import InvalidMail, MailengineError
from ..models import Attachment, Message, MessageJob, Priority
from ..models.content import attachment_storage
from ..models.locks import limit_locks
from ..models.messages import POISON_CLAIMS, Status, Verdict
from ..outcomes import one_line
from ..providers.classify.errors import text_of
from ..providers.connection import takes_wire_mail
from .alerts import Alert
from .compose import ComposedEmail, NoSender, Words, compose, load_short_words, load_words
from .encoding import Encoded, encoded_file
from .folding import Unfit
from .health import Health
from .items import Item
from .mould import Mould
from .outage import passes
from .verdict import back

logger = logging.getLogger("mailengine.dispatch")

T = TypeVar("T")

BYTES_KEPT = 8_000_000
"""Of words, and as much of files, for the next message that has them; more only when one alone is larger."""
ROW_BYTES = 4_000
"""What the row of a content takes in memory, its words apart."""
ALIKE_FAILURES = 5
"""Messages of a job in a row that can't be composed for the same reason: then the job is at fault, not they."""
REASON_LENGTH = 400
LOADED_TOGETHER = 50
"""Contents, in one query."""
SENDERS_KEPT = 1_000
"""Of which it is known who may send for them."""
FILES_ASKED_FOR = 10
"""Attachments that the storage is asked for, when it lacks one, to know whether it is there at all."""


class NobodyMay(MailengineError):  # noqa: N818  named as the family in errors.py is
    """No provider of its stream may send as its sender."""


@dataclass
class Streak:
    """Messages of one job that could not be composed, in a row and for one reason."""

    reason: str
    ids: set[UUID] = field(default_factory=set)


class Kept(Generic[T]):
    """The values that were asked for last, as many as take `BYTES_KEPT` together."""

    def __init__(self) -> None:
        self._values: dict[object, tuple[T, int]] = {}
        """The longest unused first."""
        self._size = 0

    def get(self, key: object) -> T | None:
        found = self._values.pop(key, None)
        if found is None:
            return None
        self._values[key] = found
        return found[0]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def make_room(self, size: int) -> None:
        while self._values and self._size + size > BYTES_KEPT:
            self._size -= self._values.pop(next(iter(self._values)))[1]

    def keep(self, key: object, value: T, *, size: int) -> None:
        self.make_room(size)
        self._values[key] = value, size
        self._size += size

    def drop(self, key: object) -> None:
        _value, size = self._values.pop(key, (None, 0))
        self._size -= size

    def clear(self) -> None:
        self._values.clear()
        self._size = 0


class Composer:
    """Composes the messages of a run; the words they share are loaded once."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._words: Kept[Words] = Kept()
        self._files: Kept[bytes] = Kept()
        self._encoded_files: Kept[Encoded] = Kept()
        self._moulds: Kept[Mould | Unfit] = Kept()
        """By content; `Unfit` where Django composes each of its mails."""
        self._barred: dict[tuple[str, str], frozenset[str]] = {}
        """By stream and sender: the providers that may not send it."""
        self._wire_mail: dict[str, bool] = {}
        """By provider: whether it takes mail that is bytes."""
        self._settings = health.settings
        """By which those are barred."""
        self._streaks: dict[int, Streak] = {}
        """By job."""
        self._good_jobs: set[int] = set()
        """Of which something could be composed."""
        self._missed_storage = False
        """Whether it was said that the storage of attachments is away: once in a run."""

    def begin_anew(self) -> None:
        """Forget what it has said and seen in this run, so that its memory does not grow with the jobs there are."""
        self._good_jobs.clear()
        self._streaks.clear()
        self._missed_storage = False
        self._words.clear()
        self._files.clear()

    def compose(self, item: Item) -> None:
        """Give the item its email, or the verdict on what can't be composed, unless it has that already.

        Mail that is for SMTP alone, as far as is known now, is bytes. Whatever is wrong with it, the run goes on; only
        the database's passing errors are raised.
        """
        if item.verdict:
            return
        with self._judging(item):
            email: Mail | None = self._cast(item)
            if email is None:
                email = self._composed(item.message)
            self._bar(item, email.from_email)
            item.email = email
            self._note_success(item.message)
        if item.message.job_id is None:  # nobody else has these words
            self._words.drop(item.message.content_id)
            self._moulds.drop(item.message.content_id)

    def compose_for(self, item: Item, alias: str) -> None:
        """Compose it again if it is bytes, and the provider `alias`, where it is to go now, does not take those."""
        if isinstance(item.email, WireMail) and not self._takes_wire_mail(alias):
            with self._judging(item):
                item.email = self._composed(item.message)

    def _composed(self, message: Message) -> ComposedEmail:
        return compose(message, self._load(message.content_id), read=self._read)

    def _cast(self, item: Item) -> WireMail | None:
        """The mail as bytes; None where it may go to somebody who does not take them, or is better left to Django."""
        message = item.message
        aliases = (item.reserved,) if item.reserved else self.health.settings.aliases_for(message.stream)
        if not aliases or not all(map(self._takes_wire_mail, aliases)):
            return None
        mould = self._mould(message)
        if isinstance(mould, Unfit):
            return None
        try:
            return mould.cast(message)
        except Unfit as error:
            logger.debug("message %s is composed by Django: %s", message.pk, error)
            return None

    def _takes_wire_mail(self, alias: str) -> bool:
        taken = self._wire_mail.get(alias)
        if taken is None:
            taken = self._wire_mail[alias] = takes_wire_mail(alias)
        return taken

    def _mould(self, message: Message) -> Mould | Unfit:
        content_id, is_shared = message.content_id, message.job_id is not None
        mould = self._moulds.get(content_id)
        if mould is None:
            words = self._load(content_id)
            try:
                mould = Mould(words, read=self._read, encode=self._encode, is_shared=is_shared)
            except Unfit as error:
                mould = error
                level = logging.INFO if is_shared else logging.DEBUG
                logger.log(level, "content %s: each of its mails is composed by Django: %s", content_id, error)
            self._moulds.keep(content_id, mould, size=words.size * 4 // 3 + ROW_BYTES)
        return mould

    def _bar(self, item: Item, sender: str) -> None:
        """Keep it from the providers that may not send as this sender. Raises `NobodyMay` when that is all of them."""
        message = item.message
        barred = self._barred_for(message.stream, sender)
        if not barred:
            return
        aliases = self.health.settings.aliases_for(message.stream)
        carriers = set(self.health.carriers(message.stream))
        if message.uncertain_count and message.priority > Priority.URGENT:  # it may be there already: nowhere else
            carriers = {message.provider}.intersection(aliases)
        if carriers <= barred:
            raise NobodyMay(f"none of its providers may send as {parse_address(sender).spec} (ALLOWED_SENDERS)")
        item.tried |= barred
        item.refused_by |= barred

    def _barred_for(self, stream: str, sender: str) -> frozenset[str]:
        settings = self.health.settings
        if settings is not self._settings:
            self._settings = settings
            self._barred.clear()
        barred = self._barred.get((stream, sender))
        if barred is None:
            aliases, key = settings.aliases_for(stream), parse_address(sender).key
            barred = frozenset(alias for alias in aliases if not settings.provider(alias).may_send_as(key))
            if len(self._barred) >= SENDERS_KEPT:
                self._barred.clear()
            self._barred[stream, sender] = barred
        return barred

    def load(self, messages: Iterable[Message]) -> None:
        """Load the words of all these together. What can't be had that way is loaded when its mail is composed."""
        missing = [content_id for content_id in {m.content_id for m in messages} if content_id not in self._words]
        for start in range(0, len(missing) if len(missing) > 1 else 0, LOADED_TOGETHER):
            try:
                for words in load_short_words(missing[start : start + LOADED_TOGETHER]):
                    self._keep(words)
            except (DatabaseFault, ValueError, TypeError, LookupError) as error:  # there is a row that nobody can read
                if isinstance(error, DatabaseFault) and passes(error):
                    raise

    def weigh(self, item: Item) -> None:
        """Set the item's size; or its verdict, when its words can't be loaded."""
        if item.size is not None:
            return
        words = self._words.get(item.message.content_id)
        if words is not None:
            item.size = words.size
        else:
            with self._judging(item):
                item.size = self._load(item.message.content_id).size

    @contextmanager
    def _judging(self, item: Item) -> Iterator[None]:
        """Turn what goes wrong with it into its verdict."""
        message = item.message
        try:
            yield
        except NoSender as error:
            logger.error("%s", error)
            item.verdict = self._later(message, f"misconfigured: {error}")
        except NobodyMay as error:
            item.verdict = self._failed(message, f"refused: {error}")
        except FileNotFoundError as error:
            item.verdict = self._without_file(message, error)
        except OSError as error:
            item.verdict = self._later(message, f"the storage of attachments does not answer: {error}")
        except (InvalidMail, ObjectDoesNotExist, ValueError, TypeError, LookupError) as error:
            item.verdict = self._failed(message, f"invalid: it can't be composed: {text_of(error)}")
        # Composing runs code that is anybody's, and takes memory: neither may end the run for the messages behind.
        except Exception as error:
            if isinstance(error, DatabaseFault) and passes(error):
                raise
            item.verdict = self._strike(message, error)

    def _without_file(self, message: Message, error: FileNotFoundError) -> Verdict:
        """It is set aside when its file alone is gone. When all are, the storage is away: an unmounted volume."""
        if _storage_has_files():
            return self._failed(message, f"invalid: an attachment's file is gone: {error}")
        if not self._missed_storage:
            self._missed_storage = True
            logger.error("the storage of attachments has none of its files; mail with attachments waits: %s", error)
        return self._later(message, f"the storage of attachments has none of its files: {error}")

    def _failed(self, message: Message, reason: str) -> Verdict:
        """It is set aside. What may have gone is never given up on without a person."""
        self._note_failure(message, reason)
        if message.uncertain_count:
            return Verdict(Status.UNCERTAIN, f"{reason}; kept for a person to decide", available_at=None)
        return Verdict(Status.DEAD, reason)

    def _strike(self, message: Message, error: Exception) -> Verdict:
        """It counts as if its worker had died of it: tried again, the last time alone, then it is set aside."""
        problem = ": ".join(part for part in (type(error).__name__, text_of(error)) if part)
        problem = one_line(problem, length=REASON_LENGTH)
        is_exhaustion = isinstance(error, MemoryError | RecursionError)
        if is_exhaustion:
            for kept in (self._words, self._files, self._encoded_files, self._moulds):  # for those behind it
                kept.clear()
        trace = None if is_exhaustion else error
        logger.error(
            "message %s can't be composed, strike %d: %s", message.pk, message.claim_count, problem, exc_info=trace
        )
        if message.claim_count >= POISON_CLAIMS:
            return self._failed(message, f"poison: composing it failed {message.claim_count} times, last {problem}")
        reason = f"composing it failed: {problem}"
        self._note_failure(message, reason)
        return replace(self._later(message, reason), is_strike=True)

    def _later(self, message: Message, reason: str) -> Verdict:
        """Not now, by no fault of the message or of a provider: again in one probe interval."""
        now = self.health.picture.now
        settings = self.health.settings
        until = now + timedelta(seconds=max(settings.probe_interval_seconds, 1))
        return back(message, reason, now=now, settings=settings, until=until)

    def _load(self, content_id: int) -> Words:
        words = self._words.get(content_id)
        if words is None:
            words = load_words(content_id)
            self._keep(words)
        return words

    def _keep(self, words: Words) -> None:
        self._words.keep(words.content.pk, words, size=words.loaded_size + ROW_BYTES)

    def _read(self, attachment: Attachment) -> bytes:
        """The bytes of a file: a job's messages have the same."""
        data = self._files.get(attachment.sha256)
        if data is None:
            self._files.make_room(attachment.size)
            data = attachment.read()
            self._files.keep(attachment.sha256, data, size=len(data))
        return data

    def _encode(self, attachment: Attachment) -> Encoded:
        """The bytes of a file as they are in a mail."""
        encoded = self._encoded_files.get(attachment.sha256)
        if encoded is None:
            size = attachment.size * 4 // 3
            self._encoded_files.make_room(size)
            encoded = encoded_file(self._files.get(attachment.sha256) or attachment.read())
            self._encoded_files.keep(attachment.sha256, encoded, size=size)
        return encoded

    # Jobs

    def _note_success(self, message: Message) -> None:
        if message.job_id:
            self._good_jobs.add(message.job_id)
            self._streaks.pop(message.job_id, None)

    def _note_failure(self, message: Message, reason: str) -> None:
        """Pause its job when it is the fifth of it in a row, and none was ever sent."""
        job_id = message.job_id
        if not job_id or job_id in self._good_jobs:
            return
        streak = self._streaks.get(job_id)
        if streak is None or streak.reason != reason:
            streak = self._streaks[job_id] = Streak(reason)
        streak.ids.add(message.pk)
        if len(streak.ids) >= ALIKE_FAILURES:
            del self._streaks[job_id]
            self._pause(job_id, streak)

    def _pause(self, job_id: int, streak: Streak) -> None:
        """Hold the job, and with it those that it has cost already. Begin holds the ones that are claimed now."""
        using = router.db_for_write(Message)
        with transaction.atomic(using=using):
            limit_locks(using)
            if Message.objects.filter(job=job_id, status=Status.SENT).exists():
                self._good_jobs.add(job_id)
                return
            # Before the job: whoever locks both does so in this order.
            Message.objects.filter(job=job_id).unbury(streak.reason, struck=streak.ids)
            jobs = MessageJob.objects.filter(pk=job_id)
            is_news = jobs.pause(f"its messages can't be composed: {streak.reason}") > 0
            if not is_news and not jobs.filter(status=MessageJob.Status.PAUSED).select_for_update():
                transaction.set_rollback(True)  # it was cancelled meanwhile
        if not is_news:
            return
        text = (
            f"Job {job_id} is paused, since its messages can't be composed: {streak.reason}\n\n"
            f"That was so for {ALIKE_FAILURES} of them in a row, and none was ever sent. They wait. Mend the cause and "
            "resume the job, or cancel it.\n"
        )
        self.health.incidents.alerts.append(Alert(f"mail job {job_id} is paused", text, self.health.incidents.roads()))


def _storage_has_files() -> bool:
    """Whether the storage gives any of the latest attachments, by which one knows that it is there.

    Where there never was another file than the one that is missing, nothing speaks against the storage.
    """
    storage = attachment_storage()
    latest = list(Attachment.objects.order_by("-pk").values_list("file", flat=True)[:FILES_ASKED_FOR])
    if len(latest) < 2:
        return True
    with suppress(Exception):  # anybody's code; one that fails is away
        return any(storage.exists(name) for name in latest)
    return False
