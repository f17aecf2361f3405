"""The Markdown and HTML reports, rendered from records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.records import Record, write_atomically
from harness.render import tables
from harness.render.markdown import escape_markdown, markdown_table, shorten
from harness.render.statuses import LOOKS, look
from harness.render.summary import sentences

PAGES = ("compatibility.md", "compatibility.html")


def figure(value: object) -> str:
    """Return a figure in few characters: 4 digits of a float, the size and median of a list."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {figure(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        if len(value) > 4 and all(isinstance(entry, int | float) for entry in value):
            return f"{len(value)} values, median {figure(float(pd.Series(value).median()))}"
        return ", ".join(map(figure, value))
    return str(value)


def caption(status: str) -> str:
    """Return the glyph and word of a status."""
    seen = look(status)
    return f"{seen.glyph} {seen.word}".strip()


def captions(rows: Iterable[tuple[str, list[Mapping[str, Any] | None]]]) -> list[list[str]]:
    """Return the rows of a matrix with each cell as its caption."""
    return [
        [name, *(caption(cell["status"] if cell else "no-data") for cell in line)]
        for name, line in rows
    ]


def failure_lines(failures: pd.DataFrame) -> list[list[str]]:
    """Return the failures as the Markdown shows them: captions, and causes cut short."""
    shown = {"status": failures["status"].map(caption), "cause": failures["cause"].map(shorten)}
    return failures.assign(**shown).to_numpy().tolist()


def measured(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what, where, when and how long was measured, for the page."""
    names = (
        *("model_class", "dtype", "hardware", "time", "seconds", "cpu_seconds"),
        *("engine_hash", "check_hash", "fingerprint"),
    )
    return {name: cell[name] for name in names if cell[name]}


def environment(page: str) -> Environment:
    """Return the template environment of a page: HTML escapes as HTML, Markdown as Markdown."""
    html = page.endswith(".html")
    finalize: Callable[[Any], Any] | None = None if html else escape_markdown
    made = Environment(
        loader=PackageLoader("harness.render"),
        autoescape=html,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "captions": captions,
        "failure_lines": failure_lines,
        "figure": figure,
        "measured": measured,
        "shorten": shorten,
        "table": markdown_table,
    }
    made.globals["look"] = look
    return made


def contents(records: Iterable[Record], order: tables.Order) -> dict[str, Any]:
    """Return what both pages show: sentences, tables and cells, in a stable order."""
    frame = tables.cells(records)
    rows: list[dict[str, Any]] = frame.to_dict(orient="records")  # type: ignore[assignment]
    matrices = []
    for run_on in tables.columns(frame, order):
        table = tables.matrix(frame, run_on, order)
        lines = [
            (name, [None if pd.isna(at) else rows[at] for at in positions])
            for name, positions in zip(table.index, table.to_numpy(dtype=object), strict=True)
        ]
        matrices.append(
            {
                "run_on": run_on,
                "releases": list(table.columns),
                "rows": lines,
                "note": order.notes.get(run_on.partition(" on ")[0], ""),
            }
        )
    return {
        "summary": sentences(frame, order),
        "families": tables.families(frame, order),
        "matrices": matrices,
        "failures": tables.failures(frame),
        "cells": sorted(rows, key=lambda row: row["anchor"]),
        "legend": list(LOOKS.values()),
    }


def render(
    records: Iterable[Record], folder: Path, order: tables.Order | None = None
) -> list[Path]:
    """Write the pages into `folder` and return their paths.

    Raises:
        ValueError: if there are no records.
    """
    shown = contents(records, order or tables.Order())
    written = []
    for page in PAGES:
        text = environment(page).get_template(f"{page}.j2").render(shown)
        path = folder / page
        write_atomically(path, text)
        written.append(path)
    return written
