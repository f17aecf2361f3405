from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.measuring.formats import encode
from rabbitllm import StreamedModel
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.cli import plan as plan_module
from rabbitllm.measure.limits import Limits
from rabbitllm.prepare import prepare
from rabbitllm.streaming.roads import Roads
from rabbitllm.streaming.row_sharing import OF_PRODUCTS
from rabbitllm.streaming.several import Sharing
from rabbitllm.utils.memory import format_size

Command = Callable[..., tuple[int, str, str]]
CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a weight is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Reader, "fill", refuse)
    monkeypatch.setattr(Reader, "view", refuse)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabbitllm.measure.limits.MATRIX", 64)


def rows(out: str) -> dict[str, list[str]]:
    """The lines of the table by their budget, cut into columns."""
    lines = out.split("\n\n")[1].splitlines()
    starts = [0] + [i + 2 for i in range(len(lines[1])) if lines[1][i : i + 2] == "  "]
    cut = [
        [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        for line in lines
    ]
    return {columns[0]: columns[1:] for columns in (cut[0], *cut[2:])}


def test_the_least_budget_is_what_the_engine_then_does(
    command: Command,
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, out, _ = command("plan", checkpoint(), *CPU, "--no-measure")
    monkeypatch.undo()
    model = streamed(checkpoint())
    reads = []
    for _ in range(2):
        model(torch.tensor([[5]]))
        reads.append(model.streaming_stats()["bytes_from_disk"])
    plan = model.streaming_plan
    resident, disk, most, moved, speed = rows(out)["min"]
    assert status == 0
    assert resident == "-"
    assert disk.endswith(f"({len(plan.away('disk'))})")
    assert most == format_size(plan.device_bytes[model.device])
    assert moved == format_size(reads[1] - reads[0])
    assert speed == "?"


def test_more_budget_keeps_more_and_moves_less(
    command: Command, checkpoint: Callable[..., Path]
) -> None:
    _, out, _ = command("plan", checkpoint(), *CPU, "--no-measure", "--host-memory", "1GiB")
    table = rows(out)
    assert list(table) == [
        "budget",
        "1GiB",
        "min",
        "50% of the weights",
        "75% of the weights",
        "100% of the weights",
    ]
    assert table["1GiB"] == table["100% of the weights"]
    assert table["1GiB"][1:4:2] == ["-", "0 B"]
    moved = [float(columns[3].split()[0]) for columns in list(table.values())[2:]]
    assert moved == sorted(moved, reverse=True)


def test_speeds_are_expected_from_what_is_measured(
    command: Command, checkpoint: Callable[..., Path]
) -> None:
    _, out, _ = command("plan", checkpoint(), *CPU)
    assert "Measured here: disk " in out
    assert all(float(columns[-1]) > 0 for columns in list(rows(out).values())[1:])


def test_the_disk_that_a_store_needs(
    command: Command, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    _, out, _ = command("plan", checkpoint(), *CPU, "--no-measure")
    assert "read in place, so no more is needed" in out
    options = (*CPU, "--no-measure", "--dtype", "bfloat16", "--store", tmp_path / "new" / "stores")
    _, out, _ = command("plan", checkpoint("mixtral"), *options)
    assert " for a layer store, in " in out
    assert f"in {tmp_path / 'new' / 'stores'}" in out
    assert not (tmp_path / "new").exists()


def test_a_filled_store_is_found(
    command: Command,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    options = ("--dtype", "bfloat16", "--store", tmp_path)
    command("split", checkpoint("mixtral"), *options)
    _, out, _ = command("plan", checkpoint("mixtral"), *CPU, "--no-measure", *options)
    assert "in the layer store" in out
    assert "for a layer store" not in out


def test_a_token_is_multiplied_with_its_own_experts_only(
    checkpoint: Callable[..., Path],
) -> None:
    staged = prepare(checkpoint("mixtral"), None, torch.device("cpu"), "auto", "auto", False).staged
    sizes = {w.name: w.nbytes for stage in staged.stages for w in stage.weights}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    looked_up = sum(stage.nbytes for stage in staged.stages if stage.slotless and not stage.rows)
    assert experts
    expected = sum(sizes.values()) - looked_up - experts / 2  # two of four experts
    assert staged.computed_bytes == expected


def test_on_a_gpu_host_memory_is_another(checkpoint: Callable[..., Path]) -> None:
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    layer = staged.sizes["model.layers.0"]
    cuda = torch.device("cuda:0")
    arguments = argparse.Namespace(
        device="cuda", device_memory="min", host_memory=str(6 * layer), max_seq_len=None
    )
    plans = {budget: plan for budget, _, plan in plan_module._plans(staged, (cuda,), arguments)}
    assert next(iter(plans)) == "min"
    assert "100% of the weights" in plans
    least = plans["min"]
    assert least.away("host")
    assert not plans["100% of the weights"].streamed("host", "disk")
    limits = Limits(disk=1e-3, pinned=2e-3, compute=1e9)
    row = plan_module._row("min", staged, least, limits, False)
    hosted = sum(staged.sizes[name] for name in least.away("host"))
    on_disk = sum(staged.sizes[name] for name in least.streamed("disk"))
    assert row["host memory"] == f"{format_size(hosted)} ({len(least.away('host'))})"
    assert row["moved a token"] == format_size(hosted + on_disk)
    seconds = max(on_disk / 1e6, (hosted + on_disk) / 2e6)
    assert float(row["tokens/s, at best"]) == pytest.approx(1 / seconds, abs=0.01)


def test_what_the_cpu_computes_for_a_gpu_is_shown_and_expected(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    roads = Roads(link=1e6, host={1: 1e6}, threads=1, crossing=0.0)
    monkeypatch.setattr("rabbitllm.measure.prediction.roads_of", lambda *_: roads)
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    cuda = torch.device("cuda:0")
    arguments = argparse.Namespace(
        device="cuda", device_memory="min", host_memory=1 << 30, max_seq_len=None
    )
    limits, alone, shown = Limits(pinned=1e-3), [], []
    for sharing, found in ((None, alone), (Sharing(lambda *_: roads), shown)):
        plans = list(plan_module._plans(staged, (cuda,), arguments, sharing))
        found += [plan_module._row(*plan, limits, sharing is not None) for plan in plans]
    least, quarter, *_ = shown
    assert [row["budget"] for row in shown] == [row["budget"] for row in alone]
    assert "of it the CPU computes" not in alone[0]
    for row in (least, quarter):
        assert row["of it the CPU computes"].endswith(")")
    assert shown[-1]["of it the CPU computes"] == "-"  # all of it fits
    assert float(least["tokens/s, at best"]) > 1.3 * float(alone[0]["tokens/s, at best"])


def test_what_the_cpu_computes_of_experts_in_prompts_is_shown(
    checkpoint: Callable[..., Path],
) -> None:
    staged = prepare(checkpoint("mixtral"), None, torch.device("cpu"), "auto", "auto", False).staged
    cuda = torch.device("cuda:0")

    def shown(link: float, host: dict[int, float], memory: int | str = "min") -> str:
        roads = Roads(link, host, threads=1, crossing=0.0)
        sharing = Sharing(lambda *_: roads)
        arguments = argparse.Namespace(
            device="cuda", device_memory=memory, host_memory=1 << 30, max_seq_len=None
        )
        _, *placed = next(plan_module._plans(staged, (cuda,), arguments, sharing))
        return plan_module._prompts(*placed)

    # Two of four experts are asked for by a token: 512 tokens are 256 for each, 16 come from 32.
    even = 1e6 / OF_PRODUCTS
    assert shown(1e6, {1: even, 512: even}) == "experts on both roads, 50% by the CPU at 512 tokens"
    quick = {1: 3 * even, 16: 3 * even}
    assert shown(1e6, quick) == "experts on both roads, 75% by the CPU at 32 tokens"
    assert not shown(1e9, {1: 1e6})
    assert not shown(1e6, {1: 1e6}, 1 << 34)  # all of it fits


def test_sharing_out_needs_a_gpu_and_rates(
    command: Command,
    checkpoint: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command("plan", checkpoint(), *CPU, "--host-compute", "--no-measure")[0] == 0
    assert "host_compute='auto' does nothing here" in caplog.text
    monkeypatch.setattr("rabbitllm.streaming.sharing.accept_host_compute", lambda *_: True)
    status, _, err = command("plan", checkpoint(), *CPU, "--host-compute", "--no-measure")
    assert status == 2
    assert "leave --no-measure out" in err


def test_of_several_gpus_the_plan_says_what_fewer_would_do(
    checkpoint: Callable[..., Path],
) -> None:
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    devices = torch.device("cuda", 0), torch.device("cuda", 1)
    arguments = argparse.Namespace(
        device="cuda:0,cuda:1", device_memory="min", host_memory="1GiB", max_seq_len=None
    )
    plans = list(plan_module._plans(staged, devices, arguments))
    assert [name for name, *_ in plans] == ["min", "min on 1 of 2"]
    limits = Limits(pinned=2e-3, compute=1e9)
    both, one = (plan_module._row(*each, limits, False) for each in plans)
    slowest = max(
        sum(
            staged.sizes[n] for n in plans[0][2].moving("host") if plans[0][2].places[n].device == d
        )
        for d in devices
    )
    expected = 1 / (2 * slowest / 2e6)  # each link carries half of what both do
    assert float(both["tokens/s, at best"]) == pytest.approx(expected, abs=0.01)
    assert len(plans[1][2].device_bytes) == 1
    assert one["moved a token"] != both["moved a token"]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (("--device", "cuda:0,cuda:0"), "names cuda:0 twice"),
        (("--device", "cuda:0,cpu"), "has the CPU among others"),
        (("--device", "cuda:0,cuda:7"), "device='cuda:7' is not there: 2 CUDA devices"),
        (("--device", "cuda:0,cuda:1", "--device-memory", "1GiB,lots"), "'lots' is no size"),
        (("--device-memory", "1GiB,1GiB", *CPU), "has 2 budgets, and device= means 1: cpu"),
    ],
)
def test_gpus_that_make_no_sense_are_refused_by_name(
    options: tuple[str, ...],
    wrong: str,
    command: Command,
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    status, _, err = command("plan", checkpoint(), *options)
    assert status == 2
    assert wrong in err


@pytest.mark.parametrize(
    ("form", "loops", "said"),
    [("nf4", None, True), ("nf4", "numba's", False), ("", None, False)],
)
def test_what_numpy_decodes_is_said(
    command: Command,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    loops: str | None,
    said: bool,
) -> None:
    folder = Path(shutil.copytree(checkpoint(), tmp_path / "quantised"))
    if form:
        encode(form, folder)
    monkeypatch.setattr("rabbitllm.checkpoint.codecs.compiled.compiled_loops", lambda: loops)
    status, out, _ = command("plan", folder, *CPU, "--no-measure")
    assert status == 0
    assert ("with the extra `numba` installed" in out) == said


def test_how_experts_come_is_said(
    command: Command, checkpoint: Callable[..., Path], composite: Path
) -> None:
    _, mixture, _ = command("plan", checkpoint("mixtral"), *CPU, "--no-measure")
    assert "\nExperts: those of 4 layers come as tokens are sent to them\n" in mixture
    _, whole, _ = command("plan", composite, *CPU, "--no-measure")
    assert "\nExperts: those of 4 layers come whole, for " in whole
    assert "alone (Llama4TextExperts)\n" in whole
    _, dense, _ = command("plan", checkpoint(), *CPU, "--no-measure")
    assert "Experts" not in dense
