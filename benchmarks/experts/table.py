"""What benchmarks.experts measured, as a table: each engine beside what its bytes allow."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rabbitllm.cli.tables import table


def limit(record: Mapping[str, Any]) -> float:
    """Tokens/s that the bytes moved and stock's own pace, if it took turns, leave at most.

    Args:
        record: of an engine that moves some.
    """
    moved, rates = record["per_token"], record["rates"]
    wires = ((moved["bytes_from_disk"], "disk"), (moved["bytes_to_device"], "link"))
    seconds = [nbytes / rates[wire] / 1e9 for nbytes, wire in wires if nbytes]
    if record["stock_turns"]:
        seconds.append(1 / statistics.median(record["stock_turns"]))
    return 1 / max(seconds, default=float("inf"))


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    rows = [_row(record, records[0]["tokens"]) for record in records]
    first = records[0]
    rates = ", ".join(f"{wire} {rate:.2f} GB/s" for wire, rate in first["rates"].items())
    about = f"{first['shape']}, {first['layers']} layers; an expert takes "
    about += f"{first['expert_bytes'] / 1e6:.1f} MB. Alone: {rates}."
    return f"{table(rows, 'github')}\n\n{about}\n"


def _row(record: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, str]:
    moved, beside = record["per_token"], record["stock_turns"]
    asked, came = moved.get("rows_asked", 0), moved.get("rows_brought", 0)
    needed = (came + moved.get("rows_foreseen", 0)) * record["expert_bytes"]
    wire = "bytes_to_device" if moved.get("bytes_to_device") else "bytes_from_disk"
    on_host = moved.get("bytes_on_host", 0)
    distinct = record["distinct_experts"]
    same = all(a == b for a, b in zip(tokens, record["tokens"], strict=False))
    rate = record["tokens_per_second"]
    bound = limit(record) if moved else 0.0
    return {
        "engine, budget": record["engine"],
        "tokens/s": f"{rate:.2f}",
        "stock, in turns": f"{statistics.median(beside):.2f}" if beside else "",
        "limit": f"{bound:.2f}" if moved else "",
        "reached": f"{rate / bound:.0%}" if moved else "",
        "moved a token": f"{moved[wire] / 1e9:.2f} GB" if moved else "",
        "experts asked": f"{asked:.0f}" if asked else "",
        "had to come": f"{came / asked:.0%}" if asked else "",
        "bytes beyond theirs": f"{moved['bytes_of_rows'] / needed - 1:+.1%}" if needed else "",
        "foreseen": f"{moved['rows_foreseen'] / asked:.0%}" if asked else "",
        "computed on host": f"{on_host / 1e9:.2f} GB" if on_host else "",
        "prompt, s": f"{record['prompt_seconds']:.2f}",
        "distinct in 64": "" if distinct is None else f"{distinct:.0f}",
        "tokens as the first's": "yes" if same else "NO",
    }
