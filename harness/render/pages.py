"""The documents made from records: Markdown, HTML, JSON and a badge."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import product
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.judging.tokenizers import TOKENIZER
from harness.records import Record
from harness.render import ahead, changes, frames, machine, speed
from harness.render.failures import failures
from harness.render.families import counts, families
from harness.render.formats import formats
from harness.render.markdown import markdown_link, markdown_table
from harness.render.payload import figure, payload
from harness.render.ranges import in_words
from harness.render.statuses import LOOKS, caption, look
from harness.render.summary import listed, row_caption, row_summary, sentences
from harness.render.text import shorten
from harness.render.tokenizers import tokenizers
from rabbitllm.releases.markdown import escape_markdown

FIRST = "sdpa"
"""The backend shown first: what transformers takes unless asked otherwise."""
EDGES = ["status", "release", "since", "until"]
"""Columns of the grid that say where a range ends."""
SCRIPTS = ("drawer.js", "chart.js", "matrix.js")


def environment(page: str) -> Environment:
    """The template environment of a page: Markdown escapes as Markdown, all else as HTML."""
    markdown = page.endswith(".md")
    finalize: Callable[[Any], Any] | None = escape_markdown if markdown else None
    made = Environment(
        loader=PackageLoader("harness.render"),
        autoescape=not markdown,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    made.filters |= {
        "digest": digest,
        "failure_lines": failure_lines,
        "figure": figure,
        "shorten": shorten,
        "table": markdown_table,
        "tokenizer_lines": tokenizer_lines,
    }
    made.globals["look"] = look
    return made


def digest(text: str) -> str:
    """How a content security policy names a script or style that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def tokenizer_lines(found: pd.DataFrame) -> list[list[str]]:
    """The tokenizers as the Markdown shows them: causes cut short, links."""
    return [
        [
            *(row[name] for name in ("tokenizer", "architectures", "releases")),
            shorten(row["cause"]),
            markdown_link(row["side"], row["link"]) if row["link"] else row["side"],
        ]
        for row in found.to_dict(orient="records")
    ]


def failure_lines(found: pd.DataFrame) -> list[list[str]]:
    """The failures as the Markdown shows them: captions, causes cut short, links."""
    return [
        [
            caption(row["status"]),
            *(row[name] for name in ("architectures", "where", "releases")),
            shorten(row["cause"]),
            markdown_link(row["side"], row["link"]) if row["link"] else row["side"],
        ]
        for row in found.to_dict(orient="records")
    ]


def matrices(frame: pd.DataFrame, rows: frames.Rows, beyond: pd.DataFrame) -> list[dict[str, Any]]:
    """The matrix of each backend: its releases, newest first, and its rows by family.

    Before the releases comes what is ahead of them. The place of a cell is that in both tables, one
    behind the other.
    """
    texts = frame.drop_duplicates("architecture").set_index("architecture")
    both = pd.concat([frame, beyond])
    shown = both[["anchor", "release", "status", "old"]].to_dict(orient="records")
    heads = ahead.heads(beyond)
    found = []
    for run_on in frames.columns(frame):
        part = frame[frame["run_on"] == run_on]
        table = frames.matrix(frame, run_on)
        axis = list(table.columns)
        further = frames.matrix(beyond, run_on).reindex(index=table.index) + len(frame)
        by_family: dict[str, list[dict[str, Any]]] = {}
        for name in table.index:
            cells, before = (
                [None if pd.isna(at) else shown[at] | {"place": at} for at in places.loc[name]]
                for places in (table, further)
            )
            own = part[part["architecture"] == name]
            statuses = [c["status"] if c else "no-data" for c in cells]
            model_type = rows.model_types.get(name, "")
            row = {
                "architecture": name,
                "model_type": model_type,
                "checkpoints": rows.examples.get(name, ()),
                "text": " ".join(
                    [*texts.loc[name, ["family", "model_class", "family_class"]], model_type]
                ),
                "summary": row_summary(statuses, axis, frames.reach(own)),
                "spark": speed.sparkline(own, axis),
                "cells": [*before[::-1], *cells[::-1]],
            }
            by_family.setdefault(texts.loc[name, "family"], []).append(row)
        backend = part["backend"].iloc[0]
        note = rows.notes.get(backend, "")
        head = {"run_on": run_on, "backend": backend, "releases": axis[::-1], "note": note}
        head["ahead"] = [(heads[version], version) for version in further.columns[::-1]]
        found.append(head | {"families": list(by_family.items())})
    chosen = next((m for m in found if m["backend"] == FIRST), found[0])
    return [matrix | {"chosen": matrix is chosen} for matrix in found]


