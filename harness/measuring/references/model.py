"""A family's own forward in the place of a stock model: all that the checks ask of a reference."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.measuring.references.common import Decoder


class OriginalModel:
    """Answers as a stock model does, by forwards of the whole text.

    Args:
        decoder: the independent forward, in float32 on CPU.
        device: where answers go.
    """

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self.decoder = decoder
        self.device = device
        self.tied = bool(decoder.config["tie_word_embeddings"])
        fields = {
            "vocab_size": len(decoder.head_rows()),
            "num_hidden_layers": len(decoder.layers),
            "tie_word_embeddings": self.tied,
        }
        self.config = PretrainedConfig.from_dict(fields)
        self._texts: WeakKeyDictionary[DynamicCache, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        cache: DynamicCache | None = None,
        use_cache: bool = False,
    ) -> CausalLMOutputWithPast:
        """The logits [B, S, V] of the last `input_ids` [B, S] of a text.

        Args:
            input_ids: on any device.
            cache: stands for the text before them, and gets their keys and values.
            use_cache: as stock's; a cache is used if one is given.
        """
        text, kept = input_ids.cpu(), list[tuple[Tensor, Tensor]]()
        if cache is not None and cache in self._texts:
            text = torch.cat((self._texts[cache], text), dim=1)
        new = slice(text.shape[1] - input_ids.shape[1], None)
        logits = self.decoder(text, kept=kept)[:, new].to(self.device)
        if cache is not None:
            self._texts[cache] = text
            for layer, pair in enumerate(kept):
                keys, values = (part[:, new].transpose(1, 2).to(self.device) for part in pair)
                cache.update(keys, values, layer)
        return CausalLMOutputWithPast(logits=logits)

    __call__ = forward

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **_: object
    ) -> GenerateDecoderOnlyOutput:
        """Exactly `max_new_tokens` greedy tokens behind each row, and their logits.

        As with stock's `min_new_tokens`, the end is never chosen.
        """
        text, mask, logits = input_ids.cpu(), attention_mask.cpu(), []
        for _step in range(max_new_tokens):
            logits.append(self.decoder(text, mask)[:, -1])
            allowed = logits[-1].clone()
            if (end := self.decoder.config.get("eos_token_id")) is not None:
                allowed[:, end] = -torch.inf
            text = torch.cat((text, allowed.argmax(-1, keepdim=True)), dim=1)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        return GenerateDecoderOnlyOutput(
            sequences=text.to(self.device),  # type: ignore[arg-type]  # annotated as LongTensor
            logits=tuple(step.to(self.device) for step in logits),  # type: ignore[arg-type]
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the embedding gives, [B, S, H]."""
        return self.decoder.embed(input_ids.cpu()).to(self.device)

    def head_rows(self) -> Tensor:
        """What the logits are projections on, [V, H]."""
        return self.decoder.head_rows().to(self.device)
