"""What is done very often, by straight SQL: to build a query or an object costs Django ten times what it asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict

from ..clock import DatabaseNow, now_sql


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


def insert_rows(
    model: type[models.Model],
    rows: Sequence[Sequence[Any]],
    *,
    columns: Sequence[str],
    constants: Mapping[str, Any],
    using: str,
) -> None:
    """Write a row for each of `rows`, which gives the values of `columns`; those of `constants` are alike in all."""
    if not rows:
        return
    connection, fields = connections[using], _fields(model, columns)
    same = [field.get_db_prep_save(constants[name], connection) for name, field in _named(model, constants)]
    names = _names([*fields, *_fields(model, constants)], connection)
    marks = ", ".join(["%s"] * len(same))
    insert = f"INSERT INTO {connection.ops.quote_name(model._meta.db_table)} ({', '.join(names)})"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            source, arrays = _as_arrays(fields, rows, connection)
            cursor.execute(f"{insert} SELECT row.*, {marks} FROM {source} AS row", [*same, *arrays])  # noqa: S608
        else:
            values = f"VALUES ({', '.join(['%s'] * len(fields))}, {marks})"
            cursor.executemany(f"{insert} {values}", [[*row, *same] for row in _prepared(fields, rows, connection)])


def update_rows(
    model: type[models.Model],
    rows: Iterable[Sequence[Any]],
    *,
    columns: Sequence[str],
    keys: Sequence[str],
    constants: Mapping[str, Any],
    using: str,
) -> None:
    """Set `columns` in many rows, in one round trip where the driver can; each of `rows` gives columns, then keys.

    Those of `constants` are set alike in all.
    """
    rows = list(rows)
    if not rows:
        return
    connection, fields = connections[using], _fields(model, [*columns, *keys])
    same = [field.get_db_prep_save(constants[name], connection) for name, field in _named(model, constants)]
    names = _names(fields, connection)
    sets = [f"{name} = %s" for name in _names(_fields(model, constants), connection)]
    update = f"UPDATE {connection.ops.quote_name(model._meta.db_table)} SET"
    set_names, key_names = names[: len(columns)], names[len(columns) :]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            source, arrays = _as_arrays(fields, rows, connection)
            sets += [f"{name} = row.{name}" for name in set_names]
            where = " AND ".join(f"{update.split()[1]}.{name} = row.{name}" for name in key_names)
            sql = f"{update} {', '.join(sets)} FROM {source} AS row ({', '.join(names)}) WHERE {where}"
            cursor.execute(sql, [*same, *arrays])
        else:
            sets += [f"{name} = %s" for name in set_names]
            where = " AND ".join(f"{name} = %s" for name in key_names)
            statement = f"{update} {', '.join(sets)} WHERE {where}"
            cursor.executemany(statement, [[*same, *row] for row in _prepared(fields, rows, connection)])


def select_among(
    model: type[models.Model],
    columns: Sequence[str],
    *,
    key: str,
    values: Collection[Any],
    using: str,
    with_now: bool = False,
    ending: str = "",
) -> list[tuple[Any, ...]]:
    """The `columns` of the rows whose `key` is among these values; `with_now`: and the instant of the query, last.

    `ending` is what comes behind WHERE.
    """
    if not values:
        return []
    connection, fields = connections[using], _fields(model, columns)
    (key_field,) = _fields(model, [key])
    what = ", ".join(_names(fields, connection)) + (f", {now_sql(connection)}" if with_now else "")
    asked = [key_field.get_db_prep_value(value, connection) for value in values]
    if connection.vendor == "postgresql":  # one text for any number of them
        condition, params = "= ANY(%s)", [asked]
    else:
        condition, params = f"IN ({', '.join(['%s'] * len(asked))})", asked
    name, table = connection.ops.quote_name(str(key_field.column)), connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {what} FROM {table} WHERE {name} {condition} {ending}", params)  # noqa: S608  own names
        return read(cursor.fetchall(), [*fields, *([DatabaseNow()] if with_now else [])], connection)


def read(
    rows: Iterable[Sequence[Any]], expressions: Sequence[Any], connection: BaseDatabaseWrapper
) -> list[tuple[Any, ...]]:
    """Rows as the driver gives them, with values as Django's fields have them; on PostgreSQL most are that already."""
    readers = []
    for place, expression in enumerate(expressions):
        if isinstance(expression, models.Field):
            expression = expression.get_col(expression.model._meta.db_table)
        own = expression.get_db_converters(connection)
        converters = [*connection.ops.get_db_converters(expression), *own]
        readers += [(place, convert, expression) for convert in converters]
    if not readers:
        return [tuple(row) for row in rows]
    found = []
    for row in rows:
        values = list(row)
        for place, convert, expression in readers:
            values[place] = convert(values[place], expression, connection)
        found.append(tuple(values))
    return found


def _fields(model: type[models.Model], names: Iterable[str]) -> list[models.Field[Any, Any]]:
    return [field for _name, field in _named(model, names)]


def _named(model: type[models.Model], names: Iterable[str]) -> list[tuple[str, models.Field[Any, Any]]]:
    return [(name, model._meta.get_field(name)) for name in names]  # type: ignore[misc]  # no relation from afar


def _names(fields: Iterable[models.Field[Any, Any]], connection: BaseDatabaseWrapper) -> list[str]:
    return [connection.ops.quote_name(str(field.column)) for field in fields]


def _as_arrays(
    fields: Sequence[models.Field[Any, Any]], rows: Iterable[Sequence[Any]], connection: BaseDatabaseWrapper
) -> tuple[str, list[list[Any]]]:
    """These rows as PostgreSQL reads them best: one array for each column, and the SQL that makes rows of them."""
    kinds = [
        f"%s::{(field.rel_db_type if field.is_relation else field.cast_db_type)(connection)}[]" for field in fields
    ]
    columns = [
        [field.get_db_prep_save(value, connection) for value in values]
        if isinstance(field, models.JSONField)
        else [*values]
        for field, values in zip(fields, zip(*rows, strict=True), strict=True)
    ]
    return f"unnest({', '.join(kinds)})", columns


def _prepared(
    fields: Sequence[models.Field[Any, Any]], rows: Iterable[Sequence[Any]], connection: BaseDatabaseWrapper
) -> list[list[Any]]:
    return [
        [field.get_db_prep_save(value, connection) for field, value in zip(fields, row, strict=True)] for row in rows
    ]


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
