"""Providers that do as they are told, without a network: `FakeProvider`, and `flaky_provider()` for `MAILERS`."""

from __future__ import annotations

import errno
import random
import smtplib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anymail.exceptions import AnymailAPIError
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from requests import Response

from ..backends.dialogue import Phase, set_phase
from ..clock import stopped_at
from ..deadline import current
from ..errors import did_you_mean
from ..providers.classify.http import RETRY_AFTER_SECONDS
from .events import ESP_NAME, report_email

BACKEND = "mailengine.testing.FakeProvider"
_KNOWN_TO_DJANGO = {"alias", "username", "password"}


def flaky_provider(
    *,
    script: Iterable[str] = (),
    repeat: bool = False,
    fails_every: int = 0,
    seed: int = 0,
    retry_after_seconds: float | None = None,
    **chances: float,
) -> dict[str, Any]:
    """An entry for `MAILERS`: a `FakeProvider` that fails by a script, by counting, or by a seed.

        flaky_provider(script=["unavailable", "accept"])            # call by call, then it accepts everything
        flaky_provider(fails_every=2)                               # every second call is "unavailable"
        flaky_provider(seed=7, unavailable=0.2, lost_reply=0.01)    # of a hundred calls about 20, and 1

    `chances` are words of the script. The same seed gives the same failures at the same calls, each time. Raises
    ImproperlyConfigured for what it can't do.
    """
    options: dict[str, Any] = {
        "script": [script] if isinstance(script, str) else list(script),
        "repeat": repeat,
        "fails_every": fails_every,
        "seed": seed,
        "retry_after_seconds": retry_after_seconds,
        "chances": chances,
    }
    FakeProvider(**options)
    return {"BACKEND": BACKEND, "OPTIONS": {name: value for name, value in options.items() if value}}


@dataclass(frozen=True)
class Handover:
    """One call of a provider, as it saw it."""

    provider: str
    did: str
    """What it did: a word of the script."""
    email: EmailMessage

    @property
    def took_it(self) -> bool:
        """Whether it has the mail, whatever was heard of it."""
        return ACTS[self.did].takes_it


@dataclass
class Record:
    """What one provider saw, however many backend objects there were, and what it was told to do."""

    calls: int = 0
    accepted: list[EmailMessage] = field(default_factory=list)
    told: str = ""
    """What it does at each call, in place of its script."""
    times: int | None = None
    """For how many more calls; None: until it recovers."""
    played: int = 0
    """How far its script is."""

    def fail(self, how: str = "unavailable", *, times: int | None = None) -> None:
        """From now on do this at each call, or at the next `times`; the script goes on afterwards where it was.

        `how` is a word of the script. Raises ValueError for one that is not.
        """
        if how not in ACTS or how == "accept":
            raise ValueError(f"A provider can't fail by {how!r}.{did_you_mean(how, FAILURES)}")
        self.told, self.times = how, times

    def recover(self) -> None:
        """Do as the script says again."""
        self.told, self.times = "", None

    def next_order(self) -> str:
        """What it was told to do at this call; empty for as it likes."""
        if self.told and self.times is not None:
            if self.times <= 0:
                self.recover()
            else:
                self.times -= 1
        return self.told


