"""A quantised checkpoint under a memory limit: accelerate's disk offload, and the streamed model.

Stock decodes the weights when it loads them, so that what accelerate keeps on disk is bfloat16.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu.measure import SECONDS, in_group
from benchmarks.peers.compare import check_tokens
from benchmarks.peers.process import run_peer
from rabbitllm.cli.tables import table

PEERS = ("accelerate-disk", "rabbitllm")
FAILED = "failed"


def beside_accelerate(folder: Path, nbytes: int, new_tokens: int) -> Iterator[dict[str, Any]]:
    """A record of each peer, in a process and a cgroup of its own, from a cold page cache.

    Args:
        folder: the checkpoint.
        nbytes: most memory of either, page cache included.
        new_tokens: to generate.

    Raises:
        CgroupError: no cgroup can be made.
        DifferentTokensError: they did not compute the same.
    """
    records = []
    for name in PEERS:

        def run(prefix: Sequence[str], name: str = name) -> dict[str, Any]:
            return run_peer(name, folder, "cpu", new_tokens, SECONDS, prefix)

        records.append(in_group(name, run, folder, nbytes) | {"memory_bytes": nbytes})
        yield records[-1]
    check_tokens([record for record in records if FAILED not in record])


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    rows = [
        {
            "weights": record["format"],
            "": record["scenario"],
            "memory": f"{record['memory_bytes'] / 1e9:.1f} GB",
            "tokens/s": f"{record['tokens_per_second']:.2f}" if FAILED not in record else "",
            "s to load": f"{record['load_seconds']:.0f}" if FAILED not in record else "",
            "failed": record.get(FAILED, "").partition("\n")[0],
        }
        for record in records
    ]
    return table(rows, "github")
