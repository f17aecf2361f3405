"""Tables of TOML or JSON as dataclasses: nothing unknown, missing or mistyped passes."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


class TableError(ValueError):
    """A table does not fit its dataclass; the message names place, trouble and alternatives."""


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """The sentence for a name that is none of the available ones."""
    return f"Unknown {kind} {name!r}. Available: {', '.join(available)}"


def build(cls: type[T], table: Any, where: str = "") -> T:
    """`cls` made from a table.

    Args:
        cls: a dataclass; its type hints say what is accepted (str, int, float, bool, date, Literal,
            unions, tuple[X, ...], dict[str, X], dataclasses), its `__post_init__` what else must
            hold, by raising ValueError.
        table: field name -> value. Arrays become tuples.
        where: names the place in error messages, such as "matrix/backends.toml, backend 'sdpa'".
            Without it, they begin with the key.

    Raises:
        TableError: an unknown or missing key, or a value that is of another type or refused.
    """
    at = f"{where}: " if where else ""
    if not isinstance(table, Mapping):
        raise TableError(f"{at}expected a table, got {table!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise TableError(f"{at}{unknown('key', key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in table
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TableError(f"{at}missing {', '.join(map(repr, missing))}")
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    values = {key: convert(value, hints[key], f"{at}{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise TableError(f"{at}{error}") from error


def read_table(cls: type[T], path: Path) -> T:
    """A TOML file as one dataclass.

    Raises:
        TableError: naming file, key and what is wrong.
    """
    place, _, content = _read(path)
    return build(cls, content, place)


def read_rows(cls: type[T], path: Path, kind: str, key: str | None = "id") -> tuple[T, ...]:
    """The rows `[[kind]]` of a TOML file.

    Args:
        cls: the dataclass of a row.
        path: the file.
        kind: the name of its array of tables, the only thing that it may hold.
        key: what no two rows may share; None if rows have no name.

    Raises:
        TableError: naming file, line, row and what is wrong.
    """
    place, text, content = _read(path)
    for other in content.keys() - {kind}:
        raise TableError(f"{place}: {unknown('table', other, [kind])}")
    tables = content.get(kind, [])
    if not isinstance(tables, list):
        raise TableError(f"{place}: {kind} must be tables, each below a line [[{kind}]]")
    heading = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
    begins = [number for number, line in enumerate(text.splitlines(), 1) if heading.match(line)]
    rows: dict[object, T] = {}
    for number, table in enumerate(tables, start=1):
        # Written in another way, rows have no line of their own.
        line = f":{begins[number - 1]}" if len(begins) == len(tables) else ""
        name = table.get(key, number) if key and isinstance(table, dict) else number
        where = f"{place}{line}, {kind} {name!r}"
        row = build(cls, table, where)
        if name in rows:
            raise TableError(f"{where}: stated twice")
        rows[name] = row
    return tuple(rows.values())


def _read(path: Path) -> tuple[str, str, dict[str, Any]]:
    """What messages call a TOML file, its text and what that says."""
    place = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text("utf-8")
        return place, text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{place}: {error}") from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` asks for.

    Raises:
        TableError: it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise TableError(f"{where}: {unknown('value', value, map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, arguments, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(item, arguments[0], where) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    # Not by isinstance: True is no number here, and a moment is no day.
    if type(value) is hint:
        return value
    raise TableError(f"{where}: expected {_name(hint)}, got {value!r}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _first_that_fits(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    errors = []
    for hint in hints:
        if hint is type(None):
            if value is None:
                return None
            continue
        try:
            return convert(value, hint, where)
        except TableError as error:
            errors.append(error)
    raise errors[0]


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