class FakeProvider(BaseEmailBackend):
    """A backend for `MAILERS` that makes no connection and does as its OPTIONS say, call by call.

        "lambda": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"fails_every": 2}}
        "iota": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"script": ["deferred", "accept"]}}

    `flaky_provider()` writes such entries. `script` is played in order; after its end every mail is accepted, or with
    `repeat` it starts again. `fails_every: 2` is "unavailable" at every second call. `chances`, a dictionary of words
    with numbers from 0 to 1, draws by `seed`. The words are those of `ACTS`. `retry_after_seconds` is what it asks for
    when it is "throttled".

    What happened is in `FakeProvider.named(name)`, where the name is the option `name`, or else the alias.
    """

    esp_name = ESP_NAME
    _records: dict[str, Record] = {}  # noqa: RUF012 (these are shared by all objects, on purpose)
    _handovers: list[Handover] = []  # noqa: RUF012
    _bounced: list[EmailMessage] = []  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        name: str = "",
        script: Iterable[str] = (),
        repeat: bool = False,
        fails_every: int = 0,
        seed: int = 0,
        chances: Mapping[str, float] | None = None,
        retry_after_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        for unknown in kwargs.keys() - _KNOWN_TO_DJANGO:
            known = [*_OPTIONS, *ACTS]
            raise ImproperlyConfigured(f"FakeProvider has no option {unknown!r}.{did_you_mean(unknown, known)}")
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        self._name = name
        self._script = _checked_script(script)
        self._chances = _checked_chances(chances or {})
        self._seed = seed
        self._retry_after_seconds = retry_after_seconds
        if [bool(self._script), bool(fails_every), bool(self._chances)].count(True) > 1:
            raise ImproperlyConfigured(
                "FakeProvider takes one of script, fails_every and chances. Leave out the others."
            )
        if fails_every:
            self._script = _every(fails_every)
        shortest, longest = RETRY_AFTER_SECONDS
        if retry_after_seconds is not None and not shortest <= retry_after_seconds <= longest:
            mend = f"Give seconds, {shortest:g} to {longest:g}."
            raise ImproperlyConfigured(f"FakeProvider: retry_after_seconds is {retry_after_seconds!r}. {mend}")
        self._repeat = repeat or bool(fails_every)

    @classmethod
    def named(cls, name: str) -> Record:
        """What the provider of this name saw since the last `reset()`."""
        with cls._lock:
            return cls._records.setdefault(name, Record())

    @classmethod
    def handovers(cls) -> list[Handover]:
        """What all providers were handed since the last `reset()`, in order."""
        with cls._lock:
            return list(cls._handovers)

    @classmethod
    def report_bounces(cls) -> int:
        """Report what bounced, each once, by Anymail's signal `tracking`, as webhooks would; how many there were.

        To be called where the database may be asked, after the run that sent them.
        """
        with cls._lock:
            bounced, cls._bounced = cls._bounced, []
        for email in bounced:
            report_email(email, "bounced")
        return len(bounced)

    @classmethod
    def reset(cls) -> None:
        """Forget everything, of all providers; scripts start anew."""
        with cls._lock:
            cls._records.clear()
            cls._handovers, cls._bounced = [], []

    @property
    def name(self) -> str:
        # Asked for late: before Django 6.1 a backend learns its alias only once it is made.
        return self._name or getattr(self, "alias", None) or "default"

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Accept them all, or raise what a real backend would at the first that it was told so for."""
        record = self.named(self.name)
        for email in email_messages:
            with self._lock:
                word = record.next_order() or self._next_word(record)
                act = ACTS[word]
                record.calls += 1
                self._handovers.append(Handover(self.name, word, email))
                if act.takes_it:
                    record.accepted.append(email)
                if act.bounces:
                    self._bounced.append(email)
            if act.hangs:
                _sit_out_the_deadline()
            if word == "throttled" and self._retry_after_seconds is not None:
                raise _too_many_requests(self._retry_after_seconds)
            if act.error is not None:
                raise act.error(email)
        return len(email_messages)

    def _next_word(self, record: Record) -> str:
        call = record.played
        record.played += 1
        if self._chances:
            return self._drawn(call)
        if self._repeat and self._script:
            return self._script[call % len(self._script)]
        return self._script[call] if call < len(self._script) else "accept"

    def _drawn(self, call: int) -> str:
        """By the number of the call and the name, so that it depends on no order, and providers fail independently."""
        drawn = random.Random(f"{self._seed} {self.name} {call}").random()  # noqa: S311  not a secret
        for word, chance in self._chances.items():
            drawn -= chance
            if drawn < 0:
                return word
        return "accept"


def _checked_script(script: Iterable[str]) -> list[str]:
    words = [script] if isinstance(script, str) else list(script)
    for word in words:
        if word not in ACTS:
            raise ImproperlyConfigured(f"FakeProvider can't play {word!r}.{did_you_mean(word, ACTS)}")
    return words


def _checked_chances(chances: Mapping[str, Any]) -> dict[str, float]:
    for word, chance in chances.items():
        if word not in FAILURES:
            known = [*_OPTIONS, *FAILURES]
            raise ImproperlyConfigured(f"FakeProvider can't play {word!r} by chance.{did_you_mean(word, known)}")
        if not isinstance(chance, (int, float)) or not 0 <= chance <= 1:
            raise ImproperlyConfigured(
                f"FakeProvider: the chance of {word!r} is {chance!r}. Give a number from 0 to 1."
            )
    if (total := sum(chances.values())) > 1 + 1e-9:
        raise ImproperlyConfigured(f"FakeProvider: the chances add up to {total:g}. Let them be 1 or less together.")
    return dict(chances)


def _every(count: int) -> list[str]:
    if count < 1:
        raise ImproperlyConfigured(f"FakeProvider: fails_every is {count!r}. Give 2 for every second call.")
    return ["accept"] * (count - 1) + ["unavailable"]


def _sit_out_the_deadline() -> None:
    """Wait as long as a provider that never answers would keep us waiting: not at all where a test has stopped time."""
    deadline = current()
    if deadline is not None and stopped_at() is None:
        time.sleep(deadline.remaining_seconds)


def _too_many_requests(retry_after_seconds: float) -> Exception:
    answer = Response()
    answer.status_code = 429
    answer.headers["Retry-After"] = f"{retry_after_seconds:g}"
    answer._content = b'{"message": "Too many requests"}'
    error: Exception = AnymailAPIError("Too many requests", response=answer, esp_name=ESP_NAME)
    return error


@dataclass(frozen=True)
class Act:
    """What a provider does at one call."""

    error: Callable[[EmailMessage], Exception] | None = None
    takes_it: bool = False
    """Whether it has the mail afterwards, whatever we hear of it."""
    bounces: bool = False
    hangs: bool = False


def _at(phase: Phase, error: Exception) -> Exception:
    set_phase(error, phase)
    return error


def _refused(code: int, text: bytes) -> Act:
    return Act(
        lambda email: _at(Phase.RCPT, smtplib.SMTPRecipientsRefused(dict.fromkeys(email.recipients(), (code, text))))
    )


def _disconnected(_: EmailMessage) -> Exception:
    return _at(Phase.AWAIT, smtplib.SMTPServerDisconnected("Connection unexpectedly closed"))


ACTS = {
    "accept": Act(takes_it=True),
    "bad_address": _refused(550, b"5.1.1 No such user"),
    "bounce": Act(takes_it=True, bounces=True),
    "deferred": _refused(450, b"4.2.1 Mailbox busy"),
    "greylisted": _refused(450, b"4.7.1 Greylisted, come back later"),
    "hang": Act(lambda _: _at(Phase.AWAIT, TimeoutError("timed out")), hangs=True),
    "lost_reply": Act(_disconnected, takes_it=True),
    "misconfigured": Act(lambda _: _at(Phase.AUTH, smtplib.SMTPAuthenticationError(535, b"5.7.8 Wrong password"))),
    "refused": _refused(550, b"5.2.1 Mailbox disabled"),
    "throttled": Act(lambda _: _at(Phase.AWAIT, smtplib.SMTPDataError(454, b"4.7.0 Throttling failure"))),
    "too_large": Act(lambda _: _at(Phase.MAIL, smtplib.SMTPSenderRefused(552, b"5.3.4 Message too big", ""))),
    # Before a connection is made: it surely has not got the mail.
    "unavailable": Act(lambda _: _at(Phase.CONNECT, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))),
    "uncertain": Act(_disconnected),
}
FAILURES = [word for word in ACTS if word != "accept"]
_OPTIONS = ["name", "script", "repeat", "fails_every", "seed", "chances", "retry_after_seconds"]
