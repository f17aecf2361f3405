"""What a cell's checks work on: streamed model, stock reference, prompts and both answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.matrix import Cell, Dtype
from harness.measuring import caches
from harness.measuring.checkpoints import golden_checkpoint, load_reference
from harness.measuring.memory import live_storages
from harness.measuring.parity import TOLERANCE, equal

PROMPT = 12
"""Tokens of the prompt: more than the sliding windows of the tiny models."""
STEPS = 4
"""Tokens decoded one by one after it."""
PADDED = (5, 12, 9)
"""Lengths of the prompts in the padded batch."""
ROWS = (9, 16, 12)
"""Lengths of the texts in a batch that is read in one forward: each past the original context."""


class StockError(Exception):
    """Stock transformers failed by itself; the cause is what it raised."""


@contextmanager
def reference_side() -> Iterator[None]:
    """Blames what is raised inside on stock transformers."""
    try:
        yield
    except StockError:
        raise
    except Exception as error:
        raise StockError from error


@contextmanager
def compiling(allowed: bool) -> Iterator[None]:
    """Lets torch.compile compile, or has it run what it is given as it is."""
    if allowed and not hasattr(torch.compiler, "set_stance"):
        yield  # torch before 2.6, which always compiles
        return
    with torch.compiler.set_stance("default" if allowed else "force_eager"):
        yield


@dataclass(frozen=True)
class Decoded:
    """A prompt and the tokens after it, run through a model with a cache.

    Attributes:
        logits: of the prefill [1, prompt, vocabulary], then of each step [1, 1, vocabulary].
        lengths: after the prefill and after each step, per layer that keeps tokens: those seen, and
            those kept.
        keys: per layer, the cache's keys at the end, [1, heads, kept, head_dim]; the state of its
            convolution for one of linear attention; None for a layer without.
        values: likewise; the recurrent state for one of linear attention.
    """

    logits: list[Tensor]
    lengths: list[list[tuple[int, int]]]
    keys: list[Tensor | None]
    values: list[Tensor | None]


class Subject:
    """One cell's models and inputs; what several checks need is computed once.

    Args:
        cell: what is measured.
        folder: its checkpoint.
        counted: whether what is in memory before the streamed model is loaded is counted, which
            takes a second.

    Attributes:
        probes: what the contract check saw of stock, see `harness.measuring.contract`.
    """

    def __init__(self, cell: Cell, folder: Path, counted: bool = True) -> None:
        self.cell = cell
        self.counted = counted
        self.folder = folder
        self.device = torch.device(cell.device)
        self.dtype: torch.dtype = getattr(torch, cell.dtype)
        self.storages_before: set[int] = set()
        self._published: dict[str, Subject] = {}
        self._batches: dict[tuple[Any, tuple[int, ...]], Tensor] = {}
        self.probes: dict[str, Any] = {}

    @property
    def tolerance(self) -> float:
        """The largest difference from the reference, as a fraction of the largest value; 0: none.

        On CPU what the architecture's row says; a GPU's kernels sum in an order of their own.
        """
        on_cpu = self.device.type == "cpu"
        return self.cell.architecture.tolerance if on_cpu else TOLERANCE[self.dtype]

    def equal(self, figures: dict[str, Any]) -> bool:
        """Whether figures of `parity.compare` are those of equal answers."""
        return equal(figures, self.tolerance)

    @cached_property
    def reference(self) -> Any:
        """The stock model, fully loaded, or an `OriginalModel` for a family that has none."""
        with reference_side():
            return load_reference(self.cell, self.folder, self.device)

    @cached_property
    def streamed(self) -> Any:
        """The model under test, at the smallest budget that works: every block streams."""
        self.reference  # noqa: B018  # what is in memory before the engine's is not the engine's
        if self.counted:
            self.storages_before = set(live_storages())
        return self.stream()

    def stream(self, folder: Path | None = None, **options: Any) -> Any:
        """Loads the model under test.

        Args:
            folder: another checkpoint than the cell's.
            options: of `AutoModel.from_pretrained`, other than those of all checks.
        """
        from rabbitllm import AutoModel  # a broken engine is this cell's failure, not the harness's

        usual: dict[str, Any] = {
            "device": self.cell.device,
            "dtype": self.cell.dtype,
            "attn_implementation": self.cell.backend.id,
            "layer_shards_saving_path": self.folder.parent / "stores",  # not the user's own cache
            "show_layer_progress": False,
            "device_memory": "min",
            "host_memory": "min" if self.device.type == "cpu" else "auto",
        }
        return AutoModel.from_pretrained(folder or self.folder, **usual | options)

    def stock(self, folder: Path | None = None, dtype: Dtype | None = None) -> Any:
        """The stock model of another checkpoint, or in another number format."""
        row = replace(self.cell.architecture, dtype=dtype or self.cell.dtype)
        cell = replace(self.cell, architecture=row)
        with reference_side():
            return load_reference(cell, folder or self.folder, self.device)

    def published(self, sha256: str) -> Subject:
        """The same cell with its golden checkpoint, whose file has this SHA-256; made once.

        Raises:
            ValueError: see `golden_checkpoint`.
        """
        if sha256 not in self._published:
            folder = golden_checkpoint(self.cell.architecture.id, sha256, self.folder.parent)
            self._published[sha256] = Subject(self.cell, folder, counted=False)
        return self._published[sha256]

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids [1, PROMPT + STEPS], the same in every process; none is special."""
        generator = torch.Generator().manual_seed(1)
        vocabulary = self.reference.config.get_text_config().vocab_size
        ids = torch.randint(3, vocabulary, (1, PROMPT + STEPS), generator=generator)
        return ids.to(self.device)

    @property
    def prompt(self) -> Tensor:
        """Token ids [1, PROMPT]."""
        return self.tokens[:, :PROMPT]

    @cached_property
    def padded(self) -> dict[str, Tensor]:
        """input_ids and attention_mask [3, PROMPT]: prompts of `PADDED` lengths, left-padded."""
        return left_padded([self.tokens[0, :length] for length in PADDED])

    @cached_property
    def stock_uncached(self) -> Tensor:
        """The reference's logits [1, PROMPT + STEPS, vocabulary], without a cache."""
        with reference_side():
            return self.uncached(self.reference)

    @cached_property
    def streamed_uncached(self) -> Tensor:
        """The streamed model's, likewise."""
        return self.uncached(self.streamed)

    def alone(self, model: Any) -> Tensor:
        """Either model's logits [1, PROMPT + STEPS, vocabulary] of all tokens, computed once."""
        return self.stock_uncached if model is self.reference else self.streamed_uncached

    def in_a_batch(self, model: Any, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        """A model's logits [3, longest, vocabulary] of texts of `ROWS` lengths; computed once.

        The texts are left-padded.

        Args:
            model: either of the two.
            order: which text each row is.
        """
        if (model, order) not in self._batches:
            self._batches[model, order] = self.batched(model, order)
        return self._batches[model, order]

    @cached_property
    def stock_decoded(self) -> Decoded:
        """The reference's prefill and steps, with a cache."""
        with reference_side():
            return self.decode(self.reference)

    @cached_property
    def streamed_decoded(self) -> Decoded:
        """The streamed model's, likewise."""
        return self.decode(self.streamed)

    @torch.no_grad()
    def uncached(self, model: Any) -> Tensor:
        """A model's logits for all tokens, from one forward without a cache."""
        logits: Tensor = model(self.tokens, use_cache=False).logits
        return logits

    @torch.no_grad()
    def batched(self, model: Any, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
        """See `in_a_batch`, computed anew."""
        batch = left_padded([self.tokens[0, : ROWS[row]] for row in order])
        logits: Tensor = model(**batch, use_cache=False).logits
        return logits

    @torch.no_grad()
    def decode(self, model: Any) -> Decoded:
        """What a model answers to the prompt, then to the other tokens one by one."""
        cache = DynamicCache(config=model.config)
        logits, lengths = [], []
        pieces = [self.prompt, *self.tokens[:, PROMPT:].split(1, dim=1)]
        for piece in pieces:
            output = model(piece, use_cache=True, **caches.given(model, cache))
            logits.append(output.logits)
            lengths.append(layer_lengths(cache))
        return Decoded(
            logits,
            lengths,
            [held(layer, "keys", "conv_states") for layer in cache.layers],
            [held(layer, "values", "recurrent_states") for layer in cache.layers],
        )

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        length: int,
        inputs: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> Any:
        """Stock's output of greedy generation of exactly `length` tokens, with logits."""
        inputs = inputs or {
            "input_ids": self.prompt,
            "attention_mask": torch.ones_like(self.prompt),
        }
        return model.generate(
            **inputs,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=0,
            repetition_penalty=1.0,  # a golden checkpoint's generation_config.json has another
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )


def left_padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """input_ids and attention_mask [rows, longest]: rows of token ids, with others before them.

    What pads is an id of the text: only the mask tells padding from it. It is the last one, for the
    first would make a mask that is one off read the same text.
    """
    ids = rows[0][-1:].repeat(len(rows), max(map(len, rows)))
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, -len(row) :] = row
        mask[index, -len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def layer_lengths(cache: Any) -> list[tuple[int, int]]:
    """How many tokens each layer of a cache has seen, and how many it keeps.

    Layers of linear attention, which keep a state and no tokens, are left out.
    """
    layers = [layer for layer in cache.layers if hasattr(layer, "get_seq_length")]
    return [(int(layer.get_seq_length()), kept(layer)) for layer in layers]


def kept(layer: Any) -> int:
    """Tokens that a layer of a cache holds keys of."""
    keys = getattr(layer, "keys", None)
    return int(keys.shape[-2]) if keys is not None and keys.dim() > 1 else 0


def held(layer: Any, tokens: str, state: str) -> Tensor | None:
    """What a layer of a cache holds under one of two names; None if it holds nothing.

    Newer releases have several states of a name, of which one is used here.
    """
    found = getattr(layer, tokens, None) if hasattr(layer, tokens) else getattr(layer, state, None)
    return found[0] if isinstance(found, dict) else found
