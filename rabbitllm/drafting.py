"""A model's own multi-token head, which `generate(use_mtp=True)` of transformers drafts with.

Stock loads it anew for each call, whole, onto the device of the last layer, and shares the model's
embedding and head, which stream as ever. What it drafts is checked by the model: the answer stays.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel, modeling_layers

from rabbitllm.checkpoint.index import read_index

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes in which such a head is stored as it computes."""


def head_bytes(model: PreTrainedModel, folder: Path) -> int:
    """Bytes that a model's multi-token head takes; 0 where stock is going to refuse it.

    Args:
        model: whose.
        folder: of its checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ValueError: it is quantised: stock would take the numbers as they are stored.
    """
    stock = getattr(modeling_layers, "MtpModel", None)
    if stock is None or getattr(model.config.get_text_config(), "num_mtp_layers", None) is None:
        return 0
    keys = stock.get_mtp_weights_regex(model)
    entries = {key: each for key, each in read_index(folder).items() if keys.search(key)}
    for key, entry in entries.items():
        if entry.dtype not in COMPUTED:
            raise ValueError(
                f"use_mtp: {key} of {folder} is quantised, and transformers loads a multi-token "
                "head without decoding it. Leave use_mtp out."
            )
    return sum(torch.Size(each.shape).numel() for each in entries.values()) * model.dtype.itemsize
