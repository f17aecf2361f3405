"""What a check found, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rabbitllm.releases.checkup import Break, Row
from rabbitllm.releases.markdown import escape_markdown
from rabbitllm.releases.verdicts import CHECKS

VERSION = 1
"""Of the JSON, which `check.schema.json` beside this file describes. A field that goes, or comes to
mean something else, makes it another; one that comes does not."""
SIGNS = {"pass": "\N{CHECK MARK}", "fail": "\N{BALLOT X}", "skip": "\N{MIDDLE DOT}"}
COLORS = {"good": "brightgreen", "bad": "red", "not-run": "lightgrey"}


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        model: as the user named it.
        dtype: of the computation.
        shrunk: whether it was of tiny layers with weights of no training.
        golden: the release that gave what is right; empty if none is good.
        rows: of releases, in order.
        breaks: where checks broke.
    """

    model: str
    dtype: str
    shrunk: bool
    golden: str
    rows: Sequence[Row]
    breaks: Sequence[Break]

    @property
    def status(self) -> str:
        """Of all: "bad" if a release is, else "not-run" if one did not run, else "good"."""
        found = {row.status for row in self.rows}
        return next(status for status in ("bad", "not-run", "good") if status in found)

    @property
    def summary(self) -> str:
        """As "tiny: 24 of 25 releases good; logits broke in 5.4.0 (last good: 5.3.0)"."""
        count = sum(row.status == "good" for row in self.rows)
        parts = [
            f"{', '.join(b.checks)} broke in {b.bad} (last good: {b.good})" for b in self.breaks
        ]
        return "; ".join([f"{self.model}: {count} of {len(self.rows)} releases good", *parts])


def machine(report: Report) -> dict[str, Any]:
    """What `check.schema.json` describes."""
    return {
        "version": VERSION,
        "model": report.model,
        "dtype": report.dtype,
        "shrunk": report.shrunk,
        "golden_release": report.golden,
        "status": report.status,
        "releases": [
            {
                "release": row.release,
                "status": row.status,
                "reason": row.reason,
                "note": row.note,
                "day": row.day,
                "versions": dict(row.versions),
                "checks": {r.check: {"status": r.status, "detail": r.detail} for r in row.results},
            }
            for row in report.rows
        ],
        "breaks": [
            {
                "checks": list(b.checks),
                "last_good": b.good,
                "first_bad": b.bad,
                "could_not_run": list(b.skipped),
                "detail": b.detail,
            }
            for b in report.breaks
        ],
    }


def as_json(report: Report) -> str:
    """The report for machines."""
    return json.dumps(machine(report), ensure_ascii=False, indent=1) + "\n"


def heading(report: Report) -> list[str]:
    """What is said above the table."""
    shrunk = "Of tiny layers with the real config, with seeded random weights instead of its own."
    right = f"What is right is what transformers {report.golden} gave"
    nothing = "No release is good, so nothing is known to be right"
    return [
        report.summary,
        *([shrunk] if report.shrunk else []),
        f"{right if report.golden else nothing}; {report.dtype}, on CPU.",
    ]


def reason(row: Row) -> str:
    """What is wrong in a release, of the first check that fails; else what is odd, or nothing."""
    failed = (f"{r.check}: {r.detail}" for r in row.results if r.status == "fail")
    return next(failed, row.reason or row.note)


def cells(row: Row) -> list[str]:
    """A row's columns: the release, a sign for each check, what is wrong."""
    signs = {result.check: SIGNS[result.status] for result in row.results}
    return [row.release, *(signs.get(name, SIGNS["skip"]) for name in CHECKS), reason(row)[:300]]


COLUMNS = ("transformers", *CHECKS, "what is wrong")
LEGEND = f"{SIGNS['pass']} passes, {SIGNS['fail']} fails, {SIGNS['skip']} did not run."


def markdown(report: Report) -> str:
    """The report for people, as a document of Markdown."""
    rows = [[escape_markdown(text) for text in cells(row)] for row in report.rows]
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    lines = [f"| {' | '.join(line)} |" for line in table]
    return "\n".join(
        [*(f"{escape_markdown(line)}\n" for line in heading(report)), *lines, "", LEGEND, ""]
    )


def html(report: Report) -> str:
    """The report for people, as a page that needs no other file."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in COLUMNS)
    body = "".join(
        f'<tr class="{row.status}"><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>\n"
        for row in report.rows
        for first, *rest in [cells(row)]
    )
    said = "".join(f"<p>{escape(line)}</p>\n" for line in heading(report))
    title = escape(f"{report.model} over releases of transformers")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        "<style>body{font:16px sans-serif;margin:2em}td,th{padding:.3em .6em;text-align:left}"
        ".bad{background:#fdd}.not-run{color:#555}</style>\n"
        f"<h1>{title}</h1>\n{said}<table>\n<tr>{head}</tr>\n{body}</table>\n<p>{LEGEND}</p>\n"
    )


def badge(report: Report) -> str:
    """An endpoint for shields.io."""
    newest = report.rows[-1]
    text = {"good": "works", "bad": "broken", "not-run": "not run"}[newest.status]
    contents = {
        "schemaVersion": 1,
        "label": f"transformers {newest.release}",
        "message": text,
        "color": COLORS[newest.status],
    }
    return json.dumps(contents) + "\n"


def issue(report: Report, before: Mapping[str, Any] | None) -> str:
    """The text of an issue about what changed, its title first; empty where nothing did.

    Args:
        report: of now.
        before: the JSON of an earlier report; None if there is none, which counts as all good.
    """
    rows = before["releases"] if before else []
    statuses = {row["release"]: row["status"] for row in rows}
    changed = [r for r in report.rows if r.status != statuses.get(r.release, "good")]
    if not changed:
        return ""
    lines = [
        f"- {row.release}: {statuses.get(row.release, 'new')} -> {row.status}"
        + (f" ({escape_markdown(reason(row))})" if reason(row) else "")
        for row in changed
    ]
    title = f"{report.model}: {len(changed)} of {len(report.rows)} transformers releases changed"
    return "\n".join([title, "", *lines, "", markdown(report)])


FILES = {"check.md": markdown, "check.html": html, "check.json": as_json, "badge.json": badge}
"""Name of a file in the folder of reports -> what writes it."""
