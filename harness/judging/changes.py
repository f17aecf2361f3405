"""Two sets of records, cell by cell: what regressed, what was lost, what was fixed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from harness.judging.answers import further
from harness.judging.expected_failures import Expected, entries_for
from harness.records import FAILED, OF_STOCK, Record

Kind = Literal["regressed", "lost", "spurious", "not-comparable", "fixed", "new", "same"]
KINDS: dict[Kind, str] = {
    "regressed": "worked before and no longer does, or fails worse; flaky counts as not working",
    "lost": "was measured before and is not now: the cell, or a check that passed in it",
    "spurious": "a change that says nothing, for the cell was flaky before, or fails only at times",
    "not-comparable": "measured by other checks or another recipe, or not on both sides",
    "fixed": "failed before and works now",
    "new": "was not measured before, or not supported",
    "same": "as before; a failure whose cause changed is pointed out",
}
"""What becomes of a cell, the worst first."""
WORSE: frozenset[Kind] = frozenset({"regressed", "lost"})
State = Literal["absent", "unsupported", "good", "degraded", "bad", "unsure"]
STATES: dict[str, State] = {
    "not-run": "absent",
    "not-asked": "absent",
    "env-error": "absent",
    "unsupported": "unsupported",
    "pass": "good",
    "degraded": "degraded",
    "flaky": "unsure",
}
"""What a status says about a cell; any other says that it does not work ("bad")."""
# "*" is any state. The first line that fits decides.
TRANSITIONS: tuple[tuple[str, str, Kind], ...] = (
    ("absent", "absent", "not-comparable"),
    ("absent", "*", "new"),
    ("*", "absent", "lost"),
    ("good", "good", "same"),
    ("good", "*", "regressed"),
    ("degraded", "bad", "regressed"),
    ("unsure", "unsure", "same"),
    ("unsure", "*", "spurious"),
    ("*", "unsure", "spurious"),
    ("unsupported", "good", "new"),
    ("unsupported", "degraded", "new"),
    ("unsupported", "bad", "new"),
    ("*", "good", "fixed"),
    ("*", "*", "same"),
)


@dataclass(frozen=True)
class Change:
    """What became of one cell.

    Attributes:
        cell: its name on the later side, even if it is not there.
        kind: see `KINDS`.
        why: in words; empty if there is nothing to say.
        side: whose fault a regression is: rabbitllm, transformers or environment; else empty.
        known: the list of expected failures accounts for it in full.
        before: its record, if there is one.
        after: likewise.
    """

    cell: str
    kind: Kind
    why: str
    side: str
    known: bool
    before: Record | None
    after: Record | None


def compare(
    before: Iterable[Record], after: Iterable[Record], entries: Sequence[Expected] = ()
) -> list[Change]:
    """What became of every cell of either side, the worst first.

    Two sides of one release each are compared cell by cell, whatever the releases are; else each
    release is compared with itself. Of two releases, one may not have been measured on a device at
    all, as few are on a GPU: its cells are neither new nor lost.

    Args:
        before: raw records: a failure that is expected is one all the same.
        after: likewise.
        entries: matrix/expected_failures.toml.
    """
    sides = [list(before), list(after)]
    alone = all(len({record.release for record in side}) <= 1 for side in sides)
    old, new = ({_key(record, alone): record for record in side} for side in sides)
    order = list(KINDS)
    later = next((record.release for record in sides[1]), "") if alone else ""
    lacking = unmeasured(chain(*sides)) if alone else {}
    changes = [
        change_of(old.get(key), new.get(key), entries, later, lacking.get(key[-1], ""))
        for key in sorted({*old, *new})
    ]
    return sorted(changes, key=lambda change: order.index(change.kind))


def unmeasured(records: Iterable[Record]) -> dict[str, str]:
    """Device -> that one of the releases was not measured on it at all, in words."""
    devices: dict[str, set[str]] = {}
    for record in records:
        devices.setdefault(record.release, set()).add(record.device)
    return {
        device: f"{release} was not measured on {device}"
        for release, own in devices.items()
        for device in set().union(*devices.values()) - own
    }


def change_of(
    before: Record | None,
    after: Record | None,
    entries: Sequence[Expected],
    later: str = "",
    apart: str = "",
) -> Change:
    """What became of one cell, which at least one side has.

    Args:
        before: its record on the first side.
        after: on the second.
        entries: matrix/expected_failures.toml.
        later: the second side's release, if it has only one.
        apart: why the sides have nothing to compare here; empty if they have.
    """
    named = after or before
    assert named is not None  # the caller has a record of it
    name = replace(named, release=later or named.release).cell
    if apart:
        return Change(name, "not-comparable", apart, "", False, before, after)
    kind = kind_of(before, after)
    failing = after if after is not None and after.status in FAILED else None
    found = entries_for(failing, entries) if failing else ()
    side = side_of(failing, found) if failing else ""
    return Change(name, kind, _why(kind, before, after, found), side, bool(found), before, after)


def kind_of(before: Record | None, after: Record | None) -> Kind:
    """What became of a cell."""
    if before and after and before.check_hash != after.check_hash:
        return "not-comparable"
    states = state(before), state(after)
    kind = next(kind for *pair, kind in TRANSITIONS if all(map(_fits, pair, states)))
    if kind == "same" and lost_checks(before, after):
        return "lost"
    return "regressed" if kind == "same" and further(before, after) else kind


def state(record: Record | None) -> State:
    """What a record says about its cell."""
    return STATES.get(record.status, "bad") if record else "absent"


def lost_checks(before: Record | None, after: Record | None) -> dict[str, str]:
    """Check -> why, of the checks that passed before and did not run at all after.

    A cell passes, too, if one of its checks has nothing to measure; that it had something before
    would go unseen. Where a cell fails, later checks may be missing for that reason alone.
    """
    if before is None or after is None or after.status != "pass":
        return {}
    results = after.checks
    return {
        name: results[name].message if name in results else "it left no result"
        for name, result in before.checks.items()
        if result.status == "pass" and (name not in results or results[name].status == "not-run")
    }


def side_of(record: Record, found: Sequence[Expected]) -> str:
    """Whose fault a failure is: what the list says, else what the status says."""
    if found:
        return " and ".join(dict.fromkeys(entry.side for entry in found))
    if record.status in OF_STOCK:
        return "transformers"
    return "environment" if record.status == "env-error" else "rabbitllm"


def cause(record: Record, found: Sequence[Expected] = ()) -> str:
    """Why a cell is as it is, in words: the list's, the fingerprint's, else the message."""
    known = " ".join(dict.fromkeys(entry.why for entry in found)) or record.explanation
    first = (record.message.strip().splitlines() or [""])[0]
    said = textwrap.shorten(first, 200, placeholder=" ...")
    return f"{known} ({record.exception or 'message'}: {said})" if known and said else known or said


def changed_probes(before: Record | None, after: Record | None) -> dict[str, tuple[object, object]]:
    """Probe -> what it saw before and after, where the two differ.

    None if a side has no probes at all: the stock model could not be built.
    """
    old: Mapping[str, object] = before.probes if before else {}
    new: Mapping[str, object] = after.probes if after else {}
    if not old or not new:
        return {}
    names = sorted({*old, *new})
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def _why(kind: Kind, before: Record | None, after: Record | None, found: Sequence[Expected]) -> str:
    if kind == "not-comparable":
        other = before and after and before.check_hash != after.check_hash
        return "measured by other checks or another recipe" if other else "measured on neither side"
    if before is None or after is None:
        return "no record" if kind == "lost" else ""
    was = "" if before.status == after.status else f"{before.status}, now {after.status}: "
    if checks := lost_checks(before, after):
        lost = "; ".join(f"{name} no longer runs: {why}" for name, why in checks.items())
        return f"{was}{lost}"
    moved = further(before, after) or further(after, before)
    if moved and before.status == after.status:
        place = "further from" if kind == "regressed" else "nearer to"
        return f"stock's answers changed, {place} the golden ones: {cause(after, found)}"
    if kind == "same" and before.fingerprint == after.fingerprint:
        return ""
    if kind == "same" and after.status in FAILED:
        return f"{was}fails for another cause than before: {cause(after, found)}"
    return f"{was}{cause(after, found)}".removesuffix(": ")


def _key(record: Record, alone: bool) -> tuple[str, ...]:
    return ("" if alone else record.release, *record.key)


def _fits(pattern: str, found: State) -> bool:
    return pattern in ("*", found)
