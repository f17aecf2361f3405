"""The matrix for machines: compatibility.json, which `rabbitllm doctor` reads, and a badge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.render.frames import grid, reach, releases
from harness.render.summary import listed, passing, row_summary
from harness.render.text import shorten

SCHEMA = 1
REASON = 160
"""Most characters of a reason."""


def compatibility(frame: pd.DataFrame) -> str:
    """The text of compatibility.json: a line for each cell, and the ranges that they make.

    `{"schema": 1, "engine": hash, "newest": UTC time, "cells": [...], "ranges": [...]}`. A cell has
    "architecture", "transformers" (the release), "attention", "device", "status" and, where it does
    not pass, "reason". A range has "architecture", "attention", "device" and, in words, "verdict".
    "attention" is what `attn_implementation` takes, with "uncompiled " before it where
    torch.compile was off: by that name alone users get it compiled, which is not what ran.
    `rabbitllm/compatibility.schema.json` is its schema.
    """
    everywhere = grid(frame)
    names = ["architecture", "run_on"]
    words = {
        place: row_summary(row["status"].tolist(), row["release"].tolist(), reach(row))
        for place, row in everywhere.groupby(names, sort=False)
    }
    named = frame.rename(columns={"release": "transformers"})
    shown = ["architecture", "transformers", "attention", "device"]
    rows = named.sort_values("place", kind="stable").drop_duplicates(names)
    places = rows[["architecture", "attention", "device", "run_on"]]
    newest = frame.sort_values("time", kind="stable").iloc[-1]
    lines = {
        "cells": [
            dict(zip(shown, place, strict=True)) | verdict(status, causes)
            for *place, status, causes in named[[*shown, "status", "causes"]].to_numpy()
        ],
        "ranges": [
            {
                "architecture": architecture,
                "attention": attention,
                "device": device,
                "verdict": words[architecture, run_on],
            }
            for architecture, attention, device, run_on in places.to_numpy()
        ],
    }
    head = {"schema": SCHEMA, "engine": newest["engine_hash"], "newest": newest["time"]}
    parts = [f"{dumps(name)}: {dumps(value)}" for name, value in head.items()]
    parts += [
        f"{dumps(name)}: [\n" + ",\n".join(map(dumps, rows)) + "\n]" for name, rows in lines.items()
    ]
    return "{" + ",\n".join(parts) + "}\n"


def dumps(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def verdict(status: str, causes: list[Mapping[str, str]]) -> dict[str, str]:
    """The status of a cell and, unless it passes, the reason on one line."""
    reason = shorten(" ".join(cause["why"] for cause in causes), REASON)
    return {"status": status} | ({"reason": reason} if reason else {})


def badge(frame: pd.DataFrame) -> dict[str, Any]:
    """What the badge says: families that work on the newest release, and whether all do.

    Its title, which has more room, says with which backends.
    """
    everywhere = grid(frame)
    newest = releases(everywhere)[-1]
    ran = everywhere[(everywhere["release"] == newest) & (everywhere["tone"] != "none")]
    works = passing(ran).groupby("family").all()
    label = f"transformers {newest}"
    message = f"{works.sum()} of {len(works)} families work" if len(works) else "not measured"
    with_one_of = listed(list(dict.fromkeys(frame["attention"])), "or")
    title = f"{label}: {message}" + (f", with {with_one_of}" if len(works) else "")
    # About 6.5 pixels a character at 11 pixels, and 6 on each side.
    left, right = (round(6.5 * len(text)) + 12 for text in (label, message))
    good = bool(len(works) and works.all())
    shown = {"label": label, "message": message, "title": title}
    return shown | {"left": left, "right": right, "good": good}
