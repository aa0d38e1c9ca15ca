"""The receiving side: Postmark's API and an SMTP relay on 127.0.0.1, which keep every mail and have a bad day."""

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


@dataclass
class Outage:
    """The time that Postmark was down."""

    began_at: float = 0.0
    ended_at: float = 0.0
    tries: int = 0


class Receiver:
    """Both servers in a process of their own, up within the `with` block.

    The bad day, for an audience of `mails`: early on Postmark hangs up a few times, with and without having taken the
    mail; after a fifth of them it answers 503, until the relay has taken as many; then it asks for a pause. The relay
    finds a mailbox busy now and then. Neither knows the addresses in `refused`.
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
        """The entries of MAILERS that lead here: `postmark` and `relay`."""
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
    """Both servers, and what goes wrong at them."""

    def __init__(self, *, mails: int, refused: Collection[str]) -> None:
        fifth = mails // 5
        self._outage = Outage()
        self._fifth = fifth
        self._throttled_calls = range(2 * fifth, 2 * fifth + THROTTLED_CALLS)
        self._faults = {
            fifth // 4: Fault.ACCEPT_AND_HANG_UP,
            fifth // 3: Fault.HANG_UP,
            fifth // 2: Fault.ACCEPT_AND_HANG_UP,
        }
        self._calls = 0
        self.postmark = ESPServer(behave=self._postmark)
        self.postmark.inactive.update(refused)
        self.relay = SMTPServer(answer=self._relay)
        self.relay.replies.update(dict.fromkeys(refused, "550 5.1.1 No such user"))
        self._open = ExitStack()

    def __enter__(self) -> BadDay:
        self._open.enter_context(self.postmark)
        self._open.enter_context(self.relay)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def mailers(self) -> dict[str, dict[str, Any]]:
        # Patient, since a handover that was given up on a slow machine may have gone.
        return {"postmark": self.postmark.mailer("postmark", timeout=30), "relay": self.relay.mailer(timeout=30)}

    def mail_count(self) -> int:
        return len(self.postmark.accepted) + len(self.relay.accepted)

    def copies(self) -> list[Copy]:
        return sorted(self._copies(), key=lambda copy: copy.at)

    def outage(self) -> Outage:
        return self._outage

    def _copies(self) -> Iterator[Copy]:
        for mail in self.postmark.accepted:
            yield from (Copy("postmark", mail.mailengine_id, address, mail.at) for address in mail.recipients)
        for item in self.relay.accepted:
            yield from (Copy("relay", item.mailengine_id, address, item.at) for address in item.recipients)

    def _postmark(self, _mail: Mail) -> Answer | Fault | None:
        self._calls += 1
        if self._is_down():
            self._outage.tries += 1
            return Answer(503, "Service Unavailable")
        if self._calls in self._faults:
            return self._faults[self._calls]
        if self._calls - self._outage.tries in self._throttled_calls:
            return Answer(429, "Too Many Requests", {"Retry-After": "1"})
        return None

    def _is_down(self) -> bool:
        if self._calls < self._fifth or self._outage.ended_at:
            return False
        self._outage.began_at = self._outage.began_at or time.monotonic()
        if len(self.relay.accepted) >= self._fifth:
            self._outage.ended_at = time.monotonic()
        return not self._outage.ended_at

    def _relay(self, step: Step) -> str | None:
        is_busy = step.verb == "RCPT" and step.earlier_count % BUSY_EVERY == BUSY_EVERY - 1
        return "450 4.2.1 Mailbox busy, come back later" if is_busy else None