def by_device(frame: pd.DataFrame, beyond: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """For each device, a table of rows in words: architectures by backend.

    Behind the releases of all backends comes what is ahead of them.
    """
    everywhere = frames.grid(frame)
    found = []
    for device, part in everywhere.groupby("device", sort=False):
        words = part.groupby(["architecture", "run_on"], sort=False)[EDGES].apply(
            lambda own: row_caption(
                own["status"].tolist(), own["release"].tolist(), frames.reach(own)
            )
        )
        axes = {run_on: frames.releases(own) for run_on, own in part.groupby("run_on", sort=False)}
        table = words.unstack("run_on")[list(axes)].loc[list(part["architecture"].unique())]
        heads = {
            run_on: f"{str(run_on).partition(' on ')[0]}, {in_words(axis, axis)}"
            for run_on, axis in axes.items()
        }
        table = table.rename(columns=heads)
        for (version, called), run_on in product(ahead.heads(beyond).items(), axes):
            own = beyond[(beyond["release"] == version) & (beyond["run_on"] == run_on)]
            if not own.empty:
                statuses = own.set_index("architecture")["status"].reindex(table.index)
                backend = str(run_on).partition(" on ")[0]
                table[f"{backend}, {called} ({version})"] = [
                    caption("no-data" if pd.isna(status) else status) for status in statuses
                ]
        found.append((str(device), table.reset_index()))
    return found


def legend(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every status with how many cells have it."""
    found = frame["status"].value_counts()
    return [
        asdict(entry) | {"status": status, "count": int(found.get(status, 0))}
        for status, entry in LOOKS.items()
    ]


def contents(
    records: Iterable[Record],
    rows: frames.Rows,
    changed: dict[str, Any] | None,
    between: Iterable[Record],
    further: Iterable[Record],
) -> dict[str, Any]:
    """What the pages show: sentences, tables and cells, in a stable order."""
    frame = timed(frames.cells(records, rows, between))
    beyond = timed(ahead.beside(frame, further, rows))
    table = families(frame, rows)
    newest = frame.sort_values("time", kind="stable").iloc[-1]
    shown: dict[str, Any] = {
        "summary": sentences(frame),
        "families": table,
        "examples": [
            (name, rows.model_types.get(name, ""), ", ".join(rows.examples[name]))
            for name in frames.arrange(frame["architecture"], rows.architectures)
            if name in rows.examples
        ],
        "matrices": matrices(frame, rows, beyond),
        "devices": by_device(frame, beyond),
        "ahead": [
            (version, called, beyond.loc[beyond["release"] == version, "time"].max()[:10])
            for version, called in ahead.heads(beyond).items()
        ],
        "notes": {n: t for n, t in rows.notes.items() if n in set(frame["backend"])},
        "failures": failures(frame),
        "by_family": counts(frame, "family"),
        "by_release": counts(frame, "release"),
        "legend": legend(frame),
        "measured": {
            "first": frame["time"].min(),
            "last": newest["time"],
            "engine": newest["engine_hash"],
            "versions": {name: version(frame, name) for name in ("python", "torch")},
            "hardware": [name for name in frame["hardware"].unique() if name],
        },
        "frame": frame,
        "both": pd.concat([frame, beyond], ignore_index=True),
        "changes": None,
    }
    if changed:
        axis = frames.releases(frame)
        shown["changes"] = changed | {"table": changes.grouped(changed, axis, rows)}
    return shown


def timed(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells with what they say of speed."""
    return frame.assign(
        rates=frame["checks"].map(speed.rates), wire=frame["checks"].map(speed.wire)
    )


def version(frame: pd.DataFrame, package: str) -> str:
    """The versions of a package that the records were made with, as text."""
    found = {versions.get(package, "") for versions in frame["versions"]} - {""}
    return listed(sorted(found, key=frames.by_version))


def documents(
    records: Iterable[Record],
    rows: frames.Rows | None = None,
    changed: dict[str, Any] | None = None,
    between: Iterable[Record] = (),
    swept: dict[str, Any] | None = None,
    environments: pd.DataFrame | None = None,
    further: Iterable[Record] = (),
) -> dict[str, str]:
    """File name -> text of every document.

    Args:
        records: judged, tokenizers told apart, see `harness.judging.tokenizers`.
        rows: what matrix/*.toml says.
        changed: see `harness.render.changes`; None leaves that part out.
        between: judged, see `harness.render.frames.cells`.
        swept: see `harness.render.sweep.known`.
        environments: see `harness.render.environments`; None leaves that part out.
        further: judged, of what is ahead of the releases, see `harness.render.ahead`.

    Raises:
        ValueError: there are no records.
    """
    rows, known = rows or frames.Rows(), list(records)
    models = [record for record in known if record.backend != TOKENIZER]
    others = [record for record in known if record.backend == TOKENIZER]
    shown = contents(models, rows, changed, between, further)
    shown["tokenizers"] = tokenizers(others, rows.expected)
    shown["formats"] = formats(models, rows.architectures)
    shown["environments"] = pd.DataFrame() if environments is None else environments
    frame = shown["frame"]
    html = environment("html")
    loader = html.loader
    assert loader is not None
    looks = {status: asdict(entry) for status, entry in LOOKS.items()}
    script = "\n".join(loader.get_source(html, f"script/{name}")[0] for name in SCRIPTS)
    style = loader.get_source(html, "style.css")[0]
    data = payload(shown["both"]) | {"looks": looks, "swept": swept or {}}
    inlined = {"script": f'"use strict";\n{script}', "style": style, "data": data}
    sign = machine.badge(frame)
    return {
        "compatibility.md": render("compatibility.md", shown),
        "compatibility.html": render("compatibility.html", shown | inlined),
        "compatibility.json": machine.compatibility(frame),
        "compatibility.svg": render("badge.svg", sign),
    }


def render(page: str, shown: dict[str, Any]) -> str:
    """A page from its template."""
    return environment(page).get_template(f"{page}.j2").render(shown)
