"""A record as text for a terminal: what failed, where, and what is known about it."""

from __future__ import annotations

from typing import Any

from harness.judging.cell_name import again
from harness.records import Record


def report(record: Record) -> str:
    """What a user needs to see of one cell."""
    lines = [
        f"{record.cell}: {record.status}",
        record.message,
    ]
    if record.explanation:
        lines.append(f"Known cause: {record.explanation}")
    if record.expected:
        lines.append(f"Expected: {record.expected}")
    if record.fingerprint:
        lines.append(f"Fingerprint: {record.fingerprint}")
    for name, result in record.checks.items():
        figures = ", ".join(f"{key}={_short(value)}" for key, value in result.figures.items())
        lines.append(f"  {name:22} {result.status:10} {result.seconds:6.2f} s  {figures}")
    lines += [f"  stock's {name}: {value}" for name, value in record.probes.items()]
    lines += [text for text in (record.traceback, record.stderr) if text]
    lines.append(f"Run it again: {again(record.cell)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)
