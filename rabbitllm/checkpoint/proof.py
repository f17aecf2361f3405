"""Whether a layer store holds everything that a checkpoint's shards hold, bit for bit."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.index import tensors_in
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.errors import CheckpointError

NAMED = 3
"""Tensors that a message names; it counts the others."""
AT_ONCE = 1 << 22
"""Elements that are hashed together."""
KEEP = "Leave delete_original (--delete-original) out to keep the shards"


def check_all_kept(
    recipes: list[Recipe],
    dtypes: Mapping[str, torch.dtype],
    entries: Mapping[str, TensorEntry],
    place: Path,
) -> None:
    """Every tensor of the shards goes into a store as it is, as far as headers tell.

    Args:
        recipes: how the store's tensors are made.
        dtypes: name -> dtype in the store.
        entries: the shards' tensors, by their keys.
        place: the checkpoint, for the message.

    Raises:
        CheckpointError: naming tensors that would be lost, or lose precision.
    """
    used = {key for recipe in recipes for key, _ in recipe.sources}
    if unused := sorted(entries.keys() - used):
        raise CheckpointError(
            f"The shards of {place} hold what this model does not use, so a layer store cannot "
            f"take their place: {_some(unused)}. {KEEP}."
        )
    headers = {file: tensors_in(file) for file in {entry.file for entry in entries.values()}}
    twice = [
        f"{key} in {file.name}"
        for file, header in headers.items()
        for key, entry in header.items()
        if entries[key] != entry
    ]
    if twice:
        raise CheckpointError(
            f"The shards of {place} hold tensors of the same name, of which a layer store takes "
            f"one; it would lose {_some(sorted(twice))}. {KEEP}."
        )
    changed = [
        f"{key} ({_name(entries[key].dtype)}, stored as {_name(dtypes[recipe.targets[0]])})"
        for recipe in recipes
        for key, _ in recipe.sources
        if entries[key].dtype != dtypes[recipe.targets[0]]
    ]
    if changed:
        raise CheckpointError(
            f"A layer store of another precision cannot take the place of the shards of {place}: "
            f"{_some(changed)}. {KEEP}, or ask for the checkpoint's own dtype."
        )


def check_bits(
    model: PreTrainedModel,
    recipes: list[Recipe],
    dtypes: dict[str, torch.dtype],
    entries: Mapping[str, TensorEntry],
    located: Mapping[str, TensorEntry],
    tied: Mapping[str, str],
) -> None:
    """Every tensor of the shards is in the store, bit for bit; reads both whole.

    What is fused or split on the way is made again and compared. It must also consist of the very
    elements of its sources: what an operation has computed does not bring them back.

    Args:
        model: the model, on the meta device.
        recipes: how the store's tensors are made.
        dtypes: name -> dtype in the store.
        entries: the shards' tensors, by their keys.
        located: the store's tensors, by name.
        tied: name -> the name of the parameter that it shares its values with.

    Raises:
        CheckpointError: naming the first tensor that is not there.
    """
    originals, store = Reader(entries), Reader(located)
    shown: set[str] = set()
    for recipe in recipes:
        keys = [key for key, _ in recipe.sources]
        if shown.issuperset(keys):  # another name for the same values
            continue
        made = recipe.run(model, originals.read, dtypes)
        for target in recipe.targets:
            name = target if target in located else tied.get(target, target)
            if name not in located or not _same_bits(made[target], store.read(name)):
                raise CheckpointError(
                    f"{_some(keys)} of {entries[keys[0]].file} cannot be deleted: the layer store "
                    f"holds other values as {target}. Delete the store with `rabbitllm cache rm`, "
                    "and the next load or split makes it again."
                )
        if recipe.converter and _content(map(originals.read, keys)) != _content(
            made[target] for target in recipe.targets
        ):
            raise CheckpointError(
                f"{_some(keys)} of {entries[keys[0]].file} cannot be deleted: the layer store "
                f"holds what was computed from them, from which they cannot be had back. {KEEP}."
            )
        shown.update(keys)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _content(tensors: Iterable[torch.Tensor]) -> int:
    """A hash of the elements' bits that does not depend on their order."""
    total = 0
    for tensor in tensors:
        words = _bytes(tensor).numpy().view(f"u{tensor.dtype.itemsize}")
        for start in range(0, len(words), AT_ONCE):
            x = words[start : start + AT_ONCE].astype(np.uint64)
            x += np.uint64(0x9E3779B97F4A7C15)  # this and what follows is splitmix64
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                x ^= x >> np.uint64(shift)
                x *= np.uint64(factor)
            total += int((x ^ x >> np.uint64(31)).sum(dtype=np.uint64))
    return total % 2**64


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
