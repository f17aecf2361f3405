"""Tokens per second by release: what the sparklines and charts draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

SERIES = ("streamed", "stock", "accelerate")
"""What the speed check times, by the first word of its figures' names."""
WIDTH, HEIGHT = 96, 18
"""Of a sparkline, in its own units."""


def rates(checks: Mapping[str, Any]) -> dict[str, list[float]]:
    """Series -> (median, lowest, highest) tokens per second of a cell's speed check."""
    figures = (checks.get("speed") or {}).get("figures") or {}
    found = {}
    for name in SERIES:
        samples = figures.get(f"{name}_tokens_per_second")
        if isinstance(samples, list) and samples and all(map(is_number, samples)):
            found[name] = [short(v) for v in (median(samples), min(samples), max(samples))]
    return found


def is_number(value: object) -> bool:
    """Whether a figure is a number; one that was not finite is None."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: float) -> float:
    """A figure with 3 significant digits."""
    return float(f"{value:.3g}")


def wire(checks: Mapping[str, Any]) -> dict[str, float]:
    """What a forward moves in GB/s, and the share of the limit where one was measured."""
    figures = (checks.get("speed") or {}).get("figures") or {}
    names = ("bytes_from_disk_per_forward", "bytes_to_device_per_forward", "seconds_per_forward")
    disk, device, seconds = (figures.get(name) for name in names)
    if not all(map(is_number, (disk, device, seconds))) or not seconds:
        return {}
    found = {"GB/s": short(max(disk or 0, device or 0) / seconds / 1e9)}
    limit, streamed = figures.get("limit_tokens_per_second"), rates(checks).get("streamed")
    if is_number(limit) and limit and streamed:
        found["% of limit"] = short(100 * streamed[0] / limit)
    return found


def sparkline(part: pd.DataFrame, axis: Sequence[str]) -> dict[str, Any] | None:
    """A row's streamed tokens per second as an SVG path from 0 to its highest; None without.

    Neighbouring releases are joined only where both were measured on the same hardware.

    Args:
        part: the cells of one architecture and backend.
        axis: the releases, oldest first.
    """
    cells = part[["release", "hardware", "rates"]].to_dict(orient="records")
    found = {cell["release"]: cell for cell in cells if "streamed" in cell["rates"]}
    if not found:
        return None
    values = {name: cell["rates"]["streamed"][0] for name, cell in found.items()}
    top = max(values.values()) or 1
    step = WIDTH / max(len(axis) - 1, 1)
    path: list[str] = []
    before = None
    for place, release in enumerate(axis):
        cell = found.get(release)
        if cell:
            at = f"{place * step:.4g} {HEIGHT - 1 - (HEIGHT - 2) * values[release] / top:.3g}"
            # A lone point is a line of no length, which a round cap makes a dot.
            joined = before is not None and before["hardware"] == cell["hardware"]
            path.append(f"L{at}" if joined else f"M{at}h0")
        before = cell
    said = f"{min(values.values()):g} to {max(values.values()):g} tokens per second"
    newest = next(values[release] for release in reversed(axis) if release in values)
    return {"path": "".join(path), "newest": newest, "said": said}
