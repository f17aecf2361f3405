"""Mixtures of experts with the shapes of real ones and random weights, as such are published."""

import json
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
)

from benchmarks.formats.write import LINEAR, Tensors, fp8
from rabbitllm.checkpoint.index import SAFETENSORS

ROUTER = 0.1
"""Of a router's weights: with 0.02, as others have, most tokens would go to the same experts."""
SHAPES: dict[str, PretrainedConfig] = {
    "qwen3-30b-a3b": AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
    ),
    # To try the benchmark out.
    "tiny": AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=16,
        num_experts_per_tok=4,
    ),
    "mixture-4gb": AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=512,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=64,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
    "gpt-oss-120b": AutoConfig.for_model("gpt_oss"),
    "tiny-gpt-oss": AutoConfig.for_model(
        "gpt_oss",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "deepseek-v3": AutoConfig.for_model("deepseek_v3", first_k_dense_replace=1),
    "tiny-deepseek-v3": AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=128,
        kv_lora_rank=128,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    ),
}
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
}
QUANTISED: dict[str, dict[str, Any]] = {
    "gpt-oss-120b": {"quant_method": "mxfp4"},
    "tiny-gpt-oss": {"quant_method": "mxfp4"},
    "deepseek-v3": FP8,
    "tiny-deepseek-v3": FP8,
}
"""Shape -> `quantization_config` of the checkpoint that it is written in."""


def write_mixture(shape: str, layers: int, folder: Path, device: str) -> Path:
    """Writes a checkpoint, a shard a layer; returns `folder`. A complete one there is kept.

    Args:
        shape: a key of `SHAPES`.
        layers: as many as that has, or fewer.
        folder: made.
        device: where to draw the numbers: a GPU is quicker.
    """
    if (folder / SAFETENSORS.index).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config, quantised = deepcopy(SHAPES[shape]), QUANTISED.get(shape)
    config.num_hidden_layers = layers
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = kinds[:layers]
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    if quantised:
        config.quantization_config = quantised
    config.save_pretrained(folder)
    method = quantised["quant_method"] if quantised else None
    shards: dict[str, list[str]] = defaultdict(list)
    state = model.state_dict()
    for name in state:
        layer = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "rest"
        shards[f"{layer}.safetensors"].append(name)
    torch.manual_seed(0)
    weight_map: dict[str, str] = {}
    for shard, names in shards.items():
        tensors: Tensors = {}
        for name in names:
            for key, tensor in _published(name, state[name].shape, device, method):
                stored = _stored(key, tensor, method)
                tensors |= {each: part.cpu().contiguous() for each, part in stored.items()}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    (folder / SAFETENSORS.index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _published(
    name: str, shape: torch.Size, device: str, method: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight of the model as its checkpoint has it: experts one by one, or packed together."""
    path, _, attribute = name.rpartition(".")
    if not path.endswith(".experts") or attribute.endswith("bias"):
        yield name, _random(name, shape, device)
    elif method == "mxfp4":
        experts, inner, outer = shape
        packed = torch.Size((experts, outer, inner // 32, 16))
        yield f"{name}_blocks", torch.randint(256, packed, dtype=torch.uint8, device=device)
        exponents = torch.randint(118, 122, packed[:3], dtype=torch.uint8, device=device)
        yield f"{name}_scales", exponents
    else:
        parts = ("gate_proj", "up_proj") if attribute == "gate_up_proj" else (attribute,)
        one = torch.Size((shape[1] // len(parts), shape[2]))
        for expert in range(shape[0]):
            for part in parts:
                yield f"{path}.{expert}.{part}.weight", _random(name, one, device)


def _random(name: str, shape: torch.Size, device: str) -> torch.Tensor:
    """Values that let a deep model work: normal; norms are 1."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    routes = name.endswith(("gate.weight", "router.weight"))
    scale = ROUTER if routes else 1.0 if "embed" in name else 0.02
    return (torch.randn(shape, device=device) * scale).bfloat16()


def _stored(key: str, tensor: torch.Tensor, method: Any) -> Tensors:
    """What a checkpoint holds of a tensor."""
    if method == "fp8" and LINEAR.search(key):
        stem = key.removesuffix(".weight")
        return {stem + suffix: part for suffix, part in fp8(tensor).items()}
    return {key: tensor}
