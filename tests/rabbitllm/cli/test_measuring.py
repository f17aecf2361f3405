"""`doctor` and `bench`."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm.cli import doctor
from rabbitllm.prepare import prepare

Command = Callable[..., tuple[int, str, str]]
SHORT = ("-p", "9", "-n", "4", "-r", "2", "--device", "cpu")
SECRET = "hf_nobodyMayReadThis"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabbitllm.measure.limits.MATRIX", 64)
    monkeypatch.setattr("rabbitllm.measure.limits.PROBE", 1 << 20)


# doctor


def test_doctor_says_what_there_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITLLM_CACHE", str(tmp_path / "not" / "yet"))
    status, out, _ = command("doctor")
    assert status == 0
    for name in ("Python", "torch", "transformers", "CUDA", "FlashAttention 2", "Host memory"):
        assert f"\n{name} " in f"\n{out}"
    assert f"{tmp_path / 'not' / 'yet'}: 0 stores" in out
    assert "GB/s" in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_never_prints_the_token(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    _, out, err = command("doctor")
    assert "Hub token         present" in out
    assert SECRET not in out + err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "Hub token         none" in command("doctor")[1]


def test_doctor_knows_a_containers_limit(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabbitllm.utils.memory.available_host_memory", lambda: 3 << 20)
    assert "3.00 MiB available (a container's limit)" in command("doctor")[1]


def test_doctor_survives_a_disk_it_cannot_write_to(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    status, out, _ = command("doctor")
    assert status == 0
    assert "not measured: [Errno 13] Permission denied" in out


def test_doctor_says_that_torch_is_too_old(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_available", lambda: False)
    status, out, _ = command("doctor")
    assert status == 0
    assert re.search(r"In the way +torch \S+ is too old for transformers \S+: install a newer", out)
    assert "Compatibility" in out


def test_doctor_survives_a_transformers_that_does_not_import(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.utils.import_utils", None)
    status, out, _ = command("doctor")
    assert status == 0
    assert re.search(r"In the way +transformers does not import: import of transformers", out)
    assert re.search(r"transformers +5", out)


def test_what_loads_a_model_says_that_torch_is_too_old(
    command: Command, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_available", lambda: False)
    for arguments in (
        ("plan", talker),
        ("run", talker, "hi"),
        ("split", talker),
        ("bench", talker),
    ):
        status, _, err = command(*arguments)
        assert (status, err.count("\n")) == (1, 1)
        assert "is too old for transformers" in err


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing is to be done."""
    monkeypatch.setenv("RABBITLLM_CACHE", str(tmp_path))
    monkeypatch.setattr("rabbitllm.utils.memory.available_host_memory", lambda: 1 << 60)
    monkeypatch.setattr("rabbitllm.measure.limits.folder_bandwidth", lambda _: 7.0)
    monkeypatch.setattr("shutil.which", lambda _: None)


