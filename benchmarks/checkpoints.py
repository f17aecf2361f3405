"""Checkpoints with the shapes of real models and random weights, written piece by piece."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from rabbitllm.checkpoint.index import SAFETENSORS
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import find_structure


def _qwen2(**sizes: Any) -> Qwen2Config:
    """A Qwen2 of these sizes; the rest is the same in all of them."""
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    return Qwen2Config(max_position_embeddings=32768, rope_parameters=rope, **sizes)


SHAPES: dict[str, PretrainedConfig] = {
    "qwen2-7b": _qwen2(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "qwen2-1.5b": _qwen2(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    # Eight of the 80 layers: what a 72B model costs for each layer, in a checkpoint of 19 GB.
    "qwen2-72b-8-layers": _qwen2(
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=8,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1e5, "rope_type": "default"},
    ),
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}


PERIOD = 16
"""Tokens after which a cyclic checkpoint repeats itself."""
LOUD = 100.0
"""How far an embedding of a cyclic checkpoint outdoes a random one: its layers then add next to
nothing to what the head sees."""


def write_checkpoint(
    config: PretrainedConfig, folder: Path, dtype: torch.dtype, device: str, seed: int = 0
) -> Path:
    """Writes a checkpoint of random weights (normal, 0.02), a shard a stage; returns `folder`.

    Args:
        config: the model's shape.
        folder: made if absent; a complete checkpoint there is kept.
        dtype: of the weights.
        device: where to draw them: a GPU is quicker.
        seed: of the weights.
    """
    if (folder / SAFETENSORS.index).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    stages = find_stages(find_structure(model, model.all_tied_weights_keys, dtypes))
    generator = torch.Generator(device).manual_seed(seed)
    weight_map = {}
    for number, stage in enumerate(sorted(stages, key=lambda stage: stage.pinned)):
        shard = f"model-{number:05}.safetensors"
        tensors = {}
        for weight in stage.weights:
            drawn = torch.empty(weight.shape, dtype=dtype, device=device)
            drawn.normal_(std=0.02, generator=generator)
            if len(weight.shape) == 1 and weight.name.endswith("norm.weight"):
                drawn += 1
            tensors[weight.name] = drawn.cpu()
            weight_map[weight.name] = shard
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    (folder / SAFETENSORS.index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_cyclic(source: Path, folder: Path) -> Path:
    """Writes a checkpoint whose greedy output repeats itself every `PERIOD` tokens.

    Random weights never repeat, so nothing is to be looked up in a prompt. Here the embedding is
    louder than all that the layers add, and the head has the embedding of each token where its
    successor is. Layers are those of `source`, hard-linked.

    Args:
        source: of `write_checkpoint`, with a head of its own.
        folder: on the same file system; made if absent.

    Raises:
        ValueError: the head is tied to the embedding.
    """
    index = json.loads((source / SAFETENSORS.index).read_text())["weight_map"]
    if "lm_head.weight" not in index:
        raise ValueError(f"{source.name} has a tied head, which cannot be another's successor")
    if (folder / SAFETENSORS.index).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    table = load_file(source / index["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    last = len(table) - len(table) % PERIOD
    order = torch.arange(len(table))
    order[:last] = order[:last].view(-1, PERIOD).roll(1, dims=1).reshape(-1)
    made = {"model.embed_tokens.weight": table * LOUD / 0.02, "lm_head.weight": table[order]}
    for name, tensor in made.items():
        save_file({name: tensor}, folder / index[name], metadata={"format": "pt"})
    for file in source.iterdir():
        if file.name not in {index[name] for name in made} | {SAFETENSORS.index}:
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).hardlink_to(file)
    (folder / SAFETENSORS.index).write_bytes((source / SAFETENSORS.index).read_bytes())
    return folder


def write_shorter(source: Path, folder: Path, layers: int) -> Path:
    """Writes a checkpoint of the first `layers` layers of another, hard-linked.

    Args:
        source: of `write_checkpoint`.
        folder: on the same file system; made if absent.
        layers: at most as many as `source` has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / SAFETENSORS.index).read_text())["weight_map"]
    gone = tuple(f".layers.{i}." for i in range(layers, len(index)))
    kept = {name: file for name, file in index.items() if not any(part in name for part in gone)}
    for file in set(kept.values()):
        (folder / file).unlink(missing_ok=True)
        (folder / file).hardlink_to(source / file)
    config = AutoConfig.from_pretrained(source).to_dict() | {"num_hidden_layers": layers}
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:layers]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / SAFETENSORS.index).write_text(json.dumps({"metadata": {}, "weight_map": kept}))
    return folder


def cyclic_prompt(tokens: int) -> torch.Tensor:
    """Ids [1, tokens] as a cyclic checkpoint goes on with them."""
    return (torch.arange(tokens) % PERIOD + PERIOD).unsqueeze(0)
