"""What is done very often, by straight SQL: to build a query or an object costs Django ten times what it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections, models
from django.db.models.constants import OnConflict


def insert_copies(
    prototype: models.Model, rows: Iterable[Sequence[Any]], *, columns: Sequence[str], types: Sequence[str], using: str
) -> int:
    """Write a copy of an unsaved object for each of `rows`, which gives the values of `columns`.

    Returns how many were written; those that a unique constraint forbids are passed over. `types` are the columns'
    types on PostgreSQL, where one statement takes all rows as one array for each column.
    """
    connection, meta = connections[using], prototype._meta
    own = [field for name in columns for field in meta.concrete_fields if field.name == name]
    shared = [field for field in meta.concrete_fields if field not in own]
    constants = [field.get_db_prep_save(getattr(prototype, field.attname), connection) for field in shared]
    prepared = [
        [field.get_db_prep_save(value, connection) for field, value in zip(own, row, strict=True)] for row in rows
    ]
    if not prepared:
        return 0
    names = ", ".join(connection.ops.quote_name(str(field.column)) for field in [*own, *shared])
    verb = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    insert = f"{verb} {connection.ops.quote_name(meta.db_table)} ({names})"
    ending = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
    marks = ", ".join(["%s"] * len(constants))
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            arrays = ", ".join(f"%s::{kind}[]" for kind in types)
            select = f"SELECT row.*, {marks} FROM unnest({arrays}) AS row"  # noqa: S608  types and marks alone
            cursor.execute(f"{insert} {select} {ending}", [*constants, *map(list, zip(*prepared, strict=True))])
        else:
            values = f"VALUES ({', '.join(['%s'] * len(own))}, {marks})"
            cursor.executemany(f"{insert} {values} {ending}", [[*row, *constants] for row in prepared])
        return int(cursor.rowcount)


def update_rows(
    model: type[models.Model], rows: Iterable[Sequence[Any]], *, columns: Sequence[str], keys: Sequence[str], using: str
) -> None:
    """Set `columns` in many rows, in one round trip where the driver can; each of `rows` gives columns, then keys."""
    connection, meta = connections[using], model._meta
    fields = [field for name in (*columns, *keys) for field in meta.concrete_fields if field.name == name]
    prepared = [
        [field.get_db_prep_save(value, connection) for field, value in zip(fields, row, strict=True)] for row in rows
    ]
    marks = [f"{connection.ops.quote_name(str(field.column))} = %s" for field in fields]
    sets, wheres = ", ".join(marks[: len(columns)]), " AND ".join(marks[len(columns) :])
    update = f"UPDATE {connection.ops.quote_name(meta.db_table)} SET {sets} WHERE {wheres}"  # noqa: S608  own names
    with connection.cursor() as cursor:
        cursor.executemany(update, prepared)


class Asked:
    """A question to the database that is built once and asked with every turn: does a queryset have any row now?"""

    def __init__(self, queryset: models.QuerySet[Any]) -> None:
        self.using = queryset.db
        query = queryset.order_by().values_list("pk")[:1].query
        self.sql, self.params = query.get_compiler(self.using).as_sql()

    def is_any(self) -> bool:
        with connections[self.using].cursor() as cursor:
            cursor.execute(self.sql, self.params)
            return cursor.fetchone() is not None
