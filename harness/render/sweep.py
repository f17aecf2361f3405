"""The report of the sweeps, rendered from their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.records import write_atomically
from harness.render.frames import by_version
from harness.render.pages import render as render_page
from harness.render.text import shorten
from harness.sweep.results import MEANINGS, Result, read

PAGE = "sweep.md"


def read_all(folder: Path) -> list[Result]:
    """The results of all releases in a folder."""
    return [result for path in folder.glob("transformers-*.jsonl") for result in read(path)]


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """The number of types by release and outcome, the newest release first."""
    table = pd.crosstab(frame["release"], frame["outcome"])
    table = table.reindex(columns=list(MEANINGS), fill_value=0)
    table.insert(0, "types", table.sum(axis=1))
    return table.loc[sorted(table.index, key=by_version, reverse=True)]


def others(frame: pd.DataFrame) -> pd.DataFrame:
    """The types that are not bit-equal and why, the worst outcome first."""
    found = frame[frame["outcome"] != "bit-equal"].copy()
    raised = found["exception"].where(found["exception"] != "SweepError", "")
    said = raised + raised.ne("").map({True: ": ", False: ""}) + found["message"]
    found["why"] = found["explained"].where(found["explained"] != "", said)
    rank = {outcome: place for place, outcome in enumerate(reversed(MEANINGS))}
    order = found["outcome"].map(rank).sort_values(kind="stable").index
    return found.loc[order, ["model_type", "outcome", "why"]]


def known(results: Sequence[Result]) -> dict[str, Any]:
    """What the page of the matrix says of model types that are no row of it: of the newest release.

    `{"release": ..., "types": {model type: [outcome, why]}, "meanings": {outcome: words}}`, or
    nothing without results.
    """
    if not results:
        return {}
    frame = pd.DataFrame(map(asdict, results)).sort_values("model_type", ignore_index=True)
    release = max(frame["release"], key=by_version)
    newest = frame[frame["release"] == release]
    told = others(newest).set_index("model_type")["why"]
    types = {
        name: [outcome, shorten(told.get(name, ""))]
        for name, outcome in newest[["model_type", "outcome"]].to_numpy()
    }
    return {"release": release, "types": types, "meanings": MEANINGS}


def render(results: Sequence[Result], folder: Path) -> Path:
    """Writes the report into `folder`; returns its path.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError(f"{folder} holds no results of a sweep. Make some: tox -e sweep")
    path = folder / PAGE
    write_atomically(path, page(results))
    return path


def page(results: Sequence[Result]) -> str:
    """The report of the results, of which there is one at least."""
    frame = pd.DataFrame(map(asdict, results)).sort_values("model_type", ignore_index=True)
    table = counts(frame)
    newest = frame[frame["release"] == table.index[0]]
    equal = newest[newest["outcome"] == "bit-equal"]
    shown = {
        "counts": table.reset_index(names="transformers"),
        "release": table.index[0],
        "equal": list(equal["model_type"]),
        "blocks": int(equal["streamed"].sum()),
        "embeddings": int(equal["embedding_streams"].sum()),
        "heads": int(equal["head_streams"].sum()),
        "composite": list(equal[equal["written_by"] != equal["model_class"]]["model_type"]),
        "others": others(newest),
        "cut": shorten,
        "meanings": MEANINGS,
    }
    return render_page(PAGE, shown)
