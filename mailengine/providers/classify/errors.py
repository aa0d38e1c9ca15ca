"""What an error shows when one looks at it: its causes, its number, where it was raised."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from traceback import walk_tb

OUR_HOST = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
)
"""This host has run out of something: nobody else's fault."""


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that.

    urllib3 keeps a cause in `reason`, requests in the first argument, botocore in `kwargs`.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        first = following.args[0] if following.args else None
        kept = getattr(following, "kwargs", None)
        of_botocore = kept.get("error") if isinstance(kept, Mapping) else None
        causes = (following.__cause__, getattr(following, "reason", None), first, of_botocore)
        following = next(
            (cause for cause in causes if isinstance(cause, BaseException) and id(cause) not in seen), None
        )


def number_in(chain: Iterable[BaseException]) -> int | None:
    """The operating system's error number, the deepest there is."""
    numbers = [each.errno for each in chain if isinstance(each, OSError) and each.errno]
    return numbers[-1] if numbers else None


def was_in(error: BaseException, function: str | re.Pattern[str]) -> bool:
    """Whether a function whose name matches raised the error, or let it pass."""
    return any(re.fullmatch(function, frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__))


def is_of(error: BaseException, class_name: str) -> bool:
    """Whether it is of a class with this name; for libraries that need not be installed."""
    return any(cls.__name__ == class_name for cls in type(error).__mro__)


def text_of(error: BaseException) -> str:
    """What it says; nothing, where saying it fails."""
    with suppress(Exception):  # anybody's __str__
        return str(error)
    return ""


def first_argument(error: BaseException) -> str:
    return str(error.args[0]) if error.args else ""
