"""What is done very often, by straight SQL: to build a query or an object costs Django ten times what it asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.base import ModelState
from django.db.models.constants import OnConflict
from django.db.models.signals import post_save, pre_save

from ..clock import DatabaseNow, now_sql, read_now

M = TypeVar("M", bound=models.Model)


def insert(row: models.Model, *, using: str) -> None:
    """Write a new row as `row.save(force_insert=True)` does, signals included, for a third of what that costs.

    A field that is `db_now()` is that instant by the database's clock afterwards.
    """
    signal = {"instance": row, "raw": False, "using": using, "update_fields": None}
    pre_save.send(type(row), **signal)
    with transaction.mark_for_rollback_on_error(using=using):
        _insert(row, connections[using])
    row._state.adding, row._state.db = False, using
    post_save.send(type(row), created=True, **signal)


def _insert(row: models.Model, connection: BaseDatabaseWrapper) -> None:
    meta, can_return = row._meta, connection.features.can_return_columns_from_insert
    if not can_return:
        _read_clock(row, connection)
    fields: list[Any] = [field for field in meta.concrete_fields if field is not meta.auto_field]
    values = {field.name: field.pre_save(row, add=True) for field in fields}
    returned = [field for field in fields if isinstance(values[field.name], DatabaseNow)]
    returned += [meta.auto_field] if meta.auto_field else []
    marks, parameters = _alike(type(row), values, connection)
    table = connection.ops.quote_name(meta.db_table)
    statement = f"INSERT INTO {table} ({', '.join(marks)}) VALUES ({', '.join(marks.values())})"  # noqa: S608  own names
    if returned and can_return:
        statement += f" RETURNING {', '.join(_names(returned, connection))}"
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        if returned:
            written = cursor.fetchone() if can_return else [cursor.lastrowid]
            for field, value in zip(returned, read([written], returned, connection)[0], strict=True):
                setattr(row, field.attname, value)


def _read_clock(row: models.Model, connection: BaseDatabaseWrapper) -> None:
    """Ask the clock beforehand, for a database that can't say what it wrote."""
    for field in row._meta.concrete_fields:
        now = getattr(row, field.attname)
        if isinstance(now, DatabaseNow):
            setattr(row, field.attname, read_now(connection.alias) + timedelta(seconds=now.seconds))


def insert_copies(
    prototype: models.Model, columns: Mapping[str, Sequence[str | None]], *, unique: Sequence[str], using: str
) -> int:
    """Write copies of an unsaved object that differ in these columns; how many were written.

    `columns` has all values of each field by its name, as text in the form that the database reads: words, UUIDs in
    hexadecimal, JSON documents. Copies that the constraint on the `unique` fields forbids are passed over.
    """
    connection, meta = connections[using], prototype._meta
    given = {field: list(columns[field.name]) for field in meta.concrete_fields if field.name in columns}
    if not any(given.values()):
        return 0
    # A column without any value costs an array, or a parameter for each row, and is the same in all rows.
    own = {field: values for field, values in given.items() if any(value is not None for value in values)}
    shared = [field for field in meta.concrete_fields if field not in own]
    constants = [
        None if field in given else field.get_db_prep_save(getattr(prototype, field.attname), connection)
        for field in shared
    ]
    names = ", ".join(connection.ops.quote_name(str(field.column)) for field in [*own, *shared])
    verb = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    insert = f"{verb} {connection.ops.quote_name(meta.db_table)} ({names})"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            select, parameters = _select_from_lines(own, constants, connection)
            # Without their names it would look into each unique index before it writes.
            target = ", ".join(_names(_fields(type(prototype), unique), connection))
            cursor.execute(f"{insert} {select} ON CONFLICT ({target}) DO NOTHING", parameters)
        else:
            ending = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
            marks = ", ".join(["%s"] * (len(own) + len(constants)))
            rows = zip(*own.values(), strict=True)
            cursor.executemany(f"{insert} VALUES ({marks}) {ending}", [[*row, *constants] for row in rows])
        return int(cursor.rowcount)


def _select_from_lines(
    own: Mapping[models.Field[Any, Any], list[str | None]], constants: list[Any], connection: BaseDatabaseWrapper
) -> tuple[str, list[Any]]:
    """SQL for rows of these columns and then the constants, and its parameters: one for each column."""
    columns = [_lines(values, _kind(field, connection)) for field, values in own.items()]
    arrays = ", ".join(sql for sql, _parameter in columns)
    marks = ", ".join(["%s"] * len(constants))
    select = f"SELECT row.*, {marks} FROM unnest({arrays}) AS row"  # noqa: S608  types and marks alone
    return select, [*constants, *[parameter for _sql, parameter in columns]]


