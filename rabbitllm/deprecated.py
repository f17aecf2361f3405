"""What the package of this name had up to release 1.1, and what stands in its place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from rabbitllm.checkpoint.codecs import COMPRESSIONS

ARGUMENTS = {
    "cache_layers": "host_memory, a size, says how much of the weights stays in RAM; 'auto' takes "
    "what is free",
    "kv_cache_dir": "generate(cache_implementation='offloaded') keeps the cache in host memory",
    "offload_small_layers": "device_memory, a size, places embedding and head like every layer",
    "offload_small_layers_use_cpu_cache": "host_memory, a size, says how much of the weights stays "
    "in RAM",
    "persister": "layer_shards_saving_path says where the layer store lies",
    "prefetch_pin_memory": "copies always go through page-locked memory; host_memory bounds it",
    "use_gds": "files are always read past the page cache where that is faster",
}
"""Argument of `AutoModel.from_pretrained` -> what does its work now."""

NAMES = {
    "NotEnoughSpaceException": "BudgetError",
    "RabbitLLMBaseModel": "StreamedModel",
    "RabbitLLMQWen3": "RabbitLLMQWen2",
}
"""Name in `rabbitllm` -> the one that means the same now."""

CALLER = 3
"""The frame that a warning points at: the user's, who called what calls a function below."""


def accept_arguments(given: Mapping[str, object]) -> dict[str, object]:
    """Warns of arguments that no longer do anything, and names what does; returns the others.

    Args:
        given: keyword arguments that a function does not have.
    """
    for name in given.keys() & ARGUMENTS.keys():
        # FutureWarning and not DeprecationWarning, which Python hides from all but test runners.
        warnings.warn(
            f"{name}={given[name]!r} has no effect since rabbitllm 2.0: {ARGUMENTS[name]}.",
            FutureWarning,
            stacklevel=CALLER,
        )
    return {name: value for name, value in given.items() if name not in ARGUMENTS}


def accept_compression(value: str | None) -> str | None:
    """The compression that an argument means.

    Raises:
        ValueError: there is no such one.
    """
    if value is None or value in COMPRESSIONS:
        return value
    names = ", ".join(map(repr, COMPRESSIONS))
    raise ValueError(f"compression={value!r} is not known. Use {names} or None.")


def rename(name: str) -> str:
    """The name that `name` has now, with a warning if that is another one."""
    if name not in NAMES:
        return name
    warnings.warn(
        f"rabbitllm.{name} is named {NAMES[name]} since rabbitllm 2.0.",
        FutureWarning,
        stacklevel=CALLER,
    )
    return NAMES[name]
