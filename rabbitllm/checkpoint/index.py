"""A checkpoint's weight files, and an index of the tensors in them."""

from operator import index
from pathlib import Path

from rabbitllm.checkpoint.plain_json import MALFORMED, parse, read_bytes
from rabbitllm.checkpoint.tensors import MAX_HEADER_BYTES, TensorEntry, read_header
from rabbitllm.errors import CheckpointError, summary

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
MOST_TENSORS = 250_000
"""In a checkpoint. Those of the largest, each expert apart and quantised, are near to it."""


def shard_names(folder: Path) -> list[str]:
    """The names of a checkpoint's weight files, whether they are there or not.

    Raises:
        CheckpointError: its index is malformed, or names files elsewhere.
    """
    return sorted(set(_weight_map(folder).values())) if _index(folder) else [WEIGHTS]


def total_size(folder: Path) -> int | None:
    """Bytes of a checkpoint's weights, as its index says, if it has one that does."""
    if not _index(folder):
        return None
    try:
        text = read_bytes(folder / WEIGHTS_INDEX, MAX_HEADER_BYTES)
        return index(parse(text, MOST_TENSORS)["metadata"]["total_size"])
    except MALFORMED:
        return None


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in `folder`, by its key, from the headers alone.

    Raises:
        CheckpointError: no safetensors weights, a missing or truncated shard, a malformed header.
    """
    if not _index(folder):
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(_no_weights(folder))
        return read_header(folder / WEIGHTS)
    weight_map = _weight_map(folder)
    tensors: dict[str, TensorEntry] = {}
    # Names are compared, not tried: an index may hold some that no file system takes.
    files = {path.name for path in folder.iterdir() if path.is_file()}
    for shard in sorted(set(weight_map.values())):
        if shard not in files:
            missing = sum(1 for s in weight_map.values() if s == shard)
            raise CheckpointError(
                f"Shard {shard} ({missing} tensors) is missing from {folder}. Download the "
                "checkpoint again."
            )
        tensors |= read_header(folder / shard)
        if len(tensors) > MOST_TENSORS:
            raise CheckpointError(
                f"{folder} has more than {MOST_TENSORS:,} tensors: no model is stored like that."
            )
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(
            f"{WEIGHTS_INDEX} lists {absent[0]} in {weight_map[absent[0]]}, which does not hold it "
            f"({len(absent)} such tensors in {folder}). Download the checkpoint again."
        )
    return tensors


def _index(folder: Path) -> bool:
    return (folder / WEIGHTS_INDEX).is_file()


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor key -> shard name; a name may not lead out of the folder."""
    path = folder / WEIGHTS_INDEX
    try:
        text = read_bytes(path, MAX_HEADER_BYTES)
        weight_map = dict(parse(text, MOST_TENSORS)["weight_map"])
    except MALFORMED as error:
        raise CheckpointError(f"{path} is no index of shards: {summary(error)}.") from error
    for shard in weight_map.values():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or not shard.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{path} names {shard!r}, which is no safetensors file of that folder."
            )
    return weight_map


def _no_weights(folder: Path) -> str:
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        return (
            f"{folder} holds its weights as pickles ({pickles[0]}), which can run code when read. "
            "Convert them: "
            f"model.save_pretrained(..., safe_serialization=True) with transformers."
        )
    return (
        f"{folder} holds neither {WEIGHTS} nor {WEIGHTS_INDEX}. Weights in another format must be "
        "converted: model.save_pretrained(...) with transformers."
    )
