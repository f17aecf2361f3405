"""Operations on weights that transformers has none for, in the form its converters call."""

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps

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
        """Raises RuntimeError if the tensor has other rows than the config says."""
        heads, groups, head_dim = _geometry(kwargs["config"])
        fused = input_dict[source_patterns[0]][0]
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
        """Raises RuntimeError if the tensor has other rows than the config says."""
        heads, groups, head_dim = _geometry(kwargs["config"])
        fused = input_dict[source_patterns[0]][0]
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
