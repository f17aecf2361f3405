"""Operations on weights that transformers has none for, in the form its converters call."""

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps

from rabbitllm.errors import CheckpointError

Tensors = dict[str, list[torch.Tensor]]


class SplitHeads(ConversionOps):
    """Query, key and value rows, one block behind the other, into a tensor each.

    The blocks have `num_attention_heads`, `num_key_value_heads` and again `num_key_value_heads`
    times `head_dim` rows. Works on weights [rows, columns] and biases [rows].
    """

    def convert(
        self,
        input_dict: Tensors,
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Raises CheckpointError if the tensor has other rows than the config says."""
        heads, groups, head_dim = _geometry(kwargs["config"])
        fused = _only(input_dict, (heads + 2 * groups) * head_dim, source_patterns)
        sizes = [heads * head_dim, groups * head_dim, groups * head_dim]
        return dict(zip(target_patterns, fused.split(sizes), strict=True))


class SplitGroups(ConversionOps):
    """Query, key and value rows, interleaved by key-value head, into a tensor each.

    Each of the `num_key_value_heads` groups holds the rows of its query heads, then those of its
    key head, then those of its value head. Works on weights [rows, columns] and biases [rows].
    """

    def convert(
        self,
        input_dict: Tensors,
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Raises CheckpointError if the tensor has other rows than the config says."""
        heads, groups, head_dim = _geometry(kwargs["config"])
        fused = _only(input_dict, (heads + 2 * groups) * head_dim, source_patterns)
        each = heads // groups
        grouped = fused.reshape(groups, each + 2, head_dim, *fused.shape[1:])
        parts = grouped.split([each, 1, 1], dim=1)
        made = [part.reshape(-1, *fused.shape[1:]) for part in parts]
        return dict(zip(target_patterns, made, strict=True))


class NormalizeRows(ConversionOps):
    """Every row of a weight divided by its Euclidean norm."""

    def convert(
        self,
        input_dict: Tensors,
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A weight [rows, columns] of the same shape."""
        return {
            target_patterns[0]: torch.nn.functional.normalize(input_dict[source_patterns[0]][0])
        }


def _geometry(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and head_dim of a native config."""
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    return heads, groups, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _only(input_dict: Tensors, rows: int, source_patterns: list[str]) -> torch.Tensor:
    fused = input_dict[source_patterns[0]][0]
    if fused.shape[0] != rows:
        raise CheckpointError(
            f"{source_patterns[0]} has {fused.shape[0]} rows in the checkpoint, but the heads in "
            f"config.json ask for {rows}. The config does not belong to these weights."
        )
    return fused
