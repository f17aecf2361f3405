from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import Chunk, WeightConverter

from rabbitllm import StreamedModel
from rabbitllm.checkpoint.consistency import check_complete
from rabbitllm.checkpoint.convert import (
    dtypes_of,
    recipes_for,
    resolve_ties,
)
from rabbitllm.checkpoint.index import read_index

Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def convert(model: PreTrainedModel, tensors: Tensors, dtype: torch.dtype) -> Tensors:
    dtypes = dtypes_of(model, dtype)
    recipes = recipes_for(model, tensors)
    resolve_ties(model, recipes, lambda a, b: torch.equal(tensors[a], tensors[b]))
    check_complete(model, recipes, "here")
    made: Tensors = {}
    for recipe in recipes:
        made |= recipe.run(model, tensors.__getitem__, dtypes)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "mixtral", "qwen3_moe", "deepseek_v3", "gemma2", "phi"]
)
def test_recipes_make_what_transformers_loads(
    checkpoint: Callable[..., Path],
    skeleton: Callable[..., PreTrainedModel],
    architecture: str,
    dtype: torch.dtype,
) -> None:
    folder = checkpoint(architecture)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    made = convert(skeleton(folder, dtype), load_file(folder / "model.safetensors"), dtype)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert made[name].dtype == tensor.dtype, name
        assert torch.equal(made[name], tensor), name


def test_experts_are_fused_from_separate_keys(
    checkpoint: Callable[..., Path], skeleton: Callable[..., PreTrainedModel]
) -> None:
    folder = checkpoint("mixtral")
    recipes = recipes_for(skeleton(folder), read_index(folder))
    (fused,) = [r for r in recipes if r.targets == ("model.layers.2.mlp.experts.gate_up_proj",)]
    keys = [key for key, _ in fused.sources]
    assert len(keys) == 8
    assert {key.rpartition(".experts.")[2] for key in keys} == {
        f"{expert}.{part}.weight" for expert in range(4) for part in ("w1", "w3")
    }


def test_ten_experts_keep_their_order(skeleton: Callable[..., PreTrainedModel]) -> None:
    model = skeleton_of_mixtral(experts=11)
    names = [f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(11)]
    tensors = {name: torch.full((64, 96), float(i)) for i, name in enumerate(names)}
    (recipe,) = recipes_for(model, sorted(tensors))
    (made,) = recipe.run(model, tensors.__getitem__, dtypes_of(model, torch.float32)).values()
    assert made[:, 0, 0].tolist() == list(range(11))


def skeleton_of_mixtral(experts: int) -> PreTrainedModel:
    config = AutoConfig.for_model(
        "mixtral",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
        num_local_experts=experts,
    )
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config)


