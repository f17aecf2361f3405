from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.llama_cpp.measure import main

FAKE = """#!{python}
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if asked["-ngl"] == "13":
    sys.exit("no such layer")
same = dict(build_commit="abc", model_type="qwen2 7B BF16", model_size=15_200_000_000,
    n_threads=int(asked["-t"]), gpu_info="a GPU", cpu_info="a CPU", model_filename=asked["-m"],
    n_gpu_layers=int(asked["-ngl"]), stddev_ts=0.125)
assert asked["-o"] == "json" and asked["-m"] == "models/model.gguf" and asked["-r"] == "5"
print(json.dumps([
    dict(same, n_prompt=int(asked["-p"]), n_gen=0, avg_ts=600.0),
    dict(same, n_prompt=0, n_gen=int(asked["-n"]), avg_ts=8.0),
]))
"""


@pytest.fixture
def arguments(tmp_path):
    bench = tmp_path / "llama-bench"
    bench.write_text(FAKE.format(python=sys.executable))
    bench.chmod(0o755)
    out = str(tmp_path / "out.jsonl")
    return ["--bench", str(bench), "--gguf", "models/model.gguf", "--threads", "12", "--out", out]


def test_each_number_of_layers_is_measured_and_told(arguments, tmp_path, capsys):
    assert main([*arguments, "--layers", "0,7"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(r["n_gpu_layers"], r["avg_ts"]) for r in records] == [
        *((0, 600.0), (0, 8.0), (7, 600.0), (7, 8.0)),
    ]
    assert {r["model_filename"] for r in records} == {"model.gguf"}
    text = (tmp_path / "out.md").read_text()
    assert "pp512" in text
    assert "8.00 ± 0.12" in text
    assert "llama.cpp abc, qwen2 7B BF16, 15.2 GB, 12 threads; a GPU, a CPU." in text
    assert text in capsys.readouterr().out


def test_a_bench_that_fails_leaves_what_was_measured_and_its_table(arguments, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        main([*arguments, "--layers", "0,13"])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    table = (tmp_path / "out.md").read_text()
    assert "tg64" in table
    assert " 13 " not in table
