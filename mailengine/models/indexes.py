"""Indexes on what is still to do, and on what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement
from django.db.models import Q

BRIN_PAGES = 32
"""Of 8 kB: some 2,000 entries of the ledger."""
_NOTHING = "DO 0"
"""A statement that does nothing, on MariaDB and MySQL."""


class OpenIndex(models.Index):
    """An index on the rows in some states alone: it stays small however many finished rows there are.

    Partial on PostgreSQL. MariaDB and MySQL have no partial indexes, and SQLite can't use one with bound parameters;
    there it is a whole index that begins with the status. `is_covered_by` names another whose whole form serves there
    for both: MariaDB and MySQL then get none, and SQLite the partial form, which costs it next to nothing.
    `is_sparse`: the partial form leaves out the rows without a value in the first of the fields.
    """

    def __init__(
        self,
        *,
        fields: Sequence[str],
        statuses: Sequence[str],
        name: str,
        is_covered_by: str | None = None,
        is_sparse: bool = False,
    ) -> None:
        self.statuses = list(statuses)
        self.is_covered_by = is_covered_by
        self.is_sparse = is_sparse
        condition = Q(status__in=self.statuses)
        if is_sparse:
            condition &= Q((f"{fields[0]}__isnull", False))
        super().__init__(fields=fields, name=name, condition=condition)

    def deconstruct(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        options: dict[str, Any] = {"fields": self.fields, "statuses": self.statuses, "name": self.name}
        if self.is_covered_by:
            options["is_covered_by"] = self.is_covered_by
        if self.is_sparse:
            options["is_sparse"] = True
        return path, (), options

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Statement:
        vendor = schema_editor.connection.vendor
        if vendor == "mysql" and self.is_covered_by:
            return Statement(_NOTHING)
        if vendor == "postgresql" or (vendor == "sqlite" and self.is_covered_by):
            return super().create_sql(model, schema_editor, using=using, **kwargs)
        others = [name for name in self.fields if name != "status"]
        whole = models.Index(fields=["status", *others], name=self.name)
        return whole.create_sql(model, schema_editor, using=using, **kwargs)

    def remove_sql(self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, **kwargs: Any) -> Any:
        if schema_editor.connection.vendor == "mysql" and self.is_covered_by:
            return Statement(_NOTHING)
        return super().remove_sql(model, schema_editor, **kwargs)


class TimeIndex(models.Index):
    """An index on the instant at which rows were entered, in a table that grows at its end: what is new is found by it.

    On PostgreSQL a BRIN: it says of each few pages between which instants their rows lie, so a new row costs it next to
    nothing. Where pages of old rows are used again it goes on to find what is newer than some instant.
    """

    def __init__(self, *, field: str, name: str) -> None:
        self.field = field
        super().__init__(fields=[field], name=name)

    def deconstruct(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", (), {"field": self.field, "name": self.name}

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Statement:
        if schema_editor.connection.vendor != "postgresql":
            return super().create_sql(model, schema_editor, using=using, **kwargs)
        statement = super().create_sql(model, schema_editor, using=" USING brin", **kwargs)
        # New pages are taken in by the autovacuum; until then they are read as if they held anything.
        statement.parts["extra"] = f" WITH (pages_per_range = {BRIN_PAGES}, autosummarize = on)"  # type: ignore[assignment]
        return statement
