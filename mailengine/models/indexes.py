"""Indexes on what is still to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement
from django.db.models import Q


class OpenIndex(models.Index):
    """An index on the rows in some states alone: it stays small however many finished rows there are.

    Partial on PostgreSQL. MariaDB and MySQL have no partial indexes, and SQLite can't use one with bound parameters;
    there it is a whole index that begins with the status. `is_covered_by` names another whose whole form begins with
    the same columns and serves there for both; SQLite then gets the partial form, which costs it next to nothing.
    """

    def __init__(
        self, *, fields: Sequence[str], statuses: Sequence[str], name: str, is_covered_by: str | None = None
    ) -> None:
        self.statuses = list(statuses)
        self.is_covered_by = is_covered_by
        super().__init__(fields=fields, name=name, condition=Q(status__in=self.statuses))

    def deconstruct(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        options = {"fields": self.fields, "statuses": self.statuses, "name": self.name}
        return path, (), {**options, "is_covered_by": self.is_covered_by} if self.is_covered_by else options

    def create_sql(
        self, model: type[models.Model], schema_editor: BaseDatabaseSchemaEditor, using: str = "", **kwargs: Any
    ) -> Statement:
        vendor = schema_editor.connection.vendor
        if vendor == "postgresql" or (vendor == "sqlite" and self.is_covered_by):
            return super().create_sql(model, schema_editor, using=using, **kwargs)
        whole = models.Index(fields=["status", *self.fields], name=self.name)
        return whole.create_sql(model, schema_editor, using=using, **kwargs)