def _lines(values: list[str | None], kind: str) -> tuple[str, Any]:
    """SQL for an array of these texts, and its parameter: one text for the server to split, with a line for each.

    To turn a list into an array costs psycopg ten times as much.
    """
    if "" not in values:
        lines = "\n".join(value or "" for value in values)
        if lines.count("\n") == len(values) - 1:
            return f"string_to_array(%s, chr(10), '')::{kind}[]", lines
    return f"%s::{kind}[]", values


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
    connection = connections[using]
    rows, columns, alike = _apart(rows, columns, keep=1)
    fields = _fields(model, columns)
    marks, params = _alike(model, {**constants, **alike}, connection)
    insert = f"INSERT INTO {connection.ops.quote_name(model._meta.db_table)}"
    insert += f" ({', '.join([*_names(fields, connection), *marks])})"
    shared = ", ".join(marks.values())
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            source, arrays = _as_arrays(fields, rows, connection)
            cursor.execute(f"{insert} SELECT row.*, {shared} FROM {source} AS row", [*params, *arrays])  # noqa: S608
        else:
            values = f"VALUES ({', '.join(['%s'] * len(fields))}, {shared})"
            cursor.executemany(f"{insert} {values}", [[*row, *params] for row in _prepared(fields, rows, connection)])


def insert_all(rows: Sequence[models.Model], *, using: str) -> None:
    """Write new rows of one model whose keys are known, by one statement where the driver can; without signals."""
    if not rows:
        return
    meta = rows[0]._meta
    fields = [*(field for field in meta.concrete_fields if not field.primary_key), meta.pk]
    values = [[getattr(row, field.attname) for field in fields] for row in rows]
    insert_rows(type(rows[0]), values, columns=[field.name for field in fields], constants={}, using=using)
    for row in rows:
        row._state.adding, row._state.db = False, using


def insert_long(rows: Sequence[models.Model], *, using: str) -> None:
    """Write new rows of one model by one statement, and give them the keys that the database makes; without signals.

    `bulk_create()` does it by arrays on PostgreSQL, of which long texts cost driver and server more than the row.
    """
    connection, meta = connections[using], rows[0]._meta
    given = [field for field in meta.concrete_fields if not field.primary_key]
    values: Sequence[Sequence[Any]] = [[getattr(row, field.attname) for field in given] for row in rows]
    # Each mark costs the driver more than what stands there: columns in which all are alike have one, where they can.
    can_select = connection.vendor == "postgresql"
    values, names, alike = _apart(values, [field.name for field in given], keep=1 if can_select else len(given))
    fields = _fields(type(rows[0]), names)
    own = [value for row in _prepared(fields, values, connection) for value in row]
    shared, params = _alike(type(rows[0]), alike, connection)
    columns = ", ".join([*_names(fields, connection), *shared])
    marks = f"({', '.join(['%s'] * len(fields))})"
    (key,) = _names([meta.pk], connection)
    insert = f"INSERT INTO {connection.ops.quote_name(meta.db_table)} ({columns})"
    if can_select:
        kinds = ", ".join(f"%s::{_kind(field, connection)}" for field in fields)  # the first row's are those of all
        lines = ", ".join([f"({kinds})", *[marks] * (len(rows) - 1)])
        insert += f" SELECT {', '.join(['row.*', *shared.values()])} FROM (VALUES {lines}) AS row"  # noqa: S608  own names
    else:
        insert += f" VALUES {', '.join([marks] * len(rows))}"
    with connection.cursor() as cursor:
        cursor.execute(f"{insert} RETURNING {key}", [*params, *own])
        for row, (made,) in zip(rows, cursor.fetchall(), strict=True):
            row.pk = made
            row._state.adding, row._state.db = False, using


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
    connection = connections[using]
    rows, names, alike = _apart(rows, [*columns, *keys], keep=len(keys))
    fields = _fields(model, names)
    marks, params = _alike(model, {**constants, **alike}, connection)
    quoted = _names(fields, connection)
    count = len(quoted) - len(keys)
    table = connection.ops.quote_name(model._meta.db_table)
    sets = [f"{name} = {mark}" for name, mark in marks.items()]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            source, arrays = _as_arrays(fields, rows, connection)
            sets += [f"{name} = row.{name}" for name in quoted[:count]]
            where = " AND ".join(f"{table}.{name} = row.{name}" for name in quoted[count:])
            source = f"{source} AS row ({', '.join(quoted)})"
            cursor.execute(f"UPDATE {table} SET {', '.join(sets)} FROM {source} WHERE {where}", [*params, *arrays])  # noqa: S608
        else:
            sets += [f"{name} = %s" for name in quoted[:count]]
            where = " AND ".join(f"{name} = %s" for name in quoted[count:])
            update = f"UPDATE {table} SET {', '.join(sets)} WHERE {where}"  # noqa: S608
            cursor.executemany(update, [[*params, *row] for row in _prepared(fields, rows, connection)])


def _apart(
    rows: Sequence[Sequence[Any]], names: Sequence[str], *, keep: int
) -> tuple[Sequence[Sequence[Any]], list[str], dict[str, Any]]:
    """The rows without the columns in which all of them are alike, what is left of `names`, and those columns.

    The last `keep` columns stay. Most mail of one commit went to one provider, at its first try, and was accepted.
    """
    first, rest = rows[0], rows[1:]
    last = len(names) - keep
    same = {place for place in range(last) if all(row[place] == first[place] for row in rest)}
    if not same:
        return rows, list(names), {}
    left = [place for place in range(len(names)) if place not in same]
    shorter = [[row[place] for place in left] for row in rows]
    return shorter, [names[place] for place in left], {names[place]: first[place] for place in sorted(same)}


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
    params: list[Any]
    if connection.vendor == "postgresql":  # one text for any number of them
        condition, params = f"= ANY(%s::{_kind(key_field, connection)}[])", [_array(key_field, values, connection)]
    else:
        params = [key_field.get_db_prep_value(value, connection) for value in values]
        condition = f"IN ({', '.join(['%s'] * len(params))})"
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


