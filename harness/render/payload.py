"""What the drawers of the page show, as one compact table.

Each column is a list of its distinct values and, for each cell, the place of its value in that
list: `{"values": ["pass", "fail"], "codes": [0, 0, 1]}`, a place of -1 meaning that there is none.
Versions, probes, messages and figures that many cells share are there once. The column of a check
has `names` as well, of the figures in its values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median
from typing import Any

import pandas as pd

from harness.render.speed import short
from harness.render.text import clip

COLUMNS = (
    *("architecture", "family", "release", "backend", "attention", "device"),
    *("status", "old", "causes"),
    *("message", "exception", "fingerprint", "traceback", "stderr", "probes", "versions"),
    *("hardware", "model_class", "family_class", "dtype", "engine_hash", "check_hash", "time"),
    *("seconds", "cpu_seconds", "rates", "wire"),
)


def payload(frame: pd.DataFrame) -> dict[str, Any]:
    """The table, in the order of the cells; a column for each check is in `checks`."""
    shown = frame.assign(
        probes=frame["probes"].map(figures), versions=frame["versions"].map(figures)
    )
    table: dict[str, Any] = {name: column(shown[name].map(plain)) for name in COLUMNS}
    checks = pd.DataFrame(frame["checks"].tolist(), index=frame.index)
    return table | {"checks": {str(name): check(checks[name]) for name in checks.columns}}


def column(values: pd.Series) -> dict[str, Any]:
    """A column as its distinct values and the place of each cell's among them."""
    texts = [None if empty(value) else json.dumps(value) for value in values]
    codes, found = pd.factorize(pd.Series(texts, dtype=object))
    return {"values": [json.loads(text) for text in found], "codes": codes.tolist()}


def empty(value: object) -> bool:
    """Whether there is nothing to show; a check that a cell lacks is NaN here."""
    return value is None or value != value or value in ("", [], {})


def check(results: pd.Series) -> dict[str, Any]:
    """The column of a check: what the page shows of it, figures as the list `names` says.

    Tokens per second are left out: `rates` and `wire` have them.
    """
    ran = results.dropna()
    timed = results.name == "speed"
    names = [] if timed else list(dict.fromkeys(n for found in ran for n in found["figures"]))

    def shown(result: Mapping[str, Any]) -> list[Any]:
        figures = result["figures"]
        message = ": ".join(filter(None, [result["exception"], clip(result["message"])]))
        texts = [figure(figures[name]) if name in figures else "" for name in names]
        return [result["status"], message, *texts]

    return column(results.map(shown, na_action="ignore")) | {"names": names}


def figures(table: Mapping[str, Any]) -> dict[str, str]:
    """Each figure of a table as text."""
    return {name: figure(value) for name, value in table.items()}


def plain(value: Any) -> Any:
    """A column's value as the page needs it: short figures, texts of bounded length."""
    if isinstance(value, float):
        return short(value)
    return clip(value) if isinstance(value, str) else value


def figure(value: object) -> str:
    """A figure in few characters: 3 digits of a float, the median and range of floats."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {figure(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        if value and all(isinstance(entry, float) for entry in value):
            ordered = sorted(value)
            middle = figure(median(ordered))
            return f"{middle} ({figure(ordered[0])} to {figure(ordered[-1])})"
        return ", ".join(map(figure, value))
    return clip(str(value), 2000)
