"""What changed for models in a release of transformers: a page that is read in a minute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from harness.judging.changes import Change, compare
from harness.judging.expected_failures import Expected
from harness.records import Record
from harness.stock.differences import ANSWERS, INTERFACES, Difference, differences
from harness.stock.store import FOLDER, read
from rabbitllm.releases.markdown import escape_markdown

What = TypeVar("What")
KINDS = {
    "regressed": "Worse answers",
    "lost": "Not measured any more",
    "fixed": "Better answers",
    "new": "New answers",
    "same": "Failures of another kind",
}
"""Kind of a change that a page shows -> its heading there. Of "same", what fails otherwise."""
ANSWERED = ("Token ids", "Golden logits")
"""Headings of `ANSWERS`."""
MOST, FEW = 40, 3
"""Lines of a list that are shown; parameters of a type that are named one by one."""


def pages(
    reports: Path, records: Iterable[Record], order: Sequence[str], expected: Sequence[Expected]
) -> dict[Path, str]:
    """Path -> text of the page of each release that has a snapshot, as has the one before it.

    Args:
        reports: their folder.
        records: raw, tokenizers told apart.
        order: the releases of the matrix.
        expected: matrix/expected_failures.toml.
    """
    of: dict[str, list[Record]] = {}
    for record in records:
        of.setdefault(record.release, []).append(record)
    facts = {release: read(release, reports / FOLDER) for release in order}
    return {
        reports / FOLDER / f"{new}.md": page(
            old,
            new,
            compare(of.get(old, []), of.get(new, []), expected),
            differences(facts[old], facts[new]),
        )
        for old, new in pairwise(order)
        if facts[old] and facts[new]
    }


def page(old: str, new: str, changes: Sequence[Change], found: Sequence[Difference]) -> str:
    """The page of a release, beside the one before it in the matrix."""
    lines = [
        f"# What changed for models in transformers {new}",
        "",
        f"Since {old}. Answers are those of the matrix; configs, parameters and interfaces are "
        "what the release has without weights. Token ids are those of small tokenizers, as "
        "published or made by a class, and of SmolLM2's; golden logits those of small checkpoints "
        "with the same bits everywhere, read at once and with a cache.",
        "",
        *_cells(changes),
        *in_lists(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(changes: Sequence[Change]) -> list[str]:
    """Cells whose status changed; architectures that changed alike are one line."""
    alike: dict[tuple[str, str, str], set[str]] = {}
    for change in changes:
        heading, record = KINDS.get(change.kind, ""), change.after or change.before
        if heading and record and (change.kind != "same" or change.why):
            key = heading, record.architecture, change.why
            alike.setdefault(key, set()).add(f"{record.backend} on {record.device}")
    if not alike:
        return ["## Answers", "", "Every cell of the matrix is as it was.", ""]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for (heading, name, why), backends in sorted(alike.items()):
        grouped.setdefault((heading, ", ".join(sorted(backends)), why), []).append(name)
    lines = []
    for heading in dict.fromkeys(KINDS.values()):
        items = [
            f"{', '.join(names)} ({backends}){f': {why}' if why else ''}"
            for (of, backends, why), names in grouped.items()
            if of == heading
        ]
        lines += _list(heading, items)
    return lines


def in_lists(found: Sequence[Difference]) -> list[str]:
    """Differences as lists of Markdown: answers first, then interfaces, then model types."""
    interfaces = [d for d in found if d.subject in INTERFACES]
    lines = []
    for subject, heading in zip(ANSWERS, ANSWERED, strict=True):
        alike = _alike((d.how, d.what) for d in found if d.subject == subject)
        items = [f"{', '.join(who)}: {how}" for how, who in alike.items()]
        lines += _list(heading, items) or [f"## {heading}", "", "All are as they were.", ""]
    types = dict.fromkeys(d.subject for d in found if d.subject not in (*INTERFACES, *ANSWERS))
    grouped = _alike(
        (line, name) for name in types for line in _of_type([d for d in found if d.subject == name])
    )
    return [
        *lines,
        *_list("Interfaces", [f"{d.subject}: {d.what}: {d.how}" for d in interfaces]),
        *_list("Model types", [f"{', '.join(t)}: {w}: {h}" for (w, h), t in grouped.items()]),
    ]


def _alike(pairs: Iterable[tuple[What, str]]) -> dict[What, list[str]]:
    """What changed -> all with whom it did."""
    found: dict[What, list[str]] = {}
    for what, name in pairs:
        found.setdefault(what, []).append(name)
    return found


def _of_type(found: Sequence[Difference]) -> list[tuple[str, str]]:
    """What changed in a type; of many parameters that came or went together one is named."""
    # Types that change alike are one line: a layer is not named by its class.
    lines = [("layers" if d.what.startswith("layer ") else d.what, d.how) for d in found]
    lines = list(dict.fromkeys(lines))
    for how in ("new", "gone"):
        alike = [line for line in lines if line[0].startswith("parameter ") and line[1] == how]
        if len(alike) > FEW:
            lines = [line for line in lines if line not in alike]
            lines.append((f"{len(alike)} parameters", f"{how}, such as {alike[0][0].split()[1]}"))
    return lines


def _list(heading: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    left = len(items) - MOST
    more = [f"- and {left} more: `tox -e harness -- diff` with both releases"] if left > 0 else []
    shown = [f"- {escape_markdown(item[:300])}" for item in items[:MOST]]
    return [f"## {heading}", "", *shown, *more, ""]