def instances(
    model: type[M], fields: Sequence[models.Field[Any, Any]], rows: Iterable[Sequence[Any]], *, using: str
) -> list[M]:
    """Objects of these rows, which have the values of all `fields`.

    As `Model.from_db()` makes them, but for the signals of each: it takes ten times as long.
    """
    names = [field.attname for field in fields]
    made = []
    for row in rows:
        instance = model.__new__(model)
        instance.__dict__.update(zip(names, row, strict=True))
        instance._state = ModelState()
        instance._state.db, instance._state.adding = using, False
        made.append(instance)
    return made


def another(prototype: M, fields: Mapping[str, Any]) -> M:
    """A new object like that one but for these fields, by their `attname`; to make it costs a tenth of the usual."""
    made = type(prototype).__new__(type(prototype))
    made.__dict__.update(prototype.__dict__, **fields)
    made._state = ModelState()
    return made


def _alike(
    model: type[models.Model], constants: Mapping[str, Any], connection: BaseDatabaseWrapper
) -> tuple[dict[str, str], list[Any]]:
    """What stands for each of these columns in a statement, and its parameters; `db_now()` has none."""
    marks: dict[str, str] = {}
    params = []
    for name, value in constants.items():
        (field,) = _fields(model, [name])
        (column,) = _names([field], connection)
        if isinstance(value, DatabaseNow):
            marks[column] = now_sql(connection, value.seconds)
        else:
            marks[column] = "%s"
            params.append(field.get_db_prep_save(value, connection))
    return marks, params


def _fields(model: type[models.Model], names: Iterable[str]) -> list[models.Field[Any, Any]]:
    return [model._meta.get_field(name) for name in names]  # type: ignore[misc]  # no relation from afar


def _names(fields: Iterable[models.Field[Any, Any]], connection: BaseDatabaseWrapper) -> list[str]:
    return [connection.ops.quote_name(str(field.column)) for field in fields]


def _as_arrays(
    fields: Sequence[models.Field[Any, Any]], rows: Iterable[Sequence[Any]], connection: BaseDatabaseWrapper
) -> tuple[str, list[Any]]:
    """The SQL that makes these rows of arrays, one for each column, which PostgreSQL reads best; and the arrays."""
    kinds = [f"%s::{_kind(field, connection)}[]" for field in fields]
    columns = zip(fields, zip(*rows, strict=True), strict=True)
    return f"unnest({', '.join(kinds)})", [_array(field, values, connection) for field, values in columns]


def _kind(field: models.Field[Any, Any], connection: BaseDatabaseWrapper) -> str:
    """The type of such a value; texts have no length here, or PostgreSQL would cut them without a word."""
    if isinstance(field, models.CharField | models.TextField):
        return "text"
    return str((field.rel_db_type if field.is_relation else field.cast_db_type)(connection))


def _array(field: models.Field[Any, Any], values: Iterable[Any], connection: BaseDatabaseWrapper) -> Any:
    """These values as one parameter."""
    target = field.target_field if isinstance(field, models.ForeignKey) else field
    if isinstance(target, models.UUIDField):
        return f"{{{','.join(value.hex for value in values)}}}"  # the driver takes ten times as long for each
    if isinstance(target, models.BinaryField):
        elements = ("NULL" if value is None else f'"\\\\x{bytes(value).hex()}"' for value in values)
        return f"{{{','.join(elements)}}}"
    if isinstance(target, models.JSONField):
        return [target.get_db_prep_save(value, connection) for value in values]
    return list(values)


def _prepared(
    fields: Sequence[models.Field[Any, Any]], rows: Iterable[Sequence[Any]], connection: BaseDatabaseWrapper
) -> list[Sequence[Any]]:
    """The rows as a driver takes them; texts and whole numbers are that already."""
    as_they_are = (models.CharField, models.TextField, models.IntegerField)
    changed = [(place, field) for place, field in enumerate(fields) if not isinstance(field, as_they_are)]
    prepared: list[Sequence[Any]] = []
    for row in rows:
        values = list(row)
        for place, field in changed:
            values[place] = field.get_db_prep_save(values[place], connection)
        prepared.append(values)
    return prepared


class Asked:
    """A question to the database that is built once and asked with every turn: does this statement give any row now?

    Without a statement, none.
    """

    def __init__(self, sql: str, params: Iterable[Any], *, using: str) -> None:
        self.sql, self.params, self.using = sql, list(params), using

    def is_any(self) -> bool:
        if not self.sql:
            return False
        with connections[self.using].cursor() as cursor:
            cursor.execute(self.sql, self.params)
            return cursor.fetchone() is not None
