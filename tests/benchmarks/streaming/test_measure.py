from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkpoints import PERIOD, SHAPES, cyclic_prompt, write_checkpoint, write_cyclic
from benchmarks.streaming import measure as streaming
from benchmarks.streaming.table import TARGETS, collect, differing, main, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    return write_checkpoint(SHAPES["tiny"], root / "tiny", torch.float32, "cpu")


def measured(folder: Path, tmp_path: Path, *setups: str) -> list[dict[str, Any]]:
    out = tmp_path / "results.jsonl"
    for setup in setups:
        streaming.run_setup(setup, folder, out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_cyclic_checkpoint_goes_on_as_it_was_prompted(folder: Path) -> None:
    cyclic = write_cyclic(folder, folder.with_name("cyclic"))
    model = streaming.stock(cyclic)
    prompt = cyclic_prompt(PERIOD + 5)
    output = model.generate(prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)
    assert torch.equal(output, cyclic_prompt(PERIOD + 45))
    assert write_cyclic(folder, cyclic) == cyclic


def test_a_tied_head_cannot_be_cyclic(folder: Path, tmp_path: Path) -> None:
    name = "model.safetensors.index.json"
    index = json.loads((folder / name).read_text())
    del index["weight_map"]["lm_head.weight"]
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="tied head"):
        write_cyclic(tmp_path, tmp_path / "cyclic")


@pytest.mark.parametrize(("share", "streaming_layers"), [(0, 4), (0.25, 3), (1, 0)])
def test_a_budget_holds_a_share_of_the_layers(
    folder: Path, share: float, streaming_layers: int
) -> None:
    model = streaming.streamed(folder, **streaming.budget(folder, share))
    sizes = {n: p.numel() for n, p in model.named_parameters() if ".layers." in n}
    streamed = sum(sizes[n] for n, p in model.named_parameters() if n in sizes and p.is_meta)
    # On CPU blocks stream in parts, so that up to the two more stay that would take turns.
    layer = sum(sizes.values()) / 4
    assert (streamed > 0) == (streaming_layers > 0)
    assert (streaming_layers - 2) * layer < streamed <= streaming_layers * layer or not streamed
    assert model.streaming_plan.tiers["lm_head"] == "device"


def test_what_fits_takes_turns_with_stock(folder: Path, tmp_path: Path) -> None:
    (record,) = measured(folder, tmp_path, "fits")
    turns = record["turns"]
    assert {name: len(rates) for name, rates in turns.items()} == {
        "tokens_per_second": 6,
        "stock_tokens_per_second": 6,
    }
    assert record["stock_tokens_per_second"] == pytest.approx(
        statistics.median(turns["stock_tokens_per_second"])
    )
    assert record["tiers"]["disk"] == 0
    assert "stock in turns with it" in render("tiny", collect([record]))


@pytest.mark.skipif(streaming.DEVICE.type != "cpu", reason="on a GPU the disk is not all there is")
def test_what_streams_is_measured_beside_stock_and_the_disk(folder: Path, tmp_path: Path) -> None:
    records = measured(folder, tmp_path, "limits", "lookup", "disk", "disk-lossless")
    by_name = {record["scenario"]: record for record in records}
    streamed = ["disk", "disk-lossless"]
    assert list(by_name) == ["limits", "repetitive", "prompt-lookup", *streamed]
    assert by_name["repetitive"]["tokens"] == by_name["prompt-lookup"]["tokens"]
    assert len(by_name["prompt-lookup"]["step_seconds"]) < 63 / 5
    for name in streamed:
        assert by_name[name]["bytes_from_disk"] > 0
        assert len(by_name[name]["direct_read"]) == 2
        assert min(by_name[name]["direct_read"]) > 0
    assert by_name["disk-lossless"]["tokens"] == by_name["disk"]["tokens"]


def record(scenario: str, **figures: Any) -> dict[str, Any]:
    return {"checkpoint": "m", "torch": "2", "scenario": scenario, "tokens": [1, 2]} | figures


def test_lines_stand_beside_their_targets() -> None:
    records = collect(
        [
            record("limits", pinned=50.0, device_name="GPU"),
            record("host", tokens_per_second=4.0, device_gb_per_second=51.0),
            record("batch-32", tokens_per_second=96.0),
            record("limits", pinned=52.0, device_name="GPU"),
        ]
    )
    assert records["limits"]["pinned"] == 51.0
    text = render("m", records)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["100.0%", "97%", "yes"] in [line[3:] for line in lines]
    assert ["24.0x", "25x", "no"] in [line[3:] for line in lines]
    assert "from disk" not in text


def test_a_half_that_does_not_stream_is_held_against_stock() -> None:
    records = collect(
        [
            record("limits", device_name="CPU"),
            record("disk", direct_read=[0.5, 1.5]),
            record("stock", tokens_per_second=10.0),
            record("half", tokens_per_second=9.0, bytes_from_disk=0.0),
        ]
    )
    (target,) = [target for target in TARGETS if target.needs[0] == "half"]
    assert target.reached(records) == pytest.approx(0.9)
    records["half"] = records["half"] | {"bytes_from_disk": 5e8}
    assert target.reached(records) == pytest.approx(4.5)


def test_tokens_that_differ_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [record("stock"), record("fits", tokens=[1, 2, 3])]
    other = record("fits", tokens=[1, 5])
    assert differing(collect(same)) == []
    assert differing(collect([*same, other])) == ["fits and stock part at token 2."]
    for records, status in ((same, 0), ([*same, other], 1)):
        rates = {"tokens_per_second": 1.0, "stock_tokens_per_second": 1.0}
        lines = [json.dumps(one | rates) for one in records]
        (tmp_path / "results.jsonl").write_text("\n".join(lines))
        assert main([str(tmp_path / "results.jsonl")]) == status
    assert "part at token 2" in capsys.readouterr().out
