"""What two releases of transformers differ in, as code on top of them sees it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

BUILDS = "builds"
INTERFACES = ("caches", "masks", "layers", "rope", "attention")
"""Subjects that are no model types."""


@dataclass(frozen=True)
class Difference:
    """Something that changed.

    Attributes:
        subject: a model type, or one of `INTERFACES`.
        what: such as "config rope_theta" or "Cache.crop".
        how: such as "10000.0 -> 500000.0", "new", "gone", "without cache_position".
    """

    subject: str
    what: str
    how: str


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[Difference]:
    """What changed, by subject.

    Of a type that is new or cannot be built any more, and of a class that is new or gone, only that
    is said.

    Args:
        before: facts of `harness.stock.snapshot`.
        after: likewise.
    """
    old, new = _by_owner(before), _by_owner(after)
    found = []
    for subject, owner in sorted({*old, *new}):
        ours, theirs = old.get((subject, owner), {}), new.get((subject, owner), {})
        if not ours or not theirs:
            how = "gone" if ours else "new"
            found.append(Difference(subject, owner or "model type", how))
        elif ours.get(BUILDS) != theirs.get(BUILDS):
            found.append(Difference(subject, BUILDS, f"{ours[BUILDS]} -> {theirs[BUILDS]}"))
        else:
            found += [
                Difference(subject, what, _how(ours.get(what), theirs.get(what)))
                for what in sorted({*ours, *theirs})
                if ours.get(what) != theirs.get(what)
            ]
    return found


def _by_owner(facts: Mapping[str, str]) -> dict[tuple[str, str], dict[str, str]]:
    """(subject, class or function; empty for a model type) -> its facts by name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for fact, value in facts.items():
        subject, _, what = fact.partition(": ")
        owner = what.partition(".")[0] if subject in INTERFACES else ""
        found.setdefault((subject, owner), {})[what] = value
    return found


def _how(before: str | None, after: str | None) -> str:
    if before is None:
        return "new"
    if after is None:
        return "gone"
    if before.startswith("{") and after.startswith("{"):
        return "other defaults inside"  # of a config in a config
    if not (before.startswith("(") and after.startswith("(")):
        return f"{before} -> {after}"
    ours, theirs = _parameters(before), _parameters(after)
    lost, came = [p for p in ours if p not in theirs], [p for p in theirs if p not in ours]
    parts = [f"without {', '.join(lost)}"] if lost else []
    parts += [f"with {', '.join(came)}"] if came else []
    return ", ".join(parts) or "in another order"


def _parameters(signature: str) -> list[str]:
    """What a signature such as "(self, x=(1, 2), **kwargs)" takes."""
    found = re.findall(r"(?:[^,()\[\]]|\([^()]*\)|\[[^\[\]]*\])+", signature[1:-1])
    return [parameter.strip() for parameter in found]
