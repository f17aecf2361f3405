"""What two releases of transformers differ in, as code on top of them sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BUILDS, REFUSED = "builds", "no, "
"""A fact of each model type, which says "yes" or "no" and why; how a refusal begins."""
INTERFACES = ("caches", "masks", "layers", "rope", "attention")
ANSWERS = ("tokens", "logits")
"""Subjects that are no model types: those of `harness.stock.snapshot`, `harness.stock.answers`."""
QUESTIONS = "questions: digest"
"""The fact that tells whether two releases were asked the same."""
ROUNDING = 2e-5
"""The largest difference of two logits that counts as rounding, as a fraction of the largest.

As for golden values; releases and backends differ by up to 3e-6.
"""
SHORT = 80
"""Characters of token ids that are said."""


@dataclass(frozen=True)
class Difference:
    """Something that changed.

    Attributes:
        subject: a model type, or one of `INTERFACES` or `ANSWERS`.
        what: such as "config rope_theta" or "Cache.crop"; of answers, who gave them.
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
    return found + _answers(before, after)


def _by_owner(facts: Mapping[str, str]) -> dict[tuple[str, str], dict[str, str]]:
    """(subject, class or function; empty for a model type) -> its facts by name."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for fact, value in facts.items():
        subject, _, what = fact.partition(": ")
        if subject in ANSWERS or fact == QUESTIONS:
            continue
        owner = what.partition(".")[0] if subject in INTERFACES else ""
        found.setdefault((subject, owner), {})[what] = value
    return found


def _answers(before: Mapping[str, str], after: Mapping[str, str]) -> list[Difference]:
    """Who answers otherwise, if both were asked, and asked the same."""
    asked = before.get(QUESTIONS)
    if asked is None or asked != after.get(QUESTIONS):
        return [Difference(subject, "all", "not compared: asked otherwise") for subject in ANSWERS]
    found = []
    for fact in sorted({*before, *after}):
        subject, _, who = fact.partition(": ")
        if subject in ANSWERS and (how := _other(subject, before.get(fact), after.get(fact))):
            found.append(Difference(subject, who, how))
    return found


def _other(subject: str, before: str | None, after: str | None) -> str:
    """How an answer differs; empty if it does not."""
    if before == after:
        return ""
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before.startswith(REFUSED) or after.startswith(REFUSED):
        return " -> ".join(a if a.startswith(REFUSED) else "answers" for a in (before, after))
    ours, theirs = json.loads(before), json.loads(after)
    return _other_ids(ours, theirs) if subject == "tokens" else _off(ours, theirs)


def _other_ids(before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> str:
    """Of token ids by text: how many texts have others, and those of the shortest."""
    texts = sorted((text for text in before if before[text] != after[text]), key=len)
    ids = f"{before[texts[0]]} -> {after[texts[0]]}"
    shown = f": {ids}" if len(ids) <= SHORT else ""
    return f"other ids of {len(texts)} of {len(before)} texts, such as {texts[0]!r}{shown}"


def _off(before: Sequence[float], after: Sequence[float]) -> str:
    """How far logits are from others; empty if that is rounding."""
    largest = max(map(abs, before))
    off = [abs(a - b) / largest for a, b in zip(before, after, strict=True)]
    if all(distance <= ROUNDING for distance in off):  # which a NaN is not
        return ""
    return f"off by up to {max(off):.2g} of the largest logit"


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
