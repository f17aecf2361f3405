"""What benchmarks.streaming measured, each line beside its target.

    python -m benchmarks.streaming.table results.jsonl > results.md

A target is a share of what the limits and the stock model of the same run allow. Several
measurements of the limits count as their mean.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rabbitllm.cli.tables import table
from rabbitllm.utils.memory import format_size

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One line.

    Attributes:
        what: is to be shown.
        needs: the scenarios that it is computed from; without them there is no line.
        least: what `reached` is to be at least.
        measured: text.
        limit: text: what it is held against.
        reached: a share of the limit, or a ratio.
    """

    what: str
    needs: tuple[str, ...]
    least: float
    measured: Callable[[Records], str]
    limit: Callable[[Records], str]
    reached: Callable[[Records], float]


def _rate(name: str) -> Callable[[Records], str]:
    return lambda r: f"{r[name]['tokens_per_second']:.2f} tokens/s"


def _wire(name: str, wire: str) -> Callable[[Records], str]:
    key = f"{wire}_gb_per_second"
    return lambda r: f"{r[name]['tokens_per_second']:.2f} tokens/s, {r[name][key]:.2f} GB/s"


def _half(r: Records) -> float:
    """Tokens/s that the link and the stock model allow with half of the layers streaming."""
    if "pinned" in r["limits"]:
        moved, pace = r["half"]["bytes_to_device"], r["limits"]["pinned"]
    else:
        moved, pace = r["half"]["bytes_from_disk"], _read(r)
    link = pace * 1e9 / moved if moved else float("inf")
    return float(min(r["stock"]["tokens_per_second"], link))


def _read(r: Records, name: str = "disk") -> float:
    """GB/s of direct reads, before and after the layers came from disk."""
    return float(statistics.mean(r[name]["direct_read"]))


def _from_disk(what: str, name: str) -> Target:
    """The line of a scenario that is held against the disk's pace."""
    return Target(
        what,
        (name,),
        0.95,
        _wire(name, "disk"),
        lambda r: f"{_read(r, name):.2f} GB/s, direct reads",
        lambda r: r[name]["disk_gb_per_second"] / _read(r, name),
    )


def _prefill(r: Records) -> float:
    """Seconds that copying and computing a prompt take at least, beside one another."""
    copying = r["prefill"]["bytes_to_device"] / r["limits"]["pinned"] / 1e9
    return float(max(copying, r["stock-prefill"]["prefill_seconds"]))


def _ratio(name: str, other: str) -> Callable[[Records], float]:
    return lambda r: r[name]["tokens_per_second"] / r[other]["tokens_per_second"]


