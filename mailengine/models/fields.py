"""JSON as it stands in a row, whoever wrote it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models

from ..errors import InvalidMail

DEEPEST = 100
"""Levels that are read: more than any door lets in, and few enough for all that reads and writes them."""
TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


class Unreadable(Mapping[str, Any]):
    """JSON that can't be read. Its row can be loaded and saved as it is; who looks inside gets `InvalidMail`."""

    def __init__(self, document: object, why: str) -> None:
        self.document = document
        self.why = why

    def __repr__(self) -> str:
        return f"<unreadable JSON: {self.why}>"

    def __getitem__(self, key: object) -> Any:
        raise self._error()

    def __iter__(self) -> Iterator[str]:
        raise self._error()

    def __len__(self) -> int:
        return 1  # it is not empty

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _error(self) -> InvalidMail:
        return InvalidMail(f"its row holds JSON that can't be read: {self.why}")


class JSONField(models.JSONField):
    """Django's, but a document that can't be read fails its own row, where it is used, and no query for many rows.

    The front door lets none in. SQL can: nested too deeply for the interpreter, or with a number too long for it.
    """

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.JSONField", args, kwargs  # to the database it is that

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        if value is None:
            return None
        try:
            found = super().from_db_value(value, expression, connection)
        except RecursionError:
            return Unreadable(value, TOO_DEEP)
        except ValueError as error:
            return Unreadable(value, str(error))
        return found if _is_within(found, DEEPEST) else Unreadable(value, TOO_DEEP)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if isinstance(value, Unreadable):
            return value.document
        return super().get_db_prep_value(value, connection, prepared)


def document_of(value: Any) -> str | None:
    """The JSON that stands in a row for this value; None, which is NULL there, for None."""
    return None if value is None else _encoder.encode(value)


_encoder = DjangoJSONEncoder()


def _is_within(value: Any, levels: int) -> bool:
    """Whether it is nested at most so deep. Level by level: a function that calls itself is what can't read it."""
    level = [value]
    for _ in range(levels):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return True
    return False
