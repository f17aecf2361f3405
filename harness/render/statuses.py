"""How each status looks and reads on the reports, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """One status as a reader sees it.

    Attributes:
        glyph: a mark that tells statuses apart without colour.
        word: what stands beside the glyph.
        tone: "good", "known", "bad" or "none", which picks the colour.
        meaning: one sentence for the legend.
    """

    glyph: str
    word: str
    tone: str
    meaning: str


LOOKS: dict[str, Look] = {
    "pass": Look("✓", "pass", "good", "every check agrees with stock transformers"),
    "degraded": Look(
        "◐", "degraded", "bad", "right tokens, but a promise such as a full cache broke"
    ),
    "xfail": Look("△", "known failure", "known", "fails, and the cause is known"),
    "reference-broken": Look(
        "△", "stock fails", "known", "stock transformers fails here by itself"
    ),
    "stock-wrong": Look(
        "≠", "stock wrong", "bad", "stock answers otherwise than the model is defined to"
    ),
    "stock-changed": Look(
        "≠", "stock changed", "bad", "stock answers otherwise than another release does"
    ),
    "unsupported": Look("-", "unsupported", "none", "this release has no such model or backend"),
    "not-run": Look("·", "not run", "none", "did not run on this machine; says nothing either way"),
    "not-asked": Look(
        "·", "not asked", "none", "the row is measured with other backends, on purpose"
    ),
    "fail": Look("✗", "fail", "bad", "a check disagrees with stock transformers"),
    "xpass": Look("!", "passes again", "bad", "a known failure that passes now: update the list"),
    "flaky": Look("≈", "flaky", "bad", "the same cell gave different outcomes"),
    "timeout": Look("✗", "timeout", "bad", "stopped at its time limit"),
    "crash": Look("✗", "crash", "bad", "its process died"),
    "env-error": Look("✗", "no environment", "bad", "the release could not be installed"),
    "no-data": Look("", "no data", "none", "never measured, which is neither good nor bad"),
}


def look(status: str) -> Look:
    """How `status` looks; one that this version does not know counts as bad."""
    return LOOKS.get(status, Look("?", status, "bad", "a status unknown to this report"))


def caption(status: str) -> str:
    """The glyph and word of a status."""
    seen = look(status)
    return f"{seen.glyph} {seen.word}".strip()
