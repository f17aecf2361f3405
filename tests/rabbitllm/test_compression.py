"""compression="lossless", from the argument to the bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import AutoModel, CheckpointError, StreamedModel
from rabbitllm.checkpoint.codecs import codec_class
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.inventory import damaged, find_stores
from rabbitllm.checkpoint.tensors import read_header
from rabbitllm.cli import main
from rabbitllm.measure import prediction
from rabbitllm.measure.prediction import Prediction
from rabbitllm.prepare import prepare
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.working import Work, read_geometry, working_bytes
from rabbitllm.utils import find_or_create_local_splitted_path
from tests.rabbitllm.streaming.simulated import simulate

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3}
"""So that a layer's weights are worth encoding."""

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wide(
    build: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`wide(model_type, dtype, field=value)` -> a checkpoint of its own."""

    def folder(model_type: str, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Path:
        path = tmp_path_factory.mktemp(model_type)
        build(model_type, dtype, **WIDE | fields).save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def llama(wide: Callable[..., Path]) -> Path:
    """A checkpoint that can be read in place; do not write there."""
    return wide("llama", tie_word_embeddings=False, vocab_size=2000)


def split(folder: Path, root: Path, compression: str | None) -> Path:
    return find_or_create_local_splitted_path(folder, root, compression=compression)[1]


@pytest.mark.parametrize("host_memory", ["min", "auto"])
def test_budgets_are_of_what_a_store_really_holds(
    build: Callable[..., PreTrainedModel],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host_memory: str,
) -> None:
    """Trained weights have values outside of the window, and noise does not compress at all."""
    fields = WIDE | {"intermediate_size": 1024, "hidden_size": 192, "num_local_experts": 4}
    made = build("mixtral", torch.bfloat16, **fields)
    noise = made.model.layers[1].mlp.experts.down_proj.data
    noise.copy_(torch.exp2(torch.rand(noise.shape, generator=torch.manual_seed(0)) * -60 - 4))
    folder = tmp_path / "mixtral"
    made.save_pretrained(folder)
    simulate(monkeypatch, 1)
    model = streamed(
        folder,
        device_memory="min",
        host_memory=host_memory,
        layer_shards_saving_path=tmp_path / "stores",
        compression="lossless",
    )
    assert torch.equal(model(prompt).logits, stock(folder)(prompt).logits)
    (store,) = find_stores(tmp_path / "stores")
    experts = [f"model.layers.{n}.mlp.experts" for n in range(3)]
    sizes = {name: entry.nbytes for name, entry in store.entries().items() if ".layers." in name}
    assert sizes[f"{experts[1]}.down_proj"] == noise.nbytes  # as it is
    plan = model.streaming_plan
    assert plan.routed == {*experts}
    if host_memory == "auto":
        assert plan.host_bytes >= sum(sizes.values())
    else:
        largest = (sizes[f"{experts[1]}.{name}"] for name in ("gate_up_proj", "down_proj"))
        assert plan.host_shelf.nbytes >= sum(largest) // 4


def read_a_forward(model: StreamedModel, prompt: torch.Tensor) -> int:
    for _ in range(2):  # the first learns the order
        before = model.streaming_stats()["bytes_from_disk"]
        model(prompt)
    return int(model.streaming_stats()["bytes_from_disk"] - before)


@pytest.mark.parametrize("experts", [{}, {"intermediate_size": 1024, "hidden_size": 192}])
def test_encoded_experts_come_by_rows_or_are_plain(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    experts: dict[str, int],
) -> None:
    """Rows of 192 x 1,024 are blocks of the codec; those of others end within one."""
    folder = wide("mixtral", num_local_experts=4, **experts)
    model = streamed(folder, layer_shards_saving_path=tmp_path, compression="lossless")
    assert model.streaming_plan.routed
    expected = stock(folder)(prompt).logits
    assert torch.equal(model(prompt).logits, expected)
    (store,) = find_stores(tmp_path)
    codecs = {e.codec != PLAIN for n, e in store.entries().items() if n.endswith("down_proj")}
    assert codecs == {bool(experts)}


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"tie_word_embeddings": False, "vocab_size": 2000}),
        ("llama", {"tie_word_embeddings": True, "vocab_size": 2000}),
    ],
)
def test_the_bits_are_stocks_and_fewer_bytes_come_from_disk(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    model_type: str,
    fields: dict[str, Any],
) -> None:
    folder = wide(model_type, **fields)
    plain = streamed(folder, layer_shards_saving_path=tmp_path)
    compressed = streamed(folder, layer_shards_saving_path=tmp_path, compression="lossless")
    assert compressed.streaming_plan == plain.streaming_plan
    expected = stock(folder)(prompt).logits
    assert torch.equal(compressed(prompt).logits, expected)
    on_disk = tuple(f"{name}." for name in compressed.streaming_plan.streamed("disk"))
    encoded = sum(
        parameter.nbytes
        for name, parameter in compressed.named_parameters()
        if name.startswith(on_disk) and "embed" not in name and parameter.numel() >= 1 << 16
    )
    assert torch.equal(compressed(prompt).logits, expected)
    saved = read_a_forward(plain, prompt) - read_a_forward(compressed, prompt)
    assert 0.24 * encoded < saved <= 0.25 * encoded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compression", ["8bit", "4bit"])
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {"tie_word_embeddings": False}), ("mixtral", {"num_local_experts": 4})],
)
def test_lossy_weights_are_what_their_codec_makes_of_them(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    model_type: str,
    fields: dict[str, Any],
    compression: str,
    dtype: torch.dtype,
) -> None:
    folder = wide(model_type, dtype, **fields)
    options = {"layer_shards_saving_path": tmp_path, "compression": compression}
    reference = stock(folder)
    plain = reference(prompt).logits
    model = streamed(folder, **options)
    (store,) = find_stores(tmp_path)
    assert store.codecs == (compression,)
    assert damaged(store) == []
    codec = codec_class(compression)
    encoded = 0
    for name, entry in store.entries().items():
        if entry.codec != PLAIN:
            weight = reference.get_parameter(name)
            weight.data = _round_trip(codec, weight.data)
            encoded += 1
    assert encoded > 10
    expected = reference(prompt).logits
    assert torch.equal(model(prompt).logits, expected)
    assert not torch.equal(expected, plain)
    # Where all of it stays in memory, nothing is read again, and no bit has to be given up.
    assert torch.equal(streamed(folder, host_memory="auto", **options)(prompt).logits, plain)


def _round_trip(kind: type[Codec], weight: torch.Tensor) -> torch.Tensor:
    codec, stored = kind.encode(weight) or pytest.fail("not encoded")
    made = torch.empty_like(weight)
    codec.decode(
        [tensor.view(torch.uint8).reshape(-1).numpy() for tensor in stored.values()],
        made.view(torch.uint8).reshape(-1).numpy(),
        np.empty(codec.scratch, np.uint8),
    )
    return made


@pytest.mark.parametrize("compression", ["8bit", "4bit"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_lossy_weights_never_take_the_place_of_the_originals(
    wide: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    compression: str,
    model_type: str,
) -> None:
    folder = wide(model_type)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = f"compression='{compression}' does not hold the bits of the shards of {folder}"
    options = {"layer_shards_saving_path": tmp_path, "compression": compression}
    with pytest.raises(CheckpointError, match=message):
        streamed(folder, delete_original=True, **options)
    streamed(folder, **options)
    with pytest.raises(CheckpointError, match=message):
        streamed(folder, delete_original=True, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_stays_resident_is_decoded_too(
    llama: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"max_seq_len": 64, "compression": "lossless"}
    options["layer_shards_saving_path"] = tmp_path
    smallest = streamed(llama, **options)
    least = smallest.streaming_plan
    room = least.slot_sizes[CPU][0] * 3 // 2
    working = working_bytes(read_geometry(smallest.config), torch.bfloat16, CPU, Work(1, 64))
    model = streamed(llama, host_memory=least.device_bytes[CPU] + room + working, **options)
    plan = model.streaming_plan
    assert plan.streamed("disk")
    assert any(name.startswith("model.layers.") for name in plan.resident())
    assert torch.equal(model(prompt).logits, stock(llama)(prompt).logits)


def test_a_store_holds_embeddings_and_small_weights_as_they_are(
    llama: Path, tmp_path: Path
) -> None:
    store = split(llama, tmp_path, "lossless")
    encoded, plain = {}, {}
    for file in store.glob("*.safetensors"):
        for name, entry in read_header(file).items():
            (plain if entry.codec == PLAIN else encoded)[name] = entry
    assert "model.embed_tokens.weight" in plain
    assert "lm_head.weight" in encoded
    assert all(
        name.endswith(("norm.weight", "k_proj.weight", "v_proj.weight", "embed_tokens.weight"))
        for name in plain
    )
    assert len(encoded) == 3 * 5 + 1
    (found,) = find_stores(tmp_path)
    assert found.complete
    assert found.codecs == ("lossless",)
    assert damaged(found) == []


def test_a_store_is_made_only_for_what_comes_from_disk(
    llama: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = streamed(
        llama, host_memory="auto", compression="lossless", layer_shards_saving_path=tmp_path
    )
    assert torch.equal(model(prompt).logits, stock(llama)(prompt).logits)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_and_a_encoded_store_lie_side_by_side(
    wide: Callable[..., Path], tmp_path: Path
) -> None:
    folder = wide("mixtral", num_local_experts=4)
    made = {compression: split(folder, tmp_path, compression) for compression in (None, "lossless")}
    sizes = {
        compression: sum(file.stat().st_size for file in store.glob("*.safetensors"))
        for compression, store in made.items()
    }
    assert {found.folder: found.codecs for found in find_stores(tmp_path)} == {
        made[None]: (),
        made["lossless"]: ("lossless",),
    }
    assert 0.74 < sizes["lossless"] / sizes[None] < 0.9


def test_another_dtype_has_nothing_to_encode(
    wide: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    folder = wide("llama", torch.float16)
    streamed(folder, compression="lossless", layer_shards_saving_path=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_float32_is_stored_in_seven_eighths(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    folder = wide("llama", torch.float32, tie_word_embeddings=False)
    options: dict[str, Any] = {"compression": "lossless", "layer_shards_saving_path": tmp_path}
    expected = stock(folder)(prompt).logits
    model = streamed(folder, **options, delete_original=True)
    assert torch.equal(model(prompt).logits, expected)
    (store,) = find_stores(tmp_path)
    assert store.codecs == ("lossless-float32",)
    assert damaged(store) == []
    entries = [entry for entry in store.entries().values() if entry.codec != PLAIN]
    plain = sum(4 * entry.shape[0] * entry.shape[1] for entry in entries)
    assert 0.875 <= sum(entry.nbytes for entry in entries) / plain < 0.88
    assert torch.equal(streamed(folder, **options)(prompt).logits, expected)


@pytest.mark.parametrize("memory", ["min", "auto"])
def test_an_encoded_store_can_take_the_place_of_the_originals(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    memory: str,
) -> None:
    folder = wide("llama", tie_word_embeddings=False)
    expected = stock(folder)(prompt).logits
    options = {"layer_shards_saving_path": tmp_path}
    streamed(folder, compression="lossless", delete_original=True, **options)
    assert list(folder.glob("*.safetensors")) == []
    (store,) = tmp_path.iterdir()
    for compression in (None, "lossless"):
        again = streamed(folder, host_memory=memory, compression=compression, **options)
        assert torch.equal(again(prompt).logits, expected)
        assert split(folder, tmp_path, compression) == store
    assert list(tmp_path.iterdir()) == [store]


def test_a_checkpoint_that_needs_a_store_gets_one_encoded_store_in_any_case(
    wide: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    folder = wide("mixtral", num_local_experts=4)
    store = split(folder, tmp_path, "lossless")
    options = {"compression": "lossless", "layer_shards_saving_path": tmp_path}
    for memory in ("auto", "min"):
        streamed(folder, host_memory=memory, **options)
        assert list(tmp_path.iterdir()) == [store]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_an_encoded_store_may_follow_a_plain_one_and_is_guarded_like_it(
    wide: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model_type: str,
) -> None:
    folder = wide(model_type, tie_word_embeddings=False)
    expected = stock(folder)(prompt).logits
    store = ("--store", str(tmp_path))
    for options in ((), ("--compression=lossless",), ("--compression=lossless",)):
        assert main(["split", str(folder), "--delete-original", *store, *options]) == 0
    (found,) = find_stores(tmp_path)
    assert found.source == folder.resolve()
    assert found.only_copy
    assert found.codecs == ("lossless",)
    assert [path.name for path in tmp_path.iterdir()] == [found.folder.name]
    assert main(["cache", "rm", "--all", *store]) != 0
    assert "only" in "".join(capsys.readouterr())
    model = streamed(folder, layer_shards_saving_path=tmp_path)
    assert torch.equal(model(prompt).logits, expected)
    prepared = prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    staged = prepared.staged.stored(prepared.location.encoded())
    sizes = {stage.name: stage.stored_nbytes for stage in staged.stages}
    expected_bytes = sum(sizes[name] for name in model.streaming_plan.streamed("disk"))
    read = read_a_forward(model, prompt)
    rows = sum(stage.stored_row_nbytes for stage in staged.stages)
    assert expected_bytes * (1 - 2e-3) <= read
    assert read <= expected_bytes * (1 + 2e-3) + 8 * rows  # those that were guessed, too


def test_a_checkpoint_that_says_it_is_a_store_keeps_its_other_files(
    wide: Callable[..., Path], tmp_path: Path
) -> None:
    folder = wide("llama", tie_word_embeddings=False)
    (folder / "store.json").write_text('{"codecs": []}')
    before = {path.name for path in folder.iterdir()} - {"model.safetensors"}
    command = ["split", str(folder), "--store", str(tmp_path), "--compression=lossless"]
    assert main([*command, "--delete-original"]) == 0
    assert {path.name for path in folder.iterdir()} == before | {"rabbitllm-moved.json"}


def test_a_store_in_which_nothing_could_be_encoded_is_not_made_again(
    wide: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lossless, "encode", lambda *_: None)
    folder = wide("llama", tie_word_embeddings=False)
    options = {"delete_original": True, "layer_shards_saving_path": tmp_path}
    for _ in range(3):
        streamed(folder, compression="lossless", **options)
        (store,) = find_stores(tmp_path)
        assert store.complete


def test_another_compression_is_named(llama: Path) -> None:
    with pytest.raises(ValueError, match=r"compression='zip' is not known"):
        find_or_create_local_splitted_path("/no/such/folder", compression="zip")
    with pytest.raises(
        ValueError, match=r"compression='zip' is not known\. Use 'lossless', '8bit', '4bit' or None"
    ):
        AutoModel.from_pretrained(llama, compression="zip")


def test_the_command_line_plans_and_splits_with_it(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: str, *options: str) -> list[str]:
        assert main([command, str(llama), "--store", str(tmp_path), *options]) == 0
        return capsys.readouterr().out.splitlines()

    def plan(*options: str) -> tuple[str, float]:
        """What is said of the disk, and the MiB that a token moves at the smallest budget."""
        lines = run("plan", "--device=cpu", "--host-memory=min", "--no-measure", *options)
        (least,) = (line for line in lines if line.startswith("min "))
        return lines[1], float(least.split()[-3])

    option = "--compression=lossless"
    (plain_disk, plain), (compressed_disk, compressed) = plan(), plan(option)
    assert "read in place" in plain_disk
    assert "for a layer store" in compressed_disk
    assert 0.74 < compressed / plain < 0.85
    assert "is split in" in run("split", option)[-1]
    (store,) = find_stores(tmp_path)
    assert f"in the layer store {store.folder}" in plan(option)[0]


def test_a_plan_is_of_what_a_store_really_holds(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lossless, "encode", lambda *_: None)

    def run(command: str, *options: str) -> list[str]:
        assert main([command, str(llama), "--store", str(tmp_path), *options]) == 0
        return capsys.readouterr().out.splitlines()

    def plan(*options: str) -> tuple[bool, list[str]]:
        """Whether it is an estimate, and its table."""
        lines = run("plan", "--device=cpu", "--host-memory=min", "--no-measure", *options)
        return "estimate" in lines[1], lines[-3:]

    option = "--compression=lossless"
    guess, plain = plan(option), plan()
    assert guess == (True, guess[1])
    assert guess[1] != plain[1]
    run("split", option)
    assert plan(option) == plain == (False, plain[1])


def test_a_benchmark_expects_what_the_store_that_it_makes_really_holds(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Lossless, "encode", lambda *_: None)
    monkeypatch.setattr("rabbitllm.measure.limits.MATRIX", 64)
    monkeypatch.setattr("rabbitllm.measure.limits.PROBE", 1 << 20)
    predict, expected = prediction.predict, []

    def noted(staged: StagedModel, *others: Any) -> Prediction:
        expected.append(staged.on_disk)
        return predict(staged, *others)

    monkeypatch.setattr(prediction, "predict", noted)
    short = ("-p9", "-n4", "-r1", "--device=cpu", "--host-memory=min", "--no-stock")
    options = ("--store", str(tmp_path), "--compression=lossless")
    assert main(["bench", str(llama), *options, *short]) == 0
    assert expected == [{}]


def test_what_is_expected_to_be_read_is_read(
    llama: Path, streamed: Callable[..., StreamedModel], prompt: torch.Tensor, tmp_path: Path
) -> None:
    model = streamed(llama, compression="lossless", layer_shards_saving_path=tmp_path)
    prepared = prepare(llama, None, torch.device("cpu"), "auto", "auto", False)
    staged = prepared.staged.stored(prepared.location.encoded("lossless"))
    sizes = {stage.name: stage.stored_nbytes for stage in staged.stages}
    expected = sum(sizes[name] for name in model.streaming_plan.streamed("disk"))
    assert read_a_forward(model, prompt) == pytest.approx(expected, rel=2e-3)


def test_a_compression_that_cannot_help_says_so(
    llama: Path,
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    streamed(checkpoint(), compression="lossless")
    assert "does nothing here: it encodes none of the weights that the layers of" in caplog.text
    assert "have (float32)." in caplog.text
    caplog.clear()
    streamed(llama, compression="lossless", host_memory="1GiB")
    assert "does nothing here: no layer moves with these budgets." in caplog.text
    caplog.clear()
    streamed(llama, compression="lossless", layer_shards_saving_path=tmp_path)
    assert "does nothing" not in caplog.text
    main(["split", str(checkpoint()), "--compression", "lossless", "--store", str(tmp_path)])
    assert "have (float32)." in caplog.text
    assert "nothing to split" in capsys.readouterr().out
