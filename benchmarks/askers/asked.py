"""What is asked: a checkpoint that never ends by itself, and prompts as token ids."""

from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast

from benchmarks.checkpoints import SHAPES, write_checkpoint

SHORTEST, LONGEST = 32, 512
"""Tokens of prompts."""


def write_asked(shape: str, folder: Path, device: str) -> Path:
    """Writes a checkpoint with a word for every token id; returns `folder`.

    Args:
        shape: of `SHAPES`.
        folder: made if absent; a complete checkpoint there is kept.
        device: where to draw the weights.
    """
    config = SHAPES[shape]
    config.eos_token_id = None
    write_checkpoint(config, folder, torch.bfloat16, device)
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)
    GenerationConfig(pad_token_id=0).save_pretrained(folder)
    return folder


def draw_prompts(count: int, vocabulary: int, seed: int = 1) -> list[list[int]]:
    """Random token ids; lengths are spread evenly, and come in no order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(SHORTEST, LONGEST, count + 2).round().int()[1:-1]
    order = torch.randperm(count, generator=generator).tolist()
    return [_ids(int(lengths[i]), vocabulary, generator) for i in order]


def _ids(length: int, vocabulary: int, generator: torch.Generator) -> list[int]:
    ids: list[int] = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
    return ids


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [prompts, tokens of the longest], as a fixed batch takes them."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts])
    return ids, torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])


def shares(prompts: list[list[int]], clients: int) -> Iterator[list[list[int]]]:
    """Who asks what: as many for each client."""
    for client in range(clients):
        yield prompts[client::clients]
