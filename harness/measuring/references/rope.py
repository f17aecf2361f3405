"""Rotary position embedding, https://arxiv.org/abs/2104.09864, and how it is stretched.

A pair of entries of a query or key turns by an angle that is its frequency times the position. The
kinds of scaling differ in the frequencies of the pairs, and in a factor on the turned entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Turn = Callable[[Tensor], Tensor]
"""Turns queries or keys [B, S, heads, D] by their positions."""


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's fields, wherever a config.json has them.

    Published ones have `rope_theta` and, with scaling, `rope_scaling`, whose kind is named `type`
    or `rope_type`. Newer ones have all of it in `rope_parameters`.
    """
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    context = config["max_position_embeddings"]
    return {
        "rope_theta": config.get("rope_theta", 10000.0),
        "rope_type": fields.get("type", "default"),
        "max_position_embeddings": context,
        "original_max_position_embeddings": config.get("original_max_position_embeddings", context),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        **fields,
    }


def rotary(
    fields: Mapping[str, Any], width: int, positions: Tensor, neighbours: bool = False
) -> Turn:
    """What turns a head's entries; with a `partial_rotary_factor` only so many, the first ones.

    Args:
        fields: see `parameters`.
        width: a head's entries.
        positions: [B, S].
        neighbours: entries 2i and 2i + 1 are a pair, as in the paper; else i and i + width / 2, as
            in GPT-NeoX.

    Raises:
        KeyError: `rope_type` is none of `SCALINGS`.
    """
    width = int(width * fields["partial_rotary_factor"])
    length = int(positions.max()) + 1
    frequencies, scale = SCALINGS[fields["rope_type"]](fields, width, length)
    theta = (positions[..., None] * frequencies)[:, :, None]  # [B, S, 1, width / 2]
    cos, sin = theta.cos() * scale, theta.sin() * scale

    def turn(x: Tensor) -> Tensor:
        turned, kept = x[..., :width], x[..., width:]
        pairs = turned.unflatten(-1, (-1, 2) if neighbours else (2, -1))
        first, second = pairs.unbind(-1 if neighbours else -2)
        both = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((torch.stack(both, -1 if neighbours else -2).flatten(-2), kept), -1)

    return turn


def plain(fields: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, float]:
    """theta^(-2i / width): https://arxiv.org/abs/2104.09864, section 3.2.2."""
    return 1 / fields["rope_theta"] ** (torch.arange(0, width, 2) / width), 1.0


def linear(fields: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, float]:
    """Position interpolation: https://arxiv.org/abs/2306.15595, equation 4."""
    return plain(fields, width, length)[0] / fields["factor"], 1.0


def llama3(fields: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, float]:
    """Llama 3.1's: `apply_scaling` of models/llama3/model.py in github.com/meta-llama/llama-models.

    Pairs that turn at least `high_freq_factor` times within the original context keep their
    frequency, pairs that turn at most `low_freq_factor` times have it divided; between, a mean.
    """
    frequencies, _ = plain(fields, width, length)
    turns = frequencies * fields["original_max_position_embeddings"] / (2 * math.pi)
    low, high = fields["low_freq_factor"], fields["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / fields["factor"]), 1.0


def yarn(fields: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, float]:
    """YaRN: https://arxiv.org/abs/2309.00071, sections 3.2 and 3.4.

    Which pairs are interpolated is rounded to whole pairs, and the factor on the turned entries is
    a quotient of two, as in `yarn_find_correction_range` and `DeepseekV2YarnRotaryEmbedding` of
    modeling_deepseek.py in https://huggingface.co/deepseek-ai/DeepSeek-V2.
    """
    frequencies, _ = plain(fields, width, length)

    def pair(turns: float) -> float:
        """The pair that turns so often within the original context."""
        context = fields["original_max_position_embeddings"] / (2 * math.pi * turns)
        return width * math.log(context) / (2 * math.log(fields["rope_theta"]))

    first = max(math.floor(pair(fields.get("beta_fast") or 32)), 0)
    last = min(math.ceil(pair(fields.get("beta_slow") or 1)), width - 1)
    span = max(last - first, 0.001)
    divided = ((torch.arange(width // 2) - first) / span).clamp(0, 1)
    above = yarn_scale(fields, fields.get("mscale") or 1.0)
    scale = above / yarn_scale(fields, fields.get("mscale_all_dim") or 0.0)
    return frequencies * (1 - divided + divided / fields["factor"]), scale


def yarn_scale(fields: Mapping[str, Any], weight: float) -> float:
    """0.1 * weight * ln(factor) + 1, and 1 without stretching: section 3.4, equation 22."""
    return 0.1 * weight * math.log(fields["factor"]) + 1 if fields["factor"] > 1 else 1.0


def longrope(fields: Mapping[str, Any], width: int, length: int) -> tuple[Tensor, float]:
    """LongRoPE: https://arxiv.org/abs/2402.13753; `Phi3LongRoPEScaledRotaryEmbedding`.

    The latter in modeling_phi3.py of https://huggingface.co/microsoft/Phi-3-mini-128k-instruct: a
    text longer than the original context has the long factors from its first token on. A config may
    state the factor on the turned entries: modeling_phimoe.py of Phi-3.5-MoE-instruct.
    """
    original = fields["original_max_position_embeddings"]
    kind = "long" if length > original else "short"
    stretch = fields["max_position_embeddings"] / original
    scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    frequencies = plain(fields, width, length)[0] / torch.tensor(fields[f"{kind}_factor"])
    return frequencies, fields.get(f"{kind}_mscale", scale)


SCALINGS: Mapping[str, Callable[[Mapping[str, Any], int, int], tuple[Tensor, float]]] = {
    "default": plain,
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}
"""From fields, turned entries and the text's length: frequencies [width / 2], and a factor."""
