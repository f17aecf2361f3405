"""From matrix/sweep.toml to a small config of any model type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from harness.judging.pattern import fits
from harness.matrix import MATRIX
from harness.tables import TableError, read_table


@dataclass(frozen=True)
class Field:
    """A rule for config fields.

    Attributes:
        names: of the fields, in a model's config or in one inside it.
        value: what numbers do not stay above, or what switches are set to.
    """

    names: tuple[str, ...]
    value: int | bool


@dataclass(frozen=True)
class Type:
    """What some model types need besides the rules.

    Attributes:
        names: the model types, as in config.json.
        config: arguments of their config classes, in place of what the rules say.
        why: the rules do not suffice.
    """

    names: tuple[str, ...]
    config: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Known:
    """A failure that is understood.

    Attributes:
        names: the model types that fail so.
        pattern: text found in "Exception: message", see `harness.judging.pattern`.
        why: they do.
    """

    names: tuple[str, ...]
    pattern: str
    why: str


@dataclass(frozen=True)
class Rules:
    """The tables of matrix/sweep.toml."""

    field: tuple[Field, ...] = ()
    type: tuple[Type, ...] = ()
    known: tuple[Known, ...] = ()

    def config(self, model_type: str) -> PretrainedConfig:
        """A small config of the type, by its own class."""
        values = {name: rule.value for rule in self.field for name in rule.names}
        own = next((row.config for row in self.type if model_type in row.names), {})
        cls = CONFIG_MAPPING[model_type]
        return cls(**merged(shrunk(cls(), values), own))

    def explanation(self, model_type: str, failure: str) -> str:
        """Why the type fails in this way, or nothing if that is not known."""
        rows = (row for row in self.known if model_type in row.names)
        return next((row.why for row in rows if fits(row.pattern, failure)), "")


def shrunk(config: PretrainedConfig, values: Mapping[str, int | bool]) -> dict[str, Any]:
    """The fields of a config that `values` names, made small.

    All others are left out, for those that are derived to be derived again.
    """
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            if inner := shrunk(value, values):
                found[name] = {"model_type": value.model_type, **inner}
        elif name in values and type(value) is type(values[name]):
            limit = values[name]
            found[name] = limit if isinstance(limit, bool) else min(value, limit)
    return found


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables as one; `over` wins, field by field."""
    result = {**under, **over}
    for name in under.keys() & over.keys():
        if isinstance(under[name], dict) and isinstance(over[name], dict):
            result[name] = merged(under[name], over[name])
    return result


def load_rules(path: Path = MATRIX / "sweep.toml") -> Rules:
    """The rules.

    Raises:
        TableError: naming the row that is wrong, and how.
    """
    rules = read_table(Rules, path)
    names = [name for rule in rules.field for name in rule.names]
    types = [name for row in rules.type for name in row.names]
    for name in [*names, *types]:
        if names.count(name) > 1 or types.count(name) > 1:
            raise TableError(f"{path.parent.name}/{path.name}: {name!r} is stated twice")
    return rules
