"""Every error that mailengine raises itself, all under `MailengineError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .outcomes import Outcome


class MailengineError(Exception):
    """The family: `except MailengineError` catches all that mailengine raises by itself."""


class InvalidMail(MailengineError, ValueError):
    """Mail that can't be sent as it is: a bad header, address or attachment. Nothing was queued."""


class InvalidAddress(InvalidMail):
    """An address that no mail can be sent to."""


class IdempotencyConflict(MailengineError, ValueError):
    """The idempotency key is known, with other content. Nothing was queued."""


class RequestUnderWay(MailengineError):
    """The same request, under the same idempotency key, is being done at this moment. Ask again."""


class UnknownName(MailengineError, ValueError):
    """A name that the project does not define; the message names the nearest that it does."""

    def __init__(self, what: str, name: object, *, known: Iterable[str], mend: str) -> None:
        super().__init__(f"{what} is called {name!r}.{did_you_mean(name, known)} {mend}")


class UnknownProvider(UnknownName):
    """No such alias in `MAILENGINE["PROVIDERS"]`."""

    def __init__(self, name: object, *, known: Iterable[str]) -> None:
        super().__init__("no provider", name, known=known, mend='Add others to MAILENGINE["PROVIDERS"].')


class UnknownStream(UnknownName):
    """No such stream in `MAILENGINE["STREAMS"]`."""

    def __init__(self, name: object, *, known: Iterable[str]) -> None:
        super().__init__("no stream", name, known=known, mend='Add others to MAILENGINE["STREAMS"].')


class UnknownAudience(UnknownName):
    """No function was registered under this name with `@mailengine.audience`."""

    def __init__(self, name: object, *, known: Iterable[str]) -> None:
        super().__init__(
            "no audience",
            name,
            known=known,
            mend='Register one with @mailengine.audience("name") in a module named audiences.py of an installed app.',
        )


class UnknownTemplate(MailengineError, ValueError):
    """None of the files that a mail template is made of could be found."""


class DatabaseLost(MailengineError):
    """The database failed, and did not come back in the time of a run. What could not be recorded is in the log."""


class NotSent(MailengineError):
    """`send_direct_email()` could not hand the mail over; `outcome` says why, `message` is its row."""

    def __init__(self, text: str, *, outcome: Outcome | None = None, message: object = None) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.message = message


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A sentence that names the known name nearest to `name`, otherwise all that are known; empty where none is."""
    names = [str(other) for other in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(sorted(names))}." if names else ""
