"""The same checkpoint and prompt by each peer, each in its own process and environment.

    python -m benchmarks.peers --folder /data/qwen2-7b --out peers.jsonl --device cuda

A peer whose requirements this environment does not meet runs in one that uv makes for it, with the
same torch and transformers. Writes JSON lines, and a Markdown table beside them. Where the greedy
tokens differ it says so, writes no table and exits with 1. After a peer that failed it exits with 1
too, but the table is there and names that one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.compare import DifferentTokensError, check_tokens, render
from benchmarks.peers.engines import PEERS
from benchmarks.peers.process import ProcessError, run_peer

DEFAULT = ("stock", "accelerate-cpu", "accelerate-disk", "airllm", "rabbitllm", "rabbitllm-disk")
FEWEST = 3
"""Tokens: one of the prefill and two of steps."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, runs the peers, compares, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--peers", help=f"comma-separated, of {', '.join(PEERS)}; all usual ones by default"
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="of fast peers (%(default)s)")
    parser.add_argument("--seconds", type=float, default=600, help="for one peer (%(default)s)")
    arguments = parser.parse_args(argv)
    usual = [name for name in DEFAULT if arguments.device in PEERS[name].devices]
    names = arguments.peers.split(",") if arguments.peers else usual
    for name in names:
        if name not in PEERS:
            parser.error(f"there is no peer {name}; there are {', '.join(PEERS)}")
        if arguments.device not in PEERS[name].devices:
            parser.error(f"{name} does not run on {arguments.device}")
    page = arguments.out.with_suffix(".md")
    page.unlink(missing_ok=True)  # it belongs to an earlier run
    records, failures = [], []
    with arguments.out.open("w") as lines:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            tokens = max(FEWEST, arguments.new_tokens // PEERS[name].slower)
            try:
                record = run_peer(
                    name, arguments.folder, arguments.device, tokens, arguments.seconds
                )
            except ProcessError as error:
                failures.append(f"{name} {error}")
                print(failures[-1], file=sys.stderr, flush=True)
                continue
            print(f"{name}: {record['tokens_per_second']:.3g} tokens/s", file=sys.stderr)
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            records.append(record)
    if len(records) < 2:
        print("There are not two peers to compare, so no table is written.", file=sys.stderr)
        return 1
    try:
        check_tokens(records)
    except DifferentTokensError as error:
        print(error, file=sys.stderr)
        return 1
    text = render(records, failures)
    page.write_text(text)
    print(text)
    return 1 if failures else 0
