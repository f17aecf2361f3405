"""The next token of one sequence, from its logits: transformers' own processors, its own seed."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from rabbitllm.model import StreamedModel


class Chooser:
    """Chooses a sequence's tokens as stock's `generate` would for it alone.

    Args:
        model: whose generation config says what is not asked for.
        prompt: its token ids.
        limit: the most tokens that will be chosen.
        ends: the ids that end an answer.
        seed: of the draws, which are then those of a `generate` behind `torch.manual_seed(seed)`;
            None draws from torch's generator.
        processors: of the logits, besides those that the options lead to.
        options: of `generate`, such as `temperature`, `top_k` and `repetition_penalty`.
    """

    def __init__(
        self,
        model: StreamedModel,
        prompt: Sequence[int],
        *,
        limit: int,
        ends: Sequence[int],
        seed: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
        **options: Any,
    ) -> None:
        self._device = model.device
        # The steps of stock's `generate`, which have no public names; each release has them.
        generator: Any = model  # transformers annotates their self with a protocol
        config, _ = generator._prepare_generation_config(
            None, max_new_tokens=limit, eos_token_id=list(ends) or None, **options
        )
        config.max_length = len(prompt) + limit
        generator._prepare_special_tokens(config, True, device=self._device)
        ids = torch.tensor([list(prompt)], device=self._device)
        self._processors: Any = generator._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt),
            encoder_input_ids=ids,
            logits_processor=LogitsProcessorList(processors),
            device=self._device,
            model_kwargs={},
        )
        self._draws = bool(config.do_sample)
        self._generator: torch.Generator | None = None
        if seed is not None and self._draws:
            self._generator = torch.Generator(self._device)
            self._generator.manual_seed(seed)

    @property
    def plain(self) -> bool:
        """It takes the likeliest token, whatever came before."""
        return not self._draws and not self._processors

    def choose(self, ids: Sequence[int], logits: torch.Tensor) -> int:
        """The next token.

        Args:
            ids: the sequence so far.
            logits: [vocabulary], in any floating dtype.
        """
        scores = logits[None].float()
        if self._processors:
            scores = self._processors(torch.tensor([list(ids)], device=self._device), scores)
        if not self._draws:
            return int(scores.argmax())
        shares = scores.softmax(-1)
        return int(torch.multinomial(shares, 1, generator=self._generator))
