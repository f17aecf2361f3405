"""A comparison as text, Markdown or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judging.compare import KINDS, WORSE, Change, Kind, changed_probes
from harness.judging.naming import again
from harness.judging.speed import Speed
from harness.render.markdown import escape_markdown, markdown_table

KNOWN = "known, matrix/expected_failures.toml accounts for it"


@dataclass(frozen=True)
class Comparison:
    """What two sides differ in.

    Attributes:
        before: the first side's name.
        after: the second's.
        changes: of every cell, the worst first.
        speed: on the whole.
    """

    before: str
    after: str
    changes: Sequence[Change]
    speed: Speed

    @property
    def worse(self) -> list[Change]:
        """The cells that regressed or were lost."""
        return [change for change in self.changes if change.kind in WORSE]

    @property
    def exit_status(self) -> int:
        """1: worse; 3: worse, all of it known; 4: slower only; 5: not compared; 0 otherwise."""
        if self.worse:
            return 3 if all(change.known for change in self.worse) else 1
        if self.speed.verdict == "slower":
            return 4
        return 5 if {change.kind for change in self.changes} <= {"not-comparable"} else 0

    @property
    def summary(self) -> str:
        """Such as "5.20.2 -> 5.21.1: 1 regressed, 17 same"."""
        counts = Counter(change.kind for change in self.changes)
        parts = [f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]]
        return f"{self.before} -> {self.after}: {', '.join(parts)}"

    def of_kind(self, kind: Kind) -> list[Change]:
        """Return the cells that there is something to say of: all of a kind but the same."""
        return [c for c in self.changes if c.kind == kind and (c.why or kind != "same")]


def as_text(found: Comparison) -> str:
    """Return it for a terminal."""
    lines = [found.summary]
    for kind, meaning in KINDS.items():
        if chosen := found.of_kind(kind):
            lines += ["", f"{kind}: {meaning}"]
        for change in chosen:
            lines.append(f"  {change.cell}")
            lines += [f"      {line}" for line in details(change)]
    lines += ["", f"speed: {found.speed.verdict}: {found.speed.why}"]
    lines += [
        f"  {cell.cell}: costs {cell.before:.2f}, now {cell.after:.2f} of stock's tokens"
        f" ({cell.change:+.0%}, p = {cell.p:.2g})"
        for cell in found.speed.alone
    ]
    return "\n".join(lines)


def as_markdown(found: Comparison) -> str:
    """Return it for an issue or a pull request; what records hold is made inert."""
    lines = [f"**{escape_markdown(found.summary)}**", ""]
    for kind, meaning in KINDS.items():
        chosen = found.of_kind(kind)
        if chosen:
            rows = [(change.cell, "; ".join(details(change))) for change in chosen]
            lines += [f"### {kind}", "", meaning, "", markdown_table(rows, ("cell", "why")), ""]
    why = escape_markdown(found.speed.why)
    lines.append(f"Speed: {found.speed.verdict}: {why}.")
    return "\n".join(lines)


def as_json(found: Comparison) -> str:
    """Return all of it, without the records themselves, for programs."""
    table: dict[str, Any] = {
        "before": found.before,
        "after": found.after,
        "exit_status": found.exit_status,
        "changes": [_plain(change) for change in found.changes],
        "speed": dataclasses.asdict(found.speed),
    }
    return json.dumps(table, indent=1)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "md": as_markdown,
    "json": as_json,
}


def details(change: Change) -> list[str]:
    """Return what there is to say of one cell, in lines."""
    lines = [change.why] if change.why else []
    if change.side:
        lines.append(f"side: {change.side}{f' ({KNOWN})' if change.known else ''}")
    for name, (old, new) in changed_probes(change.before, change.after).items():
        lines.append(f"probe {name}: {old} -> {new}")
    if change.kind in WORSE:
        lines.append(f"again: {again(change.cell)}")
    return lines


def _plain(change: Change) -> dict[str, Any]:
    table = {name: getattr(change, name) for name in ("cell", "kind", "why", "side", "known")}
    probes = changed_probes(change.before, change.after)
    statuses = {
        side: record.status if record else None
        for side, record in (("before", change.before), ("after", change.after))
    }
    return table | statuses | {"probes": probes}
