"""Ray Data over two workers of one machine, each with a streamed model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

NEW = 150
"""Tokens of an answer."""
BLOCKS, LINES = 8, 3


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    ray.shutdown()


def test_columns_are_answered_from_parquet_to_parquet_whoever_dies(
    talker: Path, tmp_path: Path
) -> None:
    (tmp_path / "questions").mkdir()
    for block in range(BLOCKS):
        prompts = [f"question {block} {line}" for line in range(LINES)]
        parquet.write_table(
            pa.table({"block": [block] * LINES, "prompt": prompts}),
            tmp_path / "questions" / f"{block}.parquet",
        )
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    begun.touch()
    ended.touch()

    class Noting:
        """Notes the blocks that it answers; defined here, so that workers need no import."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            from rabbitllm.serving.answerer import Answerer

            self.answer = Answerer(*arguments, **options)

        def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
            line = f"{block['block'][0]} {os.getpid()}\n"
            with begun.open("a") as file:
                file.write(line)
            answered = self.answer(block)
            with ended.open("a") as file:
                file.write(line)
            return answered

    killed: list[str] = []
    over = threading.Event()

    def kill_one() -> None:
        while not over.wait(0.01):
            done = ended.read_text().splitlines()
            running = [line for line in begun.read_text().splitlines() if line not in done]
            if len(done) >= 2 and running:
                os.kill(int(running[-1].split()[1]), signal.SIGKILL)
                killed.append(running[-1])
                return

    ray.init(num_cpus=2, include_dashboard=False)
    killer = threading.Thread(target=kill_one)
    killer.start()
    data = ray.data.read_parquet(str(tmp_path / "questions"))
    data = data.repartition(target_num_rows_per_block=LINES)
    answered = data.map_batches(
        Noting,
        fn_constructor_args=[str(talker)],
        fn_constructor_kwargs={
            "max_new_tokens": NEW,
            "generation": {"do_sample": False},
            "device": "cpu",
            "host_memory": "min",
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.5,
    )
    answered.write_parquet(str(tmp_path / "answers"))
    over.set()
    killer.join()
    rows = parquet.read_table(tmp_path / "answers").to_pylist()
    assert sorted(row["prompt"] for row in rows) == sorted(
        f"question {block} {line}" for block in range(BLOCKS) for line in range(LINES)
    )
    assert all(len(row["answer"]) == NEW and row["error"] is None for row in rows)
    blocks = [line.split()[0] for line in begun.read_text().splitlines()]
    assert len(killed) == 1
    twice = [block for block in set(blocks) if blocks.count(block) > 1]
    assert twice == [killed[0].split()[0]], "the dead one's block was answered again, no other"
    assert len(blocks) == BLOCKS + 1


def batch(*arguments: str | Path) -> str:
    """What `rabbitllm batch` says, in a process of its own."""
    command = [sys.executable, "-m", "rabbitllm", "batch", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_batch_by_ray_answers_as_without_it(talker: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    bodies = [{"model": "talker", "prompt": f"once {i}", "max_tokens": 5 + i} for i in range(6)]
    lines: list[Any] = [
        {"custom_id": f"line {i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    lines[3]["body"]["temperature"] = 9
    lines.insert(1, "no request")
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {}
    options = ["--device", "cpu", "--host-memory", "min", "--sequences", "2"]
    for name, more in {"here": [], "there": ["--ray", "local", "--workers", "2"]}.items():
        out = tmp_path / f"{name}.jsonl"
        said = batch(talker, source, out, *options, *more)
        assert "5 answered, 0 before, 2 refused" in said
        found[name] = {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
    for where in found.values():
        for line in where.values():
            if body := (line["response"] or {}).get("body"):
                line["response"]["request_id"] = body["id"] = body["created"] = None
    assert found["here"] == found["there"]
    assert "0 answered, 7 before" in batch(talker, source, out, *options, *more)
