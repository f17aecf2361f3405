"""What a hub repository would bring, without its weights."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, SafetensorsParsingError

from rabbitllm.checkpoint.hub import fetch_settings, hub_errors
from rabbitllm.checkpoint.source import MALFORMED, MOVED, shard_names
from rabbitllm.errors import CheckpointError


def fetch_headers(repo: str, token: str | None, trust_remote_code: bool, folder: Path) -> None:
    """Makes a folder that looks as the repository does, but for the values of its weights.

    Of each weight file only the header is fetched; the rest is a hole that takes no space. What is
    in the hub's cache already is used as it is.

    Args:
        repo: the repository's id.
        token: as for `resolve`.
        trust_remote_code: fetch Python files too.
        folder: an empty one.

    Raises:
        CheckpointError: as `resolve`, and for a repository without weights in safetensors files.
    """
    api = HfApi(token=token)
    with hub_errors(repo):
        settings = fetch_settings(repo, token, trust_remote_code)
        for file in settings.iterdir():
            (folder / file.name).symlink_to(file)
        for name in shard_names(settings) if not (settings / MOVED).is_file() else ():
            if (folder / name).exists():
                continue
            try:
                header = api.parse_safetensors_file_metadata(repo, name)
                _write_hollow(folder / name, header.tensors)
            except (EntryNotFoundError, SafetensorsParsingError, *MALFORMED) as error:
                raise CheckpointError(
                    f"{repo} has no {name}, or not in the safetensors format "
                    f"({type(error).__name__}). Weights in another format must be converted: "
                    "model.save_pretrained(...) with transformers."
                ) from error


def _write_hollow(file: Path, tensors: Mapping[str, Any]) -> None:
    fields = {
        key: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
        for key, one in tensors.items()
    }
    header = json.dumps(fields).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    data = max((one.data_offsets[1] for one in tensors.values()), default=0)
    try:
        os.truncate(file, 8 + len(header) + data)
    except OSError as error:
        raise ValueError(f"no file system has files of {data:,} bytes") from error
