"""What compressed weights change: `python -m benchmarks.compression FOLDER TEXT`.

The model reads a text, in windows, with the checkpoint's weights and with each compression, and
what it would have written at each place is compared.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoTokenizer

from rabbitllm import AutoModel
from rabbitllm.checkpoint.codecs import COMPRESSIONS

WINDOW = 512
"""Tokens."""


def main(arguments: list[str] | None = None) -> int:
    """Prints a record in JSON for each compression."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a checkpoint, with its tokenizer")
    parser.add_argument("text", type=Path, help="what it reads: a file of text")
    parser.add_argument("--windows", type=int, default=8, help="of the text (%(default)s)")
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.folder)
    ids = tokenizer(given.text.read_text(), return_tensors="pt")["input_ids"][0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[: given.windows]
    for record in measure(given.folder, windows):
        print(json.dumps(record))
    return 0


def measure(folder: Path, windows: torch.Tensor) -> Iterator[dict[str, str | float]]:
    """How far each compression is from the checkpoint's own weights.

    Args:
        folder: of the checkpoint.
        windows: token ids [windows, tokens].
    """
    expected, perplexity, read = _read(folder, windows, None)
    yield {"compression": "none", "perplexity": perplexity, "bytes_from_disk": read}
    for compression in COMPRESSIONS:
        found, perplexity, read = _read(folder, windows, compression)
        yield {
            "compression": compression,
            "perplexity": perplexity,
            "bytes_from_disk": read,
            "relative_error": ((found - expected).norm() / expected.norm()).item(),
            "kl_divergence": _divergence(expected, found),
            "same_token": (found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        }


def _read(
    folder: Path, windows: torch.Tensor, compression: str | None
) -> tuple[torch.Tensor, float, int]:
    """Logits [windows, tokens, vocabulary], perplexity, and bytes that a forward has from disk."""
    with tempfile.TemporaryDirectory() as store, torch.no_grad():
        model = AutoModel.from_pretrained(
            folder,
            device="cpu",
            host_memory="min",
            compression=compression,
            layer_shards_saving_path=store,
        )
        logits = torch.cat([model(window[None]).logits.float() for window in windows])
        before = model.streaming_stats()["bytes_from_disk"]
        model(windows[:1, :1])
        read = model.streaming_stats()["bytes_from_disk"] - before
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    return logits, loss.exp().item(), read


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Kullback and Leibler's, of what was found from what was expected: nats for a token."""
    total = 0.0
    for one, other in zip(expected, found, strict=True):  # a window at a time: they are large
        p, q = log_softmax(one.double(), -1), log_softmax(other.double(), -1)
        total += (p.exp() * (p - q)).sum(-1).mean().item()
    return total / len(expected)
