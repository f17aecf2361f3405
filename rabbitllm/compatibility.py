"""What the compatibility matrix found for a transformers release.

It is summed up in `compatibility.json`, which the harness writes to `reports/` and a wheel holds
beside this module:

    {"cells": [{"architecture": "gemma2", "transformers": "5.21.1", "attention": "sdpa",
                "device": "cpu", "status": "reference-broken"}, ...]}

with a cell for each architecture, release, backend and device that was measured, older releases
first. "pass" is the only status that is good; "not-run" and "env-error" say nothing.
"""

import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

PLACES = (
    Path(__file__).with_name("compatibility.json"),
    Path(__file__).parents[1] / "reports" / "compatibility.json",
)
"""Where the summary is in an installed package, and in a checkout."""
SILENT = ("not-run", "env-error")
WORDS = {
    "reference-broken": "stock fails",
    "stock-wrong": "stock wrong",
    "stock-changed": "stock changed",
}
"""Status -> what the reports call it, where that is not its own name."""


def remarks(
    release: str, devices: Collection[str] = ("cpu", "cuda"), summary: Path | None = None
) -> list[str]:
    """Sentences on what works with this transformers release; the first is the conclusion.

    Args:
        release: of transformers.
        devices: the types of device that count.
        summary: the file described above; None takes the one that is there.
    """
    found = next((path for path in (summary, *PLACES) if path and path.is_file()), None)
    if not found:
        return ["no table packaged"]
    cells = [
        cell
        for cell in json.loads(found.read_text())["cells"]
        if cell["status"] not in SILENT and cell["device"] in devices
    ]
    here = [cell for cell in cells if cell["transformers"] == release]
    if not here:
        return [f"transformers {release} was not measured ({_measured(cells)})"]
    by_architecture: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in here:
        by_architecture[cell["architecture"]].append(cell)
    advice = [text for name, own in by_architecture.items() if (text := _advice(name, own))]
    count = len(by_architecture)
    return [
        f"transformers {release}: {count - len(advice)} of {count} architectures pass everywhere",
        *advice,
    ]


def _measured(cells: list[dict[str, Any]]) -> str:
    releases = list(dict.fromkeys(cell["transformers"] for cell in cells))
    if len(releases) < 2:
        return f"measured: {''.join(releases) or 'none'}"
    return f"measured: {len(releases)} releases from {releases[0]} to {releases[-1]}"


def _advice(architecture: str, cells: list[dict[str, Any]]) -> str | None:
    """What to avoid; None if everything passes."""
    good = [cell for cell in cells if cell["status"] == "pass"]
    bad = [cell for cell in cells if cell["status"] != "pass"]
    if not bad:
        return None
    found = ", ".join(
        f"{c['attention']} on {c['device']}: {WORDS.get(c['status'], c['status'])}" for c in bad
    )
    names = dict.fromkeys(cell["attention"] for cell in good)
    better = [name for name in names if name not in {cell["attention"] for cell in bad}]
    if better:
        return f"{architecture} needs {' or '.join(better)} ({found})"
    return f"{architecture} does not pass ({found})"
