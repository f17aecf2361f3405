"""What became of a search for the release that broke a command, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rabbitllm.releases.bisection import Found
from rabbitllm.releases.trial import Trial

VERSION = 1
"""Of the JSON, which `bisect.schema.json` beside this file describes. A field that goes, or comes
to mean something else, makes it another; one that comes does not."""
LINES = 30
"""Of an output, those that people are shown."""


@dataclass(frozen=True)
class Outcome:
    """What became of a search.

    Attributes:
        command: that was tried.
        first: the trial in the release that the range begins with.
        last: in the one that it ends with.
        found: where the command broke; None if no release between the two broke it, for it fails in
            the first one, or works in the last one.
    """

    command: Sequence[str]
    first: Trial
    last: Trial
    found: Found[Trial] | None = None

    @property
    def name(self) -> str:
        """In a word, as the JSON has it."""
        if self.found:
            return "found"
        return "works-in-last" if self.first.works else "fails-in-first"


def in_words(outcome: Outcome) -> str:
    """What was found, with what the command printed in both releases."""
    first, last, found = outcome.first, outcome.last, outcome.found
    if found is None and not first.works:
        return f"The command fails in {first.release} already:\n{_tail(first.output)}"
    if found is None:
        hint = "If it fails before, name that release."
        return f"The command works in {last.release}. {hint}\n{_tail(last.output)}"
    good, bad = found.good, found.bad
    skipped = [f"could not be told: {release}" for release in found.skipped]
    outputs = [f"--- {t.release}: {t.verdict}\n{_tail(t.output)}" for t in (good, bad)]
    return "\n".join([f"last good: {good.release}, first bad: {bad.release}", *skipped, *outputs])


def as_json(outcome: Outcome) -> str:
    """What `bisect.schema.json` describes."""
    found, works = outcome.found, outcome.first.works
    good, bad = (found.good, found.bad) if found else (outcome.last, outcome.first)
    contents = {
        "version": VERSION,
        "command": list(outcome.command),
        "outcome": outcome.name,
        "last_good": _machine(good) if works else None,
        "first_bad": _machine(bad) if found or not works else None,
        "could_not_be_told": list(found.skipped) if found else [],
    }
    return json.dumps(contents, ensure_ascii=False, indent=1)


def _machine(trial: Trial) -> dict[str, Any]:
    where = trial.environment
    return {
        "release": trial.release,
        "exit_status": trial.status,
        "output": trial.output,
        "day": where.day if where else "",
        "note": where.note if where else "",
    }


def _tail(output: str) -> str:
    lines = output.rstrip().splitlines() or ["(no output)"]
    left = len(lines) - LINES
    return "\n".join([*([f"... {left} lines before"] if left > 0 else []), *lines[-LINES:]])
