"""A checkpoint with the real config and tiny layers, for a model that is too large to load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rabbitllm.checkpoint.hub import CODE_PATTERNS, CONFIG_PATTERNS

HEADS, WIDTH = 4, 128
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model")
AT_MOST = {
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
    "ffn_dim": WIDTH,
    "ffn_hidden_size": WIDTH,
    "n_inner": WIDTH,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
"""Fields whose numbers do not stay above a value."""
QUANTIZED = "quantization_config"
NOT_COPIED = ("config.json", "*.index.json")
"""What is written anew, and what names files of weights that are not there."""


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """A config with tiny layers; widths of heads, the vocabulary and kinds of layers stay.

    How the weights were quantized is left out, for those that are made are plain ones.

    Args:
        config: what config.json holds; configs inside it are made small as well.
    """
    made: dict[str, Any] = {
        name: shrunk(value) if isinstance(value, dict) and name.endswith("_config") else value
        for name, value in config.items()
        if name != QUANTIZED
    }
    for name, most in AT_MOST.items():
        if _number(made.get(name)):
            made[name] = min(made[name], most)
    _fewer_layers(made)
    _fewer_heads(made)
    return made


def _fewer_layers(made: dict[str, Any]) -> None:
    for name in LAYERS:
        if not _number(made.get(name)):
            continue
        count, kinds = made[name], made.get("layer_types") or []
        # As many as have a layer of each kind.
        least = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)
        made[name] = min(count, max(2, least))
        for other, value in made.items():
            if isinstance(value, list) and len(value) == count:
                made[other] = value[: made[name]]


def _fewer_heads(made: dict[str, Any]) -> None:
    heads: int = next((made[name] for name in HEAD_COUNTS if _number(made.get(name))), 0)
    hidden = next((name for name in HIDDEN if _number(made.get(name))), "")
    if heads <= HEADS or not hidden:
        return
    width: int = made.get("head_dim") or made[hidden] // heads
    groups = made.get("num_key_value_heads", 0)
    if _number(groups) and groups:
        made["num_key_value_heads"] = max(1, HEADS * groups // heads)
    for name in HEAD_COUNTS:
        if _number(made.get(name)):
            made[name] = HEADS
    made[hidden] = min(made[hidden], HEADS * width)


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def quantized(source: Path) -> bool:
    """Whether a checkpoint's config says how its weights are quantized."""
    return f'"{QUANTIZED}"' in (source / "config.json").read_text("utf-8")


def write(source: Path, target: Path) -> None:
    """Writes a checkpoint without weights: the shrunk config, code and the tokenizer's files."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(shrunk(config), indent=1), "utf-8")
    for pattern in (*CONFIG_PATTERNS, *CODE_PATTERNS):
        for file in source.glob(pattern):
            if not any(file.match(left_out) for left_out in NOT_COPIED):
                shutil.copy(file, target)
