"""One file of a layer store: its weights as codecs store them, whole or not there at all."""

import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from rabbitllm.checkpoint.codecs import to_header
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.durable import TEMPORARY, sync
from rabbitllm.checkpoint.tensors import DTYPES

logger = logging.getLogger(__name__)

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Of the element types, as headers have them."""
CHECKSUM = "crc32"
"""In a file's metadata: against bit rot, not malice; it costs little beside the writing."""


def write_file(path: Path, weights: dict[str, torch.Tensor], codecs: Mapping[str, Codec]) -> None:
    """Puts a file of weights in its place once all of it is on disk.

    Args:
        path: the file.
        weights: by name, contiguous and on the host; it is emptied.
        codecs: weight name -> what is to store it, as far as its values let it; the others are
            stored plain.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.stem}")
    tensors, metadata = _encode(weights, codecs)
    try:
        save_file(tensors, temporary, metadata | {CHECKSUM: checksum(sorted(tensors.items()))})
        sync(temporary)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written: {error}. What is there is kept: once "
            "that is mended, loading again goes on from here."
        ) from error
    temporary.replace(path)


def is_sound(path: Path) -> bool:
    """Whether a file still holds what was written to it; reads every byte."""
    try:
        with safe_open(path, "pt") as held:
            expected = (held.metadata() or {}).get(CHECKSUM)
        # Read, not mapped: one that is cut off meanwhile is damaged, and ends no process.
        return bool(expected == checksum(sorted(load(path.read_bytes()).items())))
    except SafetensorError:  # its header is damaged
        return False


def checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """CRC-32 of names and bytes, in hexadecimal; contiguous tensors in the order of their names."""
    value = 0
    for name, tensor in tensors:
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _encode(
    weights: dict[str, torch.Tensor], codecs: Mapping[str, Codec]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What is stored of these weights, which it empties one by one, and what metadata say."""
    stored: dict[str, torch.Tensor] = {}
    how = {}
    for name in sorted(weights):
        weight, codec = weights.pop(name), codecs.get(name, PLAIN)
        encoded = codec.encode(weight)
        if encoded is None:
            logger.info("%s is stored as it is: its values do not fit %s", name, codec.name)
            encoded = PLAIN.encode(weight)
        found, tensors = encoded
        stored |= {name + suffix: tensor for suffix, tensor in tensors.items()}
        if found != PLAIN:
            how[name] = found, {"dtype": NAMES[weight.dtype], "shape": list(weight.shape)}
    return stored, to_header(how)