@pytest.mark.usefixtures("sound")
def test_doctor_ends_with_what_there_is_to_do(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command("doctor")[1].endswith("\nNothing to do.\n")
    monkeypatch.setattr("rabbitllm.measure.limits.folder_bandwidth", lambda _: 0.25)
    (tmp_path / "a-store").mkdir()
    (tmp_path / "a-store" / "store.json").write_text("{}")
    first, second = command("doctor")[1].partition("\nTo do:\n")[2].splitlines()
    assert first.startswith("1. 1 of the layer stores are incomplete")
    assert second.startswith(f"2. The disk of {tmp_path} reads 0.25 GB/s, 60 s for each token")


@pytest.mark.usefixtures("sound")
def test_doctor_names_three_things_the_first_first(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {f"part {i}": lambda i=i: doctor.Finding("", f"mend {i}") for i in range(5)}
    monkeypatch.setattr(doctor, "FINDINGS", found)
    assert command("doctor")[1] == "\nTo do:\n1. mend 0\n2. mend 1\n3. mend 2\n"


def test_doctor_survives_a_transformers_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("nn.Module  # as without torch\n")
    done = subprocess.run(
        [sys.executable, "-m", "rabbitllm", "doctor"],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
        | {"RABBITLLM_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    release = importlib.metadata.version("transformers")
    assert f"\ntransformers      {release}\n" in done.stdout
    assert f"\ntorch             {importlib.metadata.version('torch')}\n" in done.stdout
    assert "In the way        transformers does not import: name 'nn' is not" in done.stdout
    assert f"1. Mend transformers {release} and torch" in done.stdout
    assert "Host memory" in done.stdout
    assert not done.stderr


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize(
    ("name", "said"),
    [("O_DIRECT", "direct reads"), ("preadv", "reads at a place"), ("fork", "forks: a cell")],
)
def test_doctor_says_what_other_systems_lack(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    assert "Not here" not in command("doctor")[1]
    monkeypatch.delattr(os, name)
    assert f"\nNot here          {said}" in command("doctor")[1]


def test_doctor_compares_backends(command: Command, talker: Path) -> None:
    status, out, _ = command("doctor", "--benchmark", talker)
    lines = [line.split() for line in out.split("\n\n")[1].splitlines()[2:]]
    assert status == 0
    assert [line[:2] for line in lines] == [["auto", "sdpa"], ["sdpa", "sdpa"], ["eager", "eager"]]
    assert all(float(line[3]) > 0 for line in lines)
    assert {line[4] for line in lines} == {"all"}


def test_backends_may_part_ways() -> None:
    assert doctor._agreement([1, 2, 3], [1, 2, 3]) == "all"
    assert doctor._agreement([1, 2, 3], [1, 9, 3]) == "1 of 3"


# bench


def test_bench_prints_markdown(command: Command, talker: Path) -> None:
    status, out, err = command("bench", talker, "--host-memory", "min", *SHORT)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert status == 0
    assert lines[0][:5] == ["model", "runs", "attention", "test", "t/s"]
    assert lines[0][5:] == ["GB/s", "% of limit", "% of plan's"]
    assert [line[1:4] for line in lines[2:]] == [
        ["streamed", "sdpa", "pp9"],
        ["streamed", "sdpa", "tg4"],
        ["stock", "sdpa", "pp9"],
        ["stock", "sdpa", "tg4"],
    ]
    assert all(" ± " in line[4] for line in lines[2:])
    assert [line[5] == "-" for line in lines[2:]] == [False, False, True, True]
    assert lines[3][6].endswith("%")
    assert lines[4][6] == "-"
    assert [line[7].endswith("%") for line in lines[2:]] == [False, True, False, False]
    assert err.startswith("Limits on CPU, ")


def test_bench_prints_json_with_every_sample(command: Command, talker: Path) -> None:
    _, out, _ = command(
        "bench", talker, "--host-memory", "min", "--no-stock", "--format", "json", *SHORT
    )
    prefill, decoding = json.loads(out)
    assert (prefill["test"], decoding["test"]) == ("pp9", "tg4")
    for row in (prefill, decoding):
        assert row["runs"] == "streamed"
        assert len(row["samples"]) == 2
        assert row["tokens_per_second"] == pytest.approx(sum(row["samples"]) / 2)
        assert row["sd"] >= 0
        assert row["limits"]["disk"] > 0
    stages = prepare(talker, None, torch.device("cpu"), "auto", "auto", False).staged.stages
    moving = (stage for stage in stages if not stage.pinned and not stage.slotless)
    weights = decoding["gb_per_second"] / decoding["tokens_per_second"]
    assert weights == pytest.approx(sum(stage.nbytes for stage in moving) / 1e9)
    assert weights == pytest.approx(prefill["gb_per_second"] / prefill["tokens_per_second"] * 9)
    assert decoding["limit_tokens_per_second"] <= decoding["limits"]["disk"] / weights * 1.001


def test_bench_prints_csv(command: Command, talker: Path) -> None:
    _, out, _ = command("bench", talker, "--no-stock", "--format", "csv", *SHORT)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["test"] for row in rows] == ["pp9", "tg4"]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert {row["gb_per_second"] for row in rows} == {""}


def test_bench_leaves_stock_out_where_it_does_not_fit(
    command: Command, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rabbitllm.cli.bench.ROOM", 1e12)
    assert "stock" not in command("bench", talker, *SHORT)[1]


def test_bench_draws_a_picture(command: Command, talker: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "layers.svg"
    options = ("--host-memory", "min", "--no-stock", "--picture", picture)
    assert command("bench", talker, *options, *SHORT)[0] == 0
    text = picture.read_text()
    for drawn in ("model.layers.3", "waiting", "computing", "reading from disk"):
        assert drawn in text
    assert "copying" not in text  # there is no device
    status, _, err = command("bench", talker, "--no-stock", "--picture", picture, *SHORT)
    assert status == 2
    assert "Nothing streams" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--picture", "missing/p.svg"), "no folder missing"),
        (("--picture", "p.txt"), "has to end in .png, .svg, .pdf"),
        (("-p", "99999"), "positions for"),
    ],
)
def test_bench_says_what_cannot_be_before_it_measures(
    command: Command, talker: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = command("bench", str(talker), *SHORT, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Limits on" not in err
