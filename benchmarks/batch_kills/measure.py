"""`rabbitllm batch`, ended by kill -9 at many moments: whether a line is lost, doubled or other.

    python -m benchmarks.batch_kills MODEL --kills 20 --dtype float32

Every fifth kill falls into the start of the process, at a drawn time; the others some milliseconds
after some more lines were written, so that they fall into passes and into writing, too. In the end
the command runs through, and its answers are held against those of a run that nobody disturbed: in
float32, for in bfloat16 answers can part by who shares passes (`benchmarks.agreement`).
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAME = "killed"
START = 3.0
"""Seconds, at most, after which a kill in the start falls."""
LINES, MILLISECONDS = 5, 60
"""More lines that are waited for, at most, and how much longer after these."""


def write_requests(path: Path, count: int) -> None:
    """Writes requests for answers of different lengths."""
    lines = (
        {
            "custom_id": f"line {i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "model": NAME,
                "prompt": f"Number {i} is",
                "max_tokens": 5 + i % 40,
                "temperature": 0,
            },
        }
        for i in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def kill(command: Sequence[str], out: Path, number: int, draw: random.Random) -> str | None:
    """Begins the command and kills it; says when, or None if it ended before that."""
    before = _lines(out)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    if number % 5 == 0:
        wait = draw.uniform(0, START)
        time.sleep(wait)
        moment = f"{wait:.2f} s after its start"
    else:
        more, longer = draw.randint(1, LINES), draw.uniform(0, MILLISECONDS)
        while process.poll() is None and _lines(out) < before + more:
            time.sleep(0.001)
        time.sleep(longer / 1e3)
        passed = time.monotonic() - begun
        moment = f"{longer:.0f} ms behind {more} more lines, {passed:.1f} s after its start"
    if (status := process.poll()) is not None:
        if status:
            raise RuntimeError(f"{' '.join(command)} failed by itself, with status {status}")
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return moment


def _lines(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def wrongs(out: Path, undisturbed: Path, requests: int) -> Iterator[str]:
    """What is wrong with the answers."""
    found = [json.loads(line) for line in out.read_text().splitlines()]
    ids = [line["custom_id"] for line in found]
    for i in range(requests):
        if (times := ids.count(f"line {i}")) != 1:
            yield f"line {i} is there {times} times"
    expected = {line["custom_id"]: _said(line) for line in map(json.loads, undisturbed.open())}
    for line in found:
        if _said(line) != expected[line["custom_id"]]:
            yield f"{line['custom_id']}: {_said(line)} instead of {expected[line['custom_id']]}"


def _said(line: dict[str, Any]) -> Any:
    """How many tokens an answer has: which ones depends on who shared passes with it."""
    return line["response"]["body"]["usage"]["completion_tokens"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; status 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch_kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (%(default)s)")
    parser.add_argument("batch", nargs="+", help="MODEL and other arguments of `rabbitllm batch`")
    asked, more = parser.parse_known_args(argv)
    draw, moments = random.Random(asked.seed), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        source, out, whole = (Path(folder, name) for name in ("in", "out", "undisturbed"))
        write_requests(source, asked.requests)
        begin = [sys.executable, "-m", "rabbitllm", "batch", asked.batch[0], str(source)]
        options = ["--name", NAME, *asked.batch[1:], *more]

        def command(to: Path) -> list[str]:
            return [*begin, str(to), *options]

        subprocess.run(command(whole), check=True, stderr=subprocess.DEVNULL)
        while len(moments) < asked.kills:
            moment = kill(command(out), out, len(moments), draw)
            if moment is None:
                break
            moments.append(moment)
            print(f"kill {len(moments)}: {moment}; {_lines(out)} lines", flush=True)
        subprocess.run(command(out), check=True, stderr=subprocess.DEVNULL)
        wrong = list(wrongs(out, whole, asked.requests))
        print(f"{len(moments)} kills; {_lines(out)} lines of {asked.requests}, {len(wrong)} wrong")
    if len(moments) < asked.kills:
        wrong.append("it ended before all kills: ask for more --requests")
    for line in wrong:
        print(f"WRONG: {line}")
    return bool(wrong)
