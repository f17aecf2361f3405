"""What may stand side by side, and the table where it does."""

from collections.abc import Sequence
from typing import Any

from rabbitllm.cli.tables import table


class DifferentTokensError(Exception):
    """Two peers did not compute the same thing, so their speeds do not compare."""


def check_tokens(records: Sequence[dict[str, Any]]) -> None:
    """Compares every record's greedy tokens with the first one's, as far as both go.

    Raises:
        DifferentTokensError: some differ, or there are too few to tell.
    """
    for other in records[1:]:
        first = records[0]
        pairs = list(zip(first["tokens"], other["tokens"], strict=False))
        if len(pairs) < 2:
            raise DifferentTokensError(
                f"{first['peer']} and {other['peer']} have {len(pairs)} tokens in common to "
                "compare; ask for more with --new-tokens."
            )
        for place, (expected, token) in enumerate(pairs):
            if token != expected:
                raise DifferentTokensError(
                    f"{other['peer']} and {first['peer']} part at token {place + 1} of "
                    f"{len(pairs)}: {token} and {expected}. They did not compute the same, so "
                    "their speeds do not compare and no table is written."
                )


def render(records: Sequence[dict[str, Any]], failures: Sequence[str] = ()) -> str:
    """The records as a Markdown table, each speed beside its ratio to the first record's.

    Args:
        records: what the peers measured.
        failures: why others did not; the first line of each is shown.
    """
    first = records[0]["tokens_per_second"]
    rows = []
    for record in records:
        versions = record["versions"]
        row = {
            "peer": f"{record['peer']} {versions.get(record['peer'], '')}".strip(),
            "weights": record["how"],
            "tokens/s": f"{record['tokens_per_second']:.3g}",
            f"of {records[0]['peer']}": f"{record['tokens_per_second'] / first:.3g}x",
            "tokens": len(record["tokens"]),
            "s to load": f"{record['load_seconds']:.1f}",
        }
        if record["peak_device_bytes"] is not None:
            row["peak device GB"] = f"{record['peak_device_bytes'] / 1e9:.2f}"
        rows.append(row)
    shared = records[0]["versions"]
    missing = "".join(f"Not measured: {reason.splitlines()[0]}\n" for reason in failures)
    return (
        f"{table(rows, 'github')}\n\n"
        f"{records[0]['model']}, batch 1, greedy, the same first tokens; "
        f"torch {shared['torch']}, transformers {shared['transformers']}, "
        f"accelerate {shared['accelerate']}; {records[0]['hardware']}.\n"
        f"{missing}"
    )