def test_one_key_may_make_several_parameters(
    checkpoint: Callable[..., Path],
    skeleton: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [f"self_attn.{part}_proj.weight" for part in "qkv"]
    fused = WeightConverter(["self_attn.qkv.weight"], parts, operations=[Chunk(dim=0)])
    monkeypatch.setattr(
        "rabbitllm.checkpoint.convert.get_model_conversion_mapping", lambda *_: [fused]
    )
    model = skeleton(checkpoint("llama-tied"))
    tensors = {"model.layers.1.self_attn.qkv.weight": torch.randn(192, 64)}
    (recipe,) = recipes_for(model, tensors)
    assert recipe.targets == tuple(f"model.layers.1.{part}" for part in parts)
    made = recipe.run(model, tensors.__getitem__, dtypes_of(model, torch.float32))
    assert torch.equal(torch.cat([made[name] for name in recipe.targets]), *tensors.values())


def test_a_base_model_checkpoint_loads(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    folder = copied("llama-tied")
    rewrite(folder, lambda ts: {key.removeprefix("model."): tensor for key, tensor in ts.items()})
    assert "layers.0.self_attn.q_proj.weight" in read_index(folder)
    expected = stock(checkpoint("llama-tied"))(prompt).logits
    assert torch.equal(streamed(folder)(prompt).logits, expected)


def test_a_key_that_the_model_has_no_use_for_is_left_out(
    checkpoint: Callable[..., Path],
    skeleton: Callable[..., PreTrainedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = checkpoint()
    keys = [*read_index(folder), "model.layers.0.self_attn.rotary_emb.inv_freq", "extra"]
    targets = {
        target for recipe in recipes_for(skeleton(folder), keys) for target in recipe.targets
    }
    assert targets == read_index(folder).keys()
    assert f"1 tensors in {folder} are not used by LlamaForCausalLM (extra). " in caplog.text


OTHERS = [
    [],
    ["model.layers.1.self_attn.rotary_emb.inv_freq"],
    ["model.layers.2.self_attn.rotary_emb.cos_cached"],
    ["model.embeddings.position_ids"],
    ["model.layers.0.mlp.down_proj.weight_scale_inv"],
    ["model.layers.61.shared_head.norm.weight"],
    ["mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.input_layernorm.weight"],
    ["visual.patch_embed.proj.weight"],
]


@pytest.mark.parametrize("others", OTHERS, ids=lambda names: "+".join(names[:1]) or "none")
@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "mixtral", "qwen3_moe", "deepseek_v3", "gemma2", "phi"]
)
def test_unused_tensors_are_reported_where_stock_reports_them(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    caplog: pytest.LogCaptureFixture,
    architecture: str,
    others: list[str],
) -> None:
    folder = copied(architecture)
    rewrite(folder, lambda tensors: tensors | {name: torch.ones(2) for name in others})
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    streamed(folder)
    reports = [record.getMessage() for record in caplog.records if "not used" in record.msg]
    count = len(info["unexpected_keys"])
    assert len(reports) == (count > 0)
    assert all(report.startswith(f"{count} tensors in {folder} ") for report in reports)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_config_of_fewer_layers_is_reported_once_with_two_names(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    caplog: pytest.LogCaptureFixture,
    architecture: str,
) -> None:
    folder = copied(architecture)
    configure(folder, num_hidden_layers=1)
    left = [key for key in read_index(folder) if key.startswith("model.layers.")]
    left = [key for key in left if not key.startswith("model.layers.0.")]
    streamed(folder)
    (record,) = [record for record in caplog.records if "not used" in record.msg]
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"{len(left)} tensors in {folder} are not used by ")
    assert "The config names fewer layers" in message
    assert sum(key in message for key in left) == 2


# ties


def test_tied_names_that_differ_in_the_checkpoint_stay_apart(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = copied("llama")
    configure(folder, tie_word_embeddings=True)
    model = streamed(folder)
    assert f"{HEAD} and {EMBEDDING} differ in the checkpoint: not tied." in caplog.text
    assert model.streaming_plan.places.keys() >= {"model.embed_tokens", "lm_head"}
    reference = stock(folder)
    assert model.all_tied_weights_keys == reference.all_tied_weights_keys == {}
    assert torch.equal(model(prompt).logits, reference(prompt).logits)


@pytest.mark.parametrize("present", [[EMBEDDING], [HEAD], [EMBEDDING, HEAD]])
def test_one_tensor_serves_both_tied_names(
    copied: Callable[..., Path],
    rewrite: Callable[..., None],
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
    present: list[str],
) -> None:
    folder = copied("llama-tied")

    def place(tensors: Tensors) -> None:
        shared = tensors.pop(EMBEDDING)
        tensors.update({name: shared.clone() for name in present})

    rewrite(folder, place)
    assert read_index(folder).keys() & {EMBEDDING, HEAD} == set(present)
    model = streamed(folder)
    assert "lm_head" not in model.streaming_plan.places
    expected = stock(checkpoint("llama-tied"))(prompt).logits
    assert torch.equal(model(prompt).logits, expected)
    assert "not tied" not in caplog.text


def test_what_transformers_keeps_in_float32_stays_so(
    checkpoint: Callable[..., Path], skeleton: Callable[..., PreTrainedModel]
) -> None:
    folder = checkpoint("deepseek_v3")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    dtypes = dtypes_of(skeleton(folder, torch.bfloat16), torch.bfloat16)
    assert dtypes == {name: tensor.dtype for name, tensor in stock.state_dict().items()}
    assert dtypes["model.layers.1.mlp.gate.e_score_correction_bias"] == torch.float32
