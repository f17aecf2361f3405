"""Independent forwards of the families that transformers has a class for, by model type.

Each is written from the published definition and knows no release of transformers, so that it can
say which side is right when two releases differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import Forward
from harness.measuring.references.deepseek import deepseek_v2, deepseek_v3
from harness.measuring.references.gemma import gemma2, gemma3, gemma3_text_part
from harness.measuring.references.llama import llama
from harness.measuring.references.mistral import mistral, mixtral
from harness.measuring.references.phi import phi2, phi3, phimoe
from harness.measuring.references.qwen2 import qwen2, qwen3

FORWARDS: Mapping[str, Forward] = {
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "gemma2": gemma2,
    "gemma3": gemma3_text_part,
    "gemma3_text": gemma3,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "phi": phi2,
    "phi3": phi3,
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3,
}
"""By config.json's `model_type`."""


class Published:
    """A checkpoint's forward as its family is defined, in float32 on CPU, without a cache.

    Args:
        folder: with config.json and *.safetensors, in the published layout.

    Raises:
        KeyError: no reference knows the model type.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint.read(folder)
        self.forward = FORWARDS[self.checkpoint.config["model_type"]]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, S, V]; those of padding mean nothing.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 where a token is padding, which is on the left.
        """
        return self.forward(self.checkpoint, input_ids, attention_mask)
