from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint.consistency import check_shapes
from rabbitllm.checkpoint.convert import Recipe, recipes_for
from rabbitllm.checkpoint.index import read_index

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


# tensors


@pytest.mark.parametrize("architecture", ["llama", "deepseek_v3"])
def test_missing_tensors_are_counted_and_named(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    architecture: str,
) -> None:
    folder = copied(architecture)
    norms = [f"model.layers.{n}.input_layernorm.weight" for n in range(4)]
    rewrite(folder, lambda ts: {key: tensor for key, tensor in ts.items() if key not in norms})
    message = rf"4 of \d+ tensors are missing from .*{folder.name}: {', '.join(norms[:3])}, \.\.\."
    with pytest.raises(CheckpointError, match=message):
        streamed(folder)


def test_a_missing_embedding_is_not_made_up_by_a_tie(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
) -> None:
    folder = copied("llama-tied")
    rewrite(folder, lambda ts: {key: tensor for key, tensor in ts.items() if key != EMBEDDING})
    with pytest.raises(CheckpointError, match=f"2 of .* missing .*: {HEAD}, {EMBEDDING}"):
        streamed(folder)


@pytest.mark.parametrize("shape", [(64, 95), (96, 64), (64,), (64, 96, 1)])
def test_a_shape_that_contradicts_the_config_is_named(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    shape: tuple[int, ...],
) -> None:
    folder, key = copied("llama"), "model.layers.3.mlp.down_proj.weight"
    rewrite(folder, lambda ts: ts | {key: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=rf"{key} has shape .*asks for \[64, 96\]"):
        streamed(folder)


@pytest.mark.parametrize("lost", ["experts.3.w1", "experts.3.", ".w1", ".w3.", "experts."])
def test_a_missing_expert_is_found_before_anything_is_converted(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    lost: str,
) -> None:
    folder, layer = copied("mixtral"), "model.layers.2."
    rewrite(folder, lambda ts: {k: t for k, t in ts.items() if not (layer in k and lost in k)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.experts.*incomplete"):
        streamed(folder, layer_shards_saving_path=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_expert_of_another_shape_is_named(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
) -> None:
    folder = copied("mixtral")
    key = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    assert key in read_index(folder)
    rewrite(folder, lambda ts: ts | {key: torch.zeros(96, 64)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.down_proj"):
        streamed(folder)


@pytest.mark.parametrize("raised", [AssertionError, RuntimeError])
def test_whatever_torch_raises_at_a_shape_is_said_of_the_checkpoint(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
    raised: type[Exception],
) -> None:
    def stack(*_: object, **__: object) -> None:
        raise raised("stack expects each tensor to be equal size")

    folder = checkpoint("mixtral")
    monkeypatch.setattr(torch, "stack", stack)
    with pytest.raises(CheckpointError, match=r"cannot be made from .*: stack expects each tensor"):
        streamed(folder)


def test_a_weight_of_a_type_that_nothing_computes_from_is_named(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    folder = copied()
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    begin, stop = header["model.norm.weight"]["data_offsets"]
    header["model.norm.weight"] |= {"dtype": "F4", "shape": [2 * (stop - begin)]}
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[end:])
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in .* is in a type that no"):
        streamed(folder)


def test_shapes_are_checked_without_reading(
    checkpoint: Callable[..., Path], skeleton: Callable[..., PreTrainedModel]
) -> None:
    folder = checkpoint("qwen3_moe")
    model, entries = skeleton(folder), read_index(folder)
    shapes = {key: entry.shape for key, entry in entries.items()}
    recipes = recipes_for(model, entries)
    check_shapes(model, recipes, shapes, "here")
    wrong = Recipe((HEAD,), [(EMBEDDING, EMBEDDING)])
    with pytest.raises(CheckpointError, match=f"{EMBEDDING} has shape .*in here asks for"):
        check_shapes(model, [wrong], shapes | {EMBEDDING: (3, 3)}, "here")


# head_dim


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, build: Callable[..., PreTrainedModel]) -> Path:
    """The attention geometry of Qwen2.5-0.5B: 14 heads of 64 in 896, 2 key-value heads."""
    geometry = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("qwen2")
    build("qwen2", **geometry, intermediate_size=32, num_hidden_layers=3).save_pretrained(folder)
    return folder


def test_head_dim_is_what_the_checkpoint_has(
    qwen: Path,
    tmp_path: Path,
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in qwen.iterdir():
        (wrong / file.name).symlink_to(file)
    (wrong / "config.json").unlink()
    (wrong / "config.json").write_text((qwen / "config.json").read_text())
    configure(wrong, head_dim=14)
    model, reference = streamed(wrong), stock(qwen)
    assert "The config says head_dim=14, but" in caplog.text
    assert "using head_dim=64." in caplog.text
    assert model.config.head_dim == 64
    assert model.model.layers[1].self_attn.head_dim == 64
    assert torch.equal(model(prompt).logits, reference(prompt).logits)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), reference.generate(prompt, **options))


@pytest.mark.parametrize("stated", [16, None])
def test_head_dim_beyond_hidden_size_by_heads_is_found_too(
    checkpoint: Callable[..., Path],
    copied: Callable[..., Path],
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    stated: int | None,
) -> None:
    folder = copied("qwen3_moe")
    configure(folder, head_dim=stated)
    model = streamed(folder)
    assert model.config.head_dim == 32
    assert torch.equal(model(prompt).logits, stock(checkpoint("qwen3_moe"))(prompt).logits)


def test_a_right_config_is_left_alone(
    qwen: Path, streamed: Callable[..., StreamedModel], caplog: pytest.LogCaptureFixture
) -> None:
    model = streamed(qwen)
    assert "head_dim" not in caplog.text
    assert model.config.to_dict().get("head_dim") is None


def test_rows_that_no_head_dim_explains_are_an_error(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
) -> None:
    folder, key = copied(), "model.layers.0.self_attn.q_proj.weight"
    rewrite(folder, lambda ts: ts | {key: torch.zeros(63, 64)})
    with pytest.raises(CheckpointError, match=rf"{key} has shape \[63, 64\]"):
        streamed(folder)
