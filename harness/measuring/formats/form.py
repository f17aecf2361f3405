"""One format of quantised checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Stored: TypeAlias = dict[str, Tensor]
"""What is stored of a weight, by suffix of its module's name."""
LINEAR = r"layers\..*proj(_with_mqa)?\.weight$"
"""Keys of matrices; norms, routers, embedding and head stay as they are."""


@dataclass(frozen=True)
class Form:
    """One format.

    Attributes:
        settings: `quantization_config` as config.json has it on the hub.
        encode: a weight [out, in] (of experts [experts, in, out]) in float32 -> what is stored.
        decode: what is stored -> the weight, in the dtype that the formula ends in.
        suffixes: of all that is stored; the first is of no other tensor.
        keys: a pattern of keys that are quantised.
        target: suffix of the weight.
    """

    settings: dict[str, Any]
    encode: Callable[[Tensor], Stored]
    decode: Callable[[Stored], Tensor]
    suffixes: tuple[str, ...]
    keys: str = LINEAR
    target: str = ".weight"
