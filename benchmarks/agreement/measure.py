"""Greedy answers in a batch beside those of each prompt alone.

    python -m benchmarks.agreement SmolLM2-135M-Instruct README.md --dtypes float32,bfloat16

Prompts are pieces of a text, of different lengths, so that rows are padded, enter in chunks, and
leave at different times. Alone each is answered by stock's `generate`. Prints a line of JSON for
each dtype.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rabbitllm import AutoModel, Batch

SHORTEST, LONGEST = 8, 96
"""Tokens of prompts."""


def pieces(ids: Sequence[int], count: int) -> list[list[int]]:
    """Prompts that follow one another in a text, from short to long ones and again.

    Raises:
        ValueError: the text is too short for so many.
    """
    cut, start = list[list[int]](), 0
    for i in range(count):
        length = SHORTEST + i * 37 % (LONGEST - SHORTEST + 1)
        cut.append(list(ids[start : start + length]))
        start += length
    if start > len(ids):
        raise ValueError(f"The text has {len(ids)} tokens, and {count} prompts take {start}.")
    return cut


def compare(
    model: Any, prompts: Sequence[list[int]], new_tokens: int, at_once: int
) -> dict[str, Any]:
    """What is the same, and how sure the model was where it is not.

    Args:
        model: what answers.
        prompts: token ids.
        new_tokens: of each answer, end of text or not.
        at_once: sequences of a batch at most.

    Returns:
        `parted`, how many prompts have another answer in the batch; `agreement`, the share of
        tokens before that; `margins`, of each that parted, how much likelier the batch found its
        token than the next, as a difference of logarithms.
    """
    lengths = [new_tokens - i % 7 for i in range(len(prompts))]
    batch = Batch(model, at_once)
    plain: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
    rows = [
        batch.add(prompt, max_new_tokens=length, top=2, **plain)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    batch.run()
    same, margins = 0, list[float]()
    for prompt, row, length in zip(prompts, rows, lengths, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, pad_token_id=0, **plain
        )
        alone = output[0, len(prompt) :].tolist()
        pairs = list(zip(alone, row.tokens, strict=False))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        same += len(pairs) if at is None else at
        if at is not None:
            (_, first), (_, second) = row.shares[at].top
            margins.append(first - second)
    total = sum(len(row.tokens) for row in rows)
    return {
        "prompts": len(prompts),
        "tokens": total,
        "parted": len(margins),
        "agreement": same / total,
        "margins": [round(margin, 4) for margin in sorted(margins)],
        "passes": batch.passes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a folder or a hub repository")
    parser.add_argument("text", type=Path, help="what prompts are cut from: a file of text")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="(%(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=48, help="at most (%(default)s)")
    parser.add_argument("--at-once", type=int, default=16, help="of a batch (%(default)s)")
    asked = parser.parse_args(argv)
    for dtype in asked.dtypes.split(","):
        model = AutoModel.from_pretrained(asked.model, dtype=dtype)
        ids = model.tokenizer(asked.text.read_text())["input_ids"]
        figures = compare(model, pieces(ids, asked.prompts), asked.new_tokens, asked.at_once)
        print(json.dumps({"dtype": dtype} | figures), flush=True)
    return 0
