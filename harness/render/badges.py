"""A badge for each family and model type: endpoints for shields.io, of the newest release."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.judging.changes import STATES
from harness.matrix import Architecture

FOLDER = "badges"
DEVICE, BACKENDS = "cpu", ("eager", "sdpa")
"""Whose cells count: those that every architecture is measured with."""
COLORS = {True: "brightgreen", False: "orange"}


def badges(
    cells: Iterable[Mapping[str, Any]], architectures: Iterable[Architecture], newest: str
) -> dict[str, str]:
    """File name -> text of each badge that there are cells of.

    Args:
        cells: of compatibility.json, see `harness.render.machine`.
        architectures: whose families and model types have badges.
        newest: the release.
    """
    passing: dict[str, list[bool]] = {}
    for cell in cells:
        here = (cell["transformers"], cell["device"]) == (newest, DEVICE)
        ran = STATES.get(cell["status"]) != "absent"
        if here and ran and cell["attention"] in BACKENDS:
            passing.setdefault(cell["architecture"], []).append(cell["status"] == "pass")
    found: dict[str, list[bool]] = {}
    labels: dict[str, str] = {}
    for row in architectures:
        for kind, name in (("family", row.family), ("type", row.model_type)):
            file = f"{kind}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
            labels[file] = name
            found.setdefault(file, []).extend(passing.get(row.id, []))
    return {
        file: badge(f"{labels[file]} on transformers {newest}", sum(works), len(works))
        for file, works in found.items()
        if works
    }


def badge(label: str, good: int, count: int) -> str:
    """The text of one badge.

    Args:
        label: its left side.
        good: how many cells pass.
        count: how many there are.
    """
    message = "works" if good == count else f"{good} of {count} cells pass"
    contents = {"schemaVersion": 1, "label": label, "message": message}
    return json.dumps(contents | {"color": COLORS[good == count]}) + "\n"
