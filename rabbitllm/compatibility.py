"""What the compatibility matrix found for a transformers release, if a summary is packaged.

The summary is `compatibility.json` beside this module:

    {"cells": [{"architecture": "gemma2", "transformers": "5.21.1", "attention": "sdpa",
                "device": "cpu", "status": "fail"}, ...]}

with a cell for each architecture, release, backend and device that was measured. "pass" is the only
status that is good; "not-run" and "env-error" say nothing.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

SUMMARY = Path(__file__).with_name("compatibility.json")
SILENT = ("not-run", "env-error")


def remarks(release: str, summary: Path = SUMMARY) -> list[str]:
    """Sentences on what works with this transformers release; the first is the conclusion.

    Args:
        release: of transformers.
        summary: the file described above.
    """
    if not summary.is_file():
        return ["no table packaged"]
    cells = [c for c in json.loads(summary.read_text())["cells"] if c["status"] not in SILENT]
    here = [cell for cell in cells if cell["transformers"] == release]
    if not here:
        measured = ", ".join(dict.fromkeys(cell["transformers"] for cell in cells)) or "none"
        return [f"transformers {release} was not measured (measured: {measured})"]
    by_architecture: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in here:
        by_architecture[cell["architecture"]].append(cell)
    advice = [text for name, own in by_architecture.items() if (text := _advice(name, own))]
    count = len(by_architecture)
    return [
        f"transformers {release}: {count - len(advice)} of {count} architectures pass everywhere",
        *advice,
    ]


def _advice(architecture: str, cells: list[dict[str, Any]]) -> str | None:
    """What to avoid; None if everything passes."""
    good = [cell for cell in cells if cell["status"] == "pass"]
    bad = [cell for cell in cells if cell["status"] != "pass"]
    if not bad:
        return None
    found = ", ".join(f"{c['attention']} on {c['device']}: {c['status']}" for c in bad)
    names = dict.fromkeys(cell["attention"] for cell in good)
    better = [name for name in names if name not in {cell["attention"] for cell in bad}]
    if better:
        return f"{architecture} needs {' or '.join(better)} ({found})"
    return f"{architecture} does not pass ({found})"
