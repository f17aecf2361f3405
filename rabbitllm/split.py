"""Filling the layer store ahead of time."""

import os
from pathlib import Path

import torch

from rabbitllm.deprecated import accept_compression


def find_or_create_local_splitted_path(
    model_local_path_or_repo_id: str | os.PathLike[str],
    layer_shards_saving_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    token: str | None = None,
    hf_token: str | None = None,
    trust_remote_code: bool = False,
    compression: str | None = None,
) -> tuple[Path, Path]:
    """Splits a checkpoint into one file for each layer, or finds it split already.

    Loading does this by itself for checkpoints that need it; call it to pay ahead of time.

    Args:
        model_local_path_or_repo_id: a folder, or a repository on the hub.
        layer_shards_saving_path: the folder for layer stores; None is the user's cache.
        dtype: of the weights in the store; "auto" is the checkpoint's own.
        token: for gated and private repositories.
        hf_token: the older name of `token`.
        trust_remote_code: allow the checkpoint's own Python code.
        compression: a name in `rabbitllm.checkpoint.codecs.COMPRESSIONS`, such as "8bit".

    Returns:
        The folder with config and tokenizer, and the folder with the layers.

    Raises:
        CheckpointError: as `AutoModel.from_pretrained`.
        BudgetError: the disk lacks the space.
        ValueError: there is no such compression.
    """
    from rabbitllm.prepare import (
        prepare,
    )  # here, because the engine that it imports uses this package

    codec = accept_compression(compression)
    prepared = prepare(
        model_local_path_or_repo_id,
        token or hf_token,
        torch.device("cpu"),
        dtype,
        "auto",
        trust_remote_code,
    )
    location = prepared.location
    return location.folder, location.split(layer_shards_saving_path, codec)
