from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks.llama_cpp import batched
from benchmarks.llama_cpp.batched import main, run, watch

LAYER, HEAD, CACHE, OUTSIDE = 100, 250, 0.01, 40

FAKE = """#!{python}
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert asked["--output-format"] == "jsonl" and asked["-m"] == "models/model.gguf"
print("loading")
pl, pp, tg = (int(asked[name]) for name in ("-npl", "-npp", "-ntg"))
if pl * (pp + tg) > int(asked["-c"]):
    sys.exit(0)
print(json.dumps(dict(n_kv_max=int(asked["-c"]), n_gpu_layers=int(asked["-ngl"]),
    n_threads=int(asked["-t"]), pp=pp, tg=tg, pl=pl, t=2.0, speed_pp=600.0, speed_tg=8.0)))
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    bench = tmp_path / "llama-batched-bench"
    bench.write_text(FAKE.format(python=sys.executable))
    bench.chmod(0o755)
    monkeypatch.setattr(batched, "layers_of", lambda file: [LAYER] * 4)
    monkeypatch.setattr(batched, "watch", took)
    out = str(tmp_path / "out.jsonl")
    given = ["--bench", str(bench), "--gguf", "models/model.gguf", "--threads", "12", "--out", out]
    return [*given, "--prompt", "200", "--new-tokens", "20"]


def took(command):
    """Runs it, and says what llama.cpp would take on a GPU."""
    asked = dict(zip(command[1::2], command[2::2], strict=True))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    layers = int(asked["-ngl"])
    taken = OUTSIDE + layers * LAYER + (HEAD - LAYER if layers else 0)
    return done.stdout, taken + int(CACHE * int(asked["-c"]))


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("budget", "layers"), [(10_000, 5), (692, 5), (691, 4), (292, 1), (291, 0), (42, 0)]
)
def test_as_many_layers_as_the_budget_has_room_for(arguments, tmp_path, budget, layers):
    assert main([*arguments, "--budget", str(budget), "--parallel", "1"]) == 0
    (record,) = records(tmp_path)
    assert record["n_gpu_layers"] == layers
    assert record["peak_device_bytes"] <= budget


def test_caches_of_more_sequences_leave_fewer_layers(arguments, tmp_path, capsys):
    assert main([*arguments, "--budget", "695", "--parallel", "1,64"]) == 0
    one, many = records(tmp_path)
    assert (one["n_gpu_layers"], many["n_gpu_layers"]) == (5, 3)
    assert (one["n_kv_max"], many["n_kv_max"]) == (256, 64 * 256)
    assert (one["new_tokens_per_second"], many["new_tokens_per_second"]) == (10, 640)
    text = (tmp_path / "out.md").read_text()
    assert "prompts of 200 tokens, 20 new ones" in text
    assert "rabbitllm" not in text
    assert text in capsys.readouterr().out


def test_a_budget_without_room_for_the_caches_is_refused(arguments):
    with pytest.raises(ValueError, match="with no layer there"):
        main([*arguments, "--budget", "100", "--parallel", "64"])


def test_served_clients_stand_beside(arguments, tmp_path):
    beside = tmp_path / "askers.jsonl"
    served = {"part": "serve", "clients": 4, "tokens_per_second": 80.0}
    fixed = {"part": "fixed", "at_once": 4, "tokens_per_second": 1.0}
    beside.write_text("".join(f"{json.dumps(each)}\n" for each in (served, fixed)))
    main([*arguments, "--budget", "900", "--parallel", "1,4", "--beside", str(beside)])
    alone, four = (tmp_path / "out.md").read_text().splitlines()[2:4]
    assert "10.00" in alone
    assert " x" not in alone
    assert "80.00" in four
    assert "2.00 x" in four


def test_a_bench_that_measures_nothing_is_an_error(arguments):
    asked = argparse.Namespace(
        bench=batched.Path(arguments[1]), gguf=batched.Path("models/model.gguf"),
        prompt=200, threads=1, also="",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"measured nothing: .*-npl 1"):
        run(asked, layers=1, context=256, new=100, sequences=1)


def test_the_most_memory_meanwhile_counts(monkeypatch):
    looks = iter([7, 9, 30, 8])
    monkeypatch.setattr(batched, "in_use", lambda: next(looks, 8))
    command = [sys.executable, "-c", "import time; print('done'); time.sleep(0.5)"]
    assert watch(command) == ("done\n", 23)


def test_a_program_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(batched, "in_use", lambda: 0)
    with pytest.raises(subprocess.CalledProcessError):
        watch([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_line_that_was_lost_is_measured_again(arguments, tmp_path, monkeypatch):
    texts = iter(["", "\n"])

    def forgetful(command):
        text, peak = took(command)
        return next(texts, text), peak

    monkeypatch.setattr(batched, "watch", forgetful)
    assert main([*arguments, "--budget", "900", "--parallel", "1"]) == 0
    assert len(records(tmp_path)) == 1
