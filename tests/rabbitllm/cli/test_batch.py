from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rabbitllm.cli.batch import shares
from tests.patience import PATIENCE

pytest.importorskip("fastapi")

Command = Callable[..., tuple[int, str, str]]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def request(custom_id: str, url: str = COMPLETION, **body: Any) -> dict[str, Any]:
    prompt: Any = {"prompt": f"Once {custom_id}"}
    if url == CHAT:
        prompt = {"messages": [{"role": "user", "content": custom_id}]}
    asked = {"model": "talker", "temperature": 0, "max_tokens": 5} | prompt | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked}


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["id"].removeprefix("batch_req_"): line for line in lines}
    assert len(found) == len(lines), "a line is there twice"
    return found


@pytest.fixture
def batch(command: Command, talker: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`batch(lines)` -> exit status, stdout, stderr; the answers are in out.jsonl."""

    def run(lines: list[Any], *options: str) -> tuple[int, str, str]:
        source = write(tmp_path / "in.jsonl", lines)
        given = ["--device", "cpu", "--host-memory", "min", *options]
        return command("batch", talker, source, tmp_path / "out.jsonl", *given)

    return run


def test_it_says_where_caches_lie_if_that_is_host_memory(
    batch: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = pytest.importorskip("rabbitllm.serving.lines")
    assert "caches" not in batch([request("a")])[2]
    monkeypatch.setattr(lines.Lines, "offloaded", property(lambda _: True))
    assert batch([request("a"), request("b")])[2].endswith(" tokens/s, caches in host memory\n")


def test_every_line_is_answered_as_by_the_server(
    batch: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    lines = [request("a" * 30), request("b", CHAT, max_tokens=9), request("c", stop="x")]
    status, out, err = batch(lines)
    assert (status, out) == (0, "")
    assert "3 answered, 0 before, 0 refused" in err
    found = read(tmp_path / "out.jsonl")
    assert {n: line["custom_id"] for n, line in found.items()} == {
        "1": "a" * 30,
        "2": "b",
        "3": "c",
    }
    assert all(line["error"] is None for line in found.values())
    assert all(line["response"]["status_code"] == 200 for line in found.values())
    body = found["2"]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert len(body["choices"][0]["message"]["content"]) == 9
    assert body["usage"]["completion_tokens"] == 9


def test_a_bad_line_is_an_error_line(
    batch: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    bad: list[Any] = [
        "{no json",
        request("same"),
        request("same"),
        {"custom_id": "few"},
        request("elsewhere", "/v1/embeddings"),
        "",
        request("other model", model="gpt"),
        request("long", prompt="x" * 20_000),
        request("streams", stream=True),
        request("hot", temperature=9),
        "[" * 100_000,
    ]
    status, _, err = batch(bad)
    assert status == 0
    assert "1 answered, 0 before, 9 refused" in err
    found = read(tmp_path / "out.jsonl")
    assert found["2"]["response"]["status_code"] == 200
    invalid = {n: line["error"]["message"] for n, line in found.items() if line["error"]}
    assert sorted(invalid) == ["1", "11", "3", "4", "5"]
    assert invalid["1"].startswith("line 1: it is no JSON")
    assert invalid["3"] == "line 3: an earlier line has the custom_id 'same'"
    codes = {
        line["custom_id"]: line["response"]["status_code"]
        for n, line in found.items()
        if line["response"]
    }
    assert codes == {"same": 200, "other model": 404, "long": 400, "streams": 400, "hot": 400}
    message = next(line for line in found.values() if line["custom_id"] == "hot")
    assert "temperature" in message["response"]["body"]["error"]["message"]


def test_a_second_run_answers_what_is_missing(
    batch: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    lines: list[Any] = [request(name) for name in "abcd"] + ["{"]
    batch(lines)
    out = tmp_path / "out.jsonl"
    whole = read(out)
    kept = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:2]) + kept[2][:-9])
    _, _, err = batch(lines)
    assert ", 2 before, " in err
    again = read(out)
    assert again.keys() == whole.keys()
    texts = [
        {
            n: line["response"]["body"]["choices"][0]["text"]
            for n, line in found.items()
            if line["response"]
        }
        for found in (whole, again)
    ]
    assert texts[0] == texts[1]
    before = out.read_bytes()
    assert "0 answered, 5 before, 0 refused" in batch(lines)[2]
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("notes\n", "Line 1 of .* is none that"),
        ("notes without an end", "Line 1 of .* is none that"),
        ('{"id": "batch_req_1", "custom_id": "z"}\n', "is 'a', and what was written answers 'z'"),
    ],
)
def test_somebody_elses_file_stays_as_it_is(
    batch: Callable[..., tuple[int, str, str]], tmp_path: Path, there: str, message: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(there)
    status, _, err = batch([request("a")])
    assert status == 2
    assert re.search(message, err)
    assert out.read_text() == there


def test_the_requests_are_not_written_over(command: Command, talker: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [request("a")])
    before = source.read_bytes()
    status, _, err = command("batch", talker, source, source)
    assert status == 2
    assert "is the file of requests" in err
    assert source.read_bytes() == before


def test_kill_9_loses_and_doubles_nothing(talker: Path, tmp_path: Path) -> None:
    names = [f"line {i}" for i in range(60)]
    lines = [request(name, max_tokens=5 + i) for i, name in enumerate(names)]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    arguments = [str(talker), str(source), str(out), "--device", "cpu", "--host-memory", "min"]
    begin = [sys.executable, "-m", "rabbitllm", "batch", *arguments, "--sequences", "3"]
    killed = 0
    for more in (1, 100, 5_000, 9_000):  # bytes that the next run may write
        size = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(begin, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            if out.exists() and out.stat().st_size >= size + more:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
        process.wait()
        with out.open("ab") as file:
            file.write(b'{"id": "batch_req_1')  # as if it had been killed while it wrote
    assert killed >= 3
    subprocess.run(begin, check=True, stderr=subprocess.DEVNULL, timeout=PATIENCE)
    found = read(out)
    assert sorted(line["custom_id"] for line in found.values()) == sorted(names)
    for line in found.values():
        usage = line["response"]["body"]["usage"]
        assert usage["completion_tokens"] == 5 + names.index(line["custom_id"])


@pytest.mark.parametrize(
    ("device", "asked", "there", "due"),
    [
        ("auto", None, {"CPU": 16.0}, (2, {"num_cpus": 8})),  # one on each machine that is there
        ("auto", None, {"CPU": 16.0, "GPU": 4.0}, (4, {"num_gpus": 1})),
        ("auto", 8, {"CPU": 16.0, "GPU": 4.0}, (8, {"num_gpus": 0.5})),
        ("cpu", None, {"CPU": 16.0, "GPU": 4.0}, (2, {"num_cpus": 8})),
    ],
)
def test_a_cluster_is_shared_out_among_what_is_alive(
    device: str, asked: int | None, there: dict[str, float], due: tuple[int, dict[str, float]]
) -> None:
    machines = [{"Alive": True}, {"Alive": False}, {"Alive": True}]
    assert shares(argparse.Namespace(device=device, workers=asked), there, machines) == due
