"""What is ahead of the releases: transformers' main branch and pre-releases, each a column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from packaging.version import Version

from harness.judging.expected_failures import Expected, judge
from harness.judging.tokenizers import TOKENIZER, told_apart
from harness.records import Record, Store
from harness.render.frames import Rows, cells, releases
from rabbitllm.releases.selection import MAIN

NAMED = "transformers-{}.jsonl"


def versions(folder: Path) -> list[Version]:
    """Those with records in a folder, the oldest first."""
    prefix, suffix = NAMED.split("{}")
    names = (path.name for path in folder.glob(NAMED.format("*")))
    return sorted(Version(name.removeprefix(prefix).removesuffix(suffix)) for name in names)


def outdated(folder: Path, newest: str) -> list[Path]:
    """The files of versions that are not ahead any more, or are not the newest of their kind.

    Args:
        folder: of the records.
        newest: release.
    """
    known = versions(folder)
    ahead = [version for version in known if version > Version(newest)]
    kept = {version.is_devrelease: version for version in ahead}.values()
    return [folder / NAMED.format(version) for version in known if version not in kept]


def read(folder: Path, newest: str, expected: Sequence[Expected]) -> list[Record]:
    """The judged records of what is ahead of a release, models' alone; none without the folder."""
    late = outdated(folder, newest)
    stores = [Store(folder, str(version)) for version in versions(folder)]
    records = (record for s in stores if s.path not in late for record in s.read())
    return [judge(r, expected) for r in told_apart(records) if r.backend != TOKENIZER]


def beside(frame: pd.DataFrame, records: Iterable[Record], rows: Rows) -> pd.DataFrame:
    """Their cells, as `harness.render.frames.cells`, for a table of the same backends and rows.

    Args:
        frame: of releases; what it lacks has no place in its table.
        records: judged.
        rows: what matrix/*.toml says.
    """
    known = list(records)
    if not known:
        return frame.iloc[:0]
    found = cells(known, rows)
    for name in ("run_on", "architecture"):
        found = found[found[name].isin(frame[name])]
    return found.reset_index(drop=True)


def heads(ahead: pd.DataFrame) -> dict[str, str]:
    """Version -> what its column is called, the newest first."""
    called = {True: MAIN, False: "pre-release"}
    return {v: called[Version(v).is_devrelease] for v in reversed(releases(ahead))}
