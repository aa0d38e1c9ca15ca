"""The receiving side: the APIs of two ESPs and an SMTP relay on 127.0.0.1, which keep every mail and have a bad day."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mailengine.testing import ESPServer, SMTPServer
from mailengine.testing.esp_server import Answer, Fault, Mail
from mailengine.testing.smtp_server import Step

from .reckoning import Copy

BUSY_EVERY = 12
"""Each so many-th recipient, the relay is told that the mailbox is busy."""
THROTTLED_CALLS = 3
TOO_FAST = Answer(429, "Too Many Requests", {"Retry-After": "1"})


@dataclass
class Outage:
    """The time that Mailgun was down."""

    began_at: float = 0.0
    ended_at: float = 0.0
    tries: int = 0


class Receiver:
    """The servers in a process of their own, up within the `with` block.

    The bad day, for an audience of `mails`: early on Postmark hangs up a few times, with and without having taken the
    mail, and then asks for a pause. When a fifth has arrived Mailgun answers 503, until the others have taken another
    fifth. The relay finds a mailbox busy now and then. None of them knows the addresses in `refused`.
    """

    def __init__(self, *, mails: int, refused: Collection[str]) -> None:
        # As far from the sender as on a real network, with its own interpreter and its own core.
        spawning = multiprocessing.get_context("spawn")
        self._line, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_receive, args=(theirs, mails, frozenset(refused)), name="receiver")
        self._their_line = theirs

    def __enter__(self) -> Receiver:
        self._process.start()
        self._their_line.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._line.close()
        self._process.join()

    def mailers(self) -> dict[str, dict[str, Any]]:
        """The entries of MAILERS that lead here: `mailgun`, `postmark` and `relay`."""
        return self._ask("mailers")  # type: ignore[no-any-return]

    def mail_count(self) -> int:
        return self._ask("mail_count")  # type: ignore[no-any-return]

    def copies(self) -> list[Copy]:
        """Every mail that was accepted, once for each of its addresses, in the order of arrival."""
        return self._ask("copies")  # type: ignore[no-any-return]

    def outage(self) -> Outage:
        return self._ask("outage")  # type: ignore[no-any-return]

    def _ask(self, question: str) -> Any:
        self._line.send(question)
        return self._line.recv()


def _receive(line: Connection, mails: int, refused: frozenset[str]) -> None:
    """What the process does: answer questions until whoever asks them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which then hangs up.
    with BadDay(mails=mails, refused=refused) as servers:
        try:
            while True:
                line.send(getattr(servers, line.recv())())
        except (EOFError, OSError):
            return


class BadDay:
    """The servers, and what goes wrong at them."""

    def __init__(self, *, mails: int, refused: Collection[str]) -> None:
        self._fifth = mails // 5
        self._outage = Outage()
        self._taken_before = 0
        """When the outage began, by all."""
        hour = self._fifth // 8  # of Postmark's day: it has its third of the mail
        self._postmarks_day: dict[int, Answer | Fault] = {
            hour: Fault.ACCEPT_AND_HANG_UP,
            2 * hour: Fault.HANG_UP,
            3 * hour: Fault.ACCEPT_AND_HANG_UP,
            **dict.fromkeys(range(4 * hour, 4 * hour + THROTTLED_CALLS), TOO_FAST),
        }
        self._calls = 0
        self.mailgun = ESPServer(behave=self._mailgun)
        self.postmark = ESPServer(behave=self._postmark)
        for esp in (self.mailgun, self.postmark):
            esp.inactive.update(refused)
        self.relay = SMTPServer(answer=self._relay)
        self.relay.replies.update(dict.fromkeys(refused, "550 5.1.1 No such user"))
        self._open = ExitStack()

    def __enter__(self) -> BadDay:
        for server in (self.mailgun, self.postmark, self.relay):
            self._open.enter_context(server)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def mailers(self) -> dict[str, dict[str, Any]]:
        # Patient, since a handover that was given up on a slow machine may have gone.
        return {
            "mailgun": self.mailgun.mailer("mailgun", timeout=30),
            "postmark": self.postmark.mailer("postmark", timeout=30),
            "relay": self.relay.mailer(timeout=30),
        }

    def mail_count(self) -> int:
        return sum(len(server.accepted) for server in (self.mailgun, self.postmark, self.relay))

    def copies(self) -> list[Copy]:
        return sorted(self._copies(), key=lambda copy: copy.at)

    def outage(self) -> Outage:
        self._is_down()  # it may be over, or have begun, since anybody called
        return self._outage

    def _copies(self) -> Iterator[Copy]:
        for mail in (*self.mailgun.accepted, *self.postmark.accepted):
            yield from (Copy(mail.esp, mail.mailengine_id, address, mail.at) for address in mail.recipients)
        for item in self.relay.accepted:
            yield from (Copy("relay", item.mailengine_id, address, item.at) for address in item.recipients)

    def _mailgun(self, _mail: Mail) -> Answer | None:
        if not self._is_down():
            return None
        self._outage.tries += 1
        return Answer(503, "Service Unavailable")

    def _is_down(self) -> bool:
        taken = self.mail_count()
        if taken < self._fifth or self._outage.ended_at:
            return False
        if not self._outage.began_at:
            self._outage.began_at, self._taken_before = time.monotonic(), taken
        if taken >= self._taken_before + self._fifth:
            self._outage.ended_at = time.monotonic()
        return not self._outage.ended_at

    def _postmark(self, _mail: Mail) -> Answer | Fault | None:
        self._calls += 1
        return self._postmarks_day.get(self._calls)

    def _relay(self, step: Step) -> str | None:
        is_busy = step.verb == "RCPT" and step.earlier_count % BUSY_EVERY == BUSY_EVERY - 1
        return "450 4.2.1 Mailbox busy, come back later" if is_busy else None