GIB4 = 4 << 30
TARGETS = (
    Target(
        "all layers from pinned memory",
        ("host", "limits"),
        0.97,
        _wire("host", "device"),
        lambda r: f"{r['limits']['pinned']:.2f} GB/s, pinned copies",
        lambda r: r["host"]["device_gb_per_second"] / r["limits"]["pinned"],
    ),
    Target(
        "half of the layers resident",
        ("half", "stock", "limits"),
        0.95,
        _rate("half"),
        lambda r: f"{_half(r):.2f} tokens/s, the lesser of stock and the bytes' way",
        lambda r: r["half"]["tokens_per_second"] / _half(r),
    ),
    Target(
        "everything fits",
        ("fits",),
        0.97,
        _rate("fits"),
        lambda r: f"{r['fits']['stock_tokens_per_second']:.2f} tokens/s, stock in turns with it",
        lambda r: r["fits"]["tokens_per_second"] / r["fits"]["stock_tokens_per_second"],
    ),
    _from_disk("all layers from disk", "disk"),
    _from_disk("all layers from disk, compressed", "disk-lossless"),
    Target(
        "prefill of 2,048 tokens",
        ("prefill", "stock-prefill", "limits"),
        0.95,
        lambda r: f"{r['prefill']['prefill_seconds'] * 1e3:.0f} ms",
        lambda r: f"{_prefill(r) * 1e3:.0f} ms, the longer of copying and computing",
        lambda r: _prefill(r) / r["prefill"]["prefill_seconds"],
    ),
    Target(
        "batch 32 against batch 1, all layers streaming",
        ("batch-32", "host"),
        25,
        _rate("batch-32"),
        _rate("host"),
        _ratio("batch-32", "host"),
    ),
    Target(
        "device budget of 4 GiB: peak",
        ("4GiB",),
        1,
        lambda r: f"{format_size(r['4GiB']['peak_device_bytes'])}, {_rate('4GiB')(r)}",
        lambda r: format_size(GIB4),
        lambda r: GIB4 / r["4GiB"]["peak_device_bytes"],
    ),
    Target(
        "prompt lookup against plain greedy, a repetitive prompt",
        ("prompt-lookup", "repetitive"),
        3,
        _rate("prompt-lookup"),
        _rate("repetitive"),
        _ratio("prompt-lookup", "repetitive"),
    ),
)
SAME = (
    ("host", "stock"),
    ("half", "stock"),
    ("fits", "stock"),
    ("4GiB", "stock"),
    ("disk", "stock"),
    ("disk-lossless", "stock"),
    ("prompt-lookup", "repetitive"),
)
"""Scenarios that generate the same tokens, as far as both go."""


def collect(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scenario -> its last record; of the limits, the means.

    Args:
        records: of one checkpoint.
    """
    by_name = {record["scenario"]: record for record in records}
    all_limits = [record for record in records if record["scenario"] == "limits"]
    for wire in ("pinned", "pageable"):
        if wires := [record[wire] for record in all_limits if wire in record]:
            by_name["limits"] = by_name["limits"] | {wire: statistics.mean(wires)}
    return by_name


def differing(records: Records) -> list[str]:
    """What did not generate the tokens that it must; a line each."""
    lines = []
    for name, other in SAME:
        if name in records and other in records:
            pairs = zip(records[name]["tokens"], records[other]["tokens"], strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if place is not None:
                lines.append(f"{name} and {other} part at token {place + 1}.")
    return lines


def render(checkpoint: str, records: Records) -> str:
    """A section of Markdown about one checkpoint."""
    rows = []
    for target in TARGETS:
        if not set(target.needs) <= records.keys():
            continue
        reached = target.reached(records)
        small = target.least <= 1
        rows.append(
            {
                "": target.what,
                "measured": target.measured(records),
                "held against": target.limit(records),
                "reached": f"{reached:.1%}" if small else f"{reached:.1f}x",
                "target": f"{target.least:.0%}" if small else f"{target.least:.0f}x",
                "met": "yes" if reached >= target.least else "no",
            }
        )
    limits = records.get("limits", {})
    wires = ", ".join(
        f"{wire} {limits[key]:.2f} GB/s"
        for wire, key in (("pinned copies", "pinned"), ("pageable copies", "pageable"))
        if key in limits
    )
    machine = f"{limits['device_name']}, torch {limits['torch']}" if limits else ""
    device = ": ".join(filter(None, (machine, wires)))
    device = f"{device}.\n\n" if device else ""
    tokens = "".join(f"\nTokens differ: {line}\n" for line in differing(records))
    return f"## {checkpoint}\n\n{device}{table(rows, 'github') if rows else ''}\n{tokens}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; returns 1 when tokens differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of benchmarks.streaming")
    files = parser.parse_args(arguments).results
    lines = [line for file in files for line in file.read_text().splitlines()]
    by_checkpoint: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        name = record["checkpoint"].removesuffix("-cyclic")
        by_checkpoint.setdefault(name, []).append(record)
    wrong = False
    for name, of_one in by_checkpoint.items():
        records = collect(of_one)
        wrong |= bool(differing(records))
        print(render(name, records))
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
