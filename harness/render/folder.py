"""The reports of a folder: from its records, and from what changed in them."""

from __future__ import annotations

from pathlib import Path

from harness.judging.expected_failures import judge
from harness.judging.snapshots import load_side
from harness.judging.tokenizers import told_apart
from harness.matrix import load_matrix, load_surroundings
from harness.records import read_all, write_atomically
from harness.records.store import AHEAD, BOUNDARIES, ENVIRONMENTS
from harness.render import ahead, changes, sweep
from harness.render.environments import environments
from harness.render.frames import load_rows
from harness.render.pages import documents


def render_reports(reports: Path, before: str | None = None) -> list[Path]:
    """Renders all records below the folder of the reports into it; returns the paths written.

    Raises:
        FileNotFoundError: there is no folder of records.
        ValueError: there are no records, or `before` is no place of records.
    """
    if before:
        compare(reports, before)
    texts = report_texts(reports)
    for path, text in texts.items():
        write_atomically(path, text)
    return list(texts)


def rendered(reports: Path) -> list[str]:
    """Renders the records of a folder beside what was measured there; says what was written.

    Other records alone make no report: that is said, too.
    """
    if any((reports / "results").glob("transformers-*.jsonl")):
        return [str(path) for path in render_reports(reports)]
    return [f"No report: {reports / 'results'} has no records of the matrix."]


def report_texts(reports: Path) -> dict[Path, str]:
    """Path -> text of the reports that a folder's records and last comparison make.

    Raises:
        FileNotFoundError: there is no folder of records.
        ValueError: there are no records.
    """
    rows = load_rows()
    records = [judge(r, rows.expected) for r in told_apart(read_all(reports / "results"))]
    folder = reports / BOUNDARIES
    between = told_apart(read_all(folder)) if folder.is_dir() else []
    made = documents(
        records,
        rows,
        changes.read(reports / changes.FILE),
        [judge(record, rows.expected) for record in between],
        sweep.known(sweep.read_all(reports / "sweep")),
        environments(reports / ENVIRONMENTS, load_surroundings(), rows.expected),
        ahead.read(reports / AHEAD, load_matrix().releases[-1].version, rows.expected),
    )
    return {reports / name: text for name, text in made.items()}


def compare(reports: Path, before: str) -> None:
    """Keeps what changed in the records since `before`, beside the reports, for `report_texts`.

    Records that did not change at all leave the last comparison standing: once they are committed,
    they are their own before.

    Args:
        reports: their folder.
        before: see `harness.judging.snapshots.load_side`.

    Raises:
        ValueError: `before` is no place of records.
    """
    results = reports / "results"
    old, new = list(load_side(before, results).records), told_apart(read_all(results))
    if old != new:
        text = changes.written(changes.contents(old, new, load_rows().expected))
        write_atomically(reports / changes.FILE, text)
