"""What a release's answer is worth, beside what is right: a status for each check."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rabbitllm.releases.golden import Golden

Status = Literal["pass", "fail", "skip"]
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that another order of summation makes, as a fraction of the largest logit."""

SHOWN, BEFORE = 100, 8
"""Characters that are shown of what differs; places before the first that does."""


@dataclass(frozen=True)
class Result:
    """What became of a check.

    Attributes:
        check: its name, see `CHECKS`.
        status: "skip" is what did not run.
        detail: what is wrong, or why it did not run; of logits that pass, how equal they are.
    """

    check: str
    status: Status
    detail: str = ""


Answer = Mapping[str, Any]


Verdict = tuple[Status, str]


class Check(NamedTuple):
    """How an answer is judged.

    Attributes:
        steps: of the probe: what one raised fails the check. The last gives what is looked at.
        needs: steps without which there is nothing to look at.
        judge: takes an answer, the golden values (the answer's own where there are none), and the
            tolerance.
    """

    steps: tuple[str, ...]
    needs: tuple[str, ...]
    judge: Callable[[Answer, Answer, float], Verdict]


def judge(answer: Answer, golden: Golden | None, dtype: str) -> list[Result]:
    """The result of each check.

    Args:
        answer: of `rabbitllm.releases.probe`.
        golden: what is right; None if this answer may become that.
        dtype: of the computation.
    """
    values = answer if golden is None else golden.values
    return [
        Result(name, *_judged(check, answer, values, TOLERANCE[dtype]))
        for name, check in CHECKS.items()
    ]


def _judged(check: Check, answer: Answer, values: Answer, tolerance: float) -> Verdict:
    errors = answer["errors"]
    if lacking := [step for step in check.needs if step in errors]:
        return "skip", f"no {lacking[0]}"
    if blamed := [errors[step] for step in check.steps if step in errors]:
        return "fail", blamed[0]
    looked_at = check.steps[-1]
    if looked_at in values and looked_at not in answer:
        return "fail", "there is none any more"
    if looked_at not in answer and looked_at != "model":
        return "skip", "there is none"
    return check.judge(answer, values, tolerance)


def _load(answer: Answer, values: Answer, tolerance: float) -> Verdict:
    return "pass", ""


def _weights(answer: Answer, values: Answer, tolerance: float) -> Verdict:
    wrong = [f"{kind}: {_few(names)}" for kind, names in answer["weights"].items() if names]
    return ("fail", f"random weights ({'; '.join(wrong)})") if wrong else ("pass", "")


def _same(name: str) -> Callable[[Answer, Answer, float], Verdict]:
    def check(answer: Answer, values: Answer, tolerance: float) -> Verdict:
        ours, right = answer[name], values.get(name)
        return ("pass", "") if ours == right else ("fail", _differing(ours, right))

    return check


def _differing(ours: Any, right: Any) -> str:
    """What two texts or lists have from a little before the first place where they differ."""
    if not (isinstance(ours, str | list) and isinstance(right, str | list)):
        return f"{ours!r:.{SHOWN}} instead of {right!r:.{SHOWN}}"
    place = next(
        (n for n, (a, b) in enumerate(zip(ours, right, strict=False)) if a != b),
        min(len(ours), len(right)),
    )
    begin = max(0, place - BEFORE)
    words = [f"{value[begin:]!r:.{SHOWN}}" for value in (ours, right)]
    shown = f", from place {begin} on," if begin else ""
    return f"{words[0]} instead of {words[1]}{shown} where place {place} is the first to differ"


def _logits(answer: Answer, values: Answer, tolerance: float) -> Verdict:
    ours, right = answer["logits"], values["logits"]
    if not math.isfinite(ours["largest"]):
        return "fail", "logits are not finite"
    if ours["digest"] == right["digest"]:
        return "pass", "same bits" if ours is not right else ""
    rows = zip(ours["values"], right["values"], strict=True)
    worst = max(abs(a - b) for row in rows for a, b in zip(*row, strict=True))
    apart = worst / max(right["largest"], 1e-30)
    return _near(apart, tolerance, "from the golden logits")


def _cached(answer: Answer, values: Answer, tolerance: float) -> Verdict:
    if answer["cached"] is None:
        return "skip", "the model returns no cache"
    return _near(answer["cached"], tolerance, "from logits without a cache")


def _attention(answer: Answer, values: Answer, tolerance: float) -> Verdict:
    """Backends that are refused are no failure unless the golden release had them."""
    worked = [b for b, apart in values.get("backends", {}).items() if not isinstance(apart, str)]
    refused = {b: why for b, why in answer["backends"].items() if isinstance(why, str)}
    for backend in worked:
        if backend in refused:
            return "fail", f"{backend} is refused: {refused[backend]}"
    measured = {b: apart for b, apart in answer["backends"].items() if b not in refused}
    if not measured:
        return "skip", "; ".join(f"{b}: {why}" for b, why in refused.items()) or "none is asked for"
    worst = max(measured, key=lambda b: measured[b])
    return _near(measured[worst], tolerance, f"between {worst} and {answer['backend']}")


def _near(apart: float, tolerance: float, what: str) -> Verdict:
    good = math.isfinite(apart) and apart <= tolerance
    return ("pass" if good else "fail"), f"{apart:.2g} of the largest logit {what}"


def _few(names: list[str]) -> str:
    left = len(names) - 3
    return ", ".join(names[:3]) + (f" and {left} more" if left > 0 else "")


MODEL = ("made", "model")
CHECKS = {
    "load": Check(MODEL, (), _load),
    "weights": Check(("weights",), MODEL, _weights),
    "logits": Check(("input", "logits"), MODEL, _logits),
    "tokens": Check(("tokens",), (*MODEL, "input"), _same("tokens")),
    "cached": Check(("cached",), (*MODEL, "input"), _cached),
    "attention": Check(("backends",), (*MODEL, "input"), _attention),
    "ids": Check(("tokenizer", "ids"), ("made",), _same("ids")),
    "chat": Check(("chat",), ("made", "tokenizer"), _same("chat")),
}
"""What is checked, in the order of the table's columns."""
