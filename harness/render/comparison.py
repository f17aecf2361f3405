"""A comparison as text, Markdown or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from harness.judging.cell_name import again
from harness.judging.changes import KINDS, WORSE, Change, changed_probes
from harness.judging.comparison import Comparison, apart
from harness.render.markdown import markdown_table
from rabbitllm.releases.markdown import escape_markdown

KNOWN = "known, matrix/expected_failures.toml accounts for it"


def as_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    lines = [found.summary]
    for kind, meaning in KINDS.items():
        if chosen := found.of_kind(kind):
            lines += ["", f"{kind}: {meaning}"]
        for change in chosen:
            lines.append(f"  {change.cell}")
            lines += [f"      {line}" for line in details(change)]
    lines += ["", *apart(found.changes), f"speed: {found.speed.verdict}: {found.speed.why}"]
    lines += [
        f"  {cell.cell}: costs {cell.before:.2f}, now {cell.after:.2f} of stock's tokens"
        f" ({cell.change:+.0%}, p = {cell.p:.2g})"
        for cell in found.speed.alone
    ]
    return "\n".join(lines)


def as_markdown(found: Comparison) -> str:
    """The comparison for an issue or a pull request; what records hold is made inert."""
    lines = [f"**{escape_markdown(found.summary)}**", ""]
    for kind, meaning in KINDS.items():
        chosen = found.of_kind(kind)
        if chosen:
            rows = [(change.cell, "; ".join(details(change))) for change in chosen]
            lines += [f"### {kind}", "", meaning, "", markdown_table(rows, ("cell", "why")), ""]
    lines += [f"{escape_markdown(line)}." for line in apart(found.changes)]
    why = escape_markdown(found.speed.why)
    lines.append(f"Speed: {found.speed.verdict}: {why}.")
    return "\n".join(lines)


def as_json(found: Comparison) -> str:
    """The comparison for programs, without the records themselves."""
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
    """What there is to say of one cell, in lines."""
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
