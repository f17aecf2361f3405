"""Building a model for nothing, to see what its config asks for before memory is spent on it.

A config comes from strangers, and its numbers go into constructors that trust them. On the meta
device tensors cost nothing, so a first model is built there and held against the checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rabbitllm.checkpoint.tensors import TensorEntry, total_bytes
from rabbitllm.utils.memory import format_size

PARTS = 16
"""Parameters that one tensor of a checkpoint may become, fused projections for example."""
SPARE = 1000
"""Parameters more, so that a checkpoint that lacks some is told which."""
TABLES = 512 << 20
"""Bytes that buffers, and computing them, may take in any model; a large one's, its own size."""

Model = TypeVar("Model", bound=nn.Module)


def rehearse(build: Callable[[], Model], entries: Mapping[str, TensorEntry]) -> Model:
    """The model that `build` makes, all of it on the meta device, buffers included.

    Args:
        build: makes the model.
        entries: the tensors of the checkpoint.

    Raises:
        OverflowError: it has far more parameters than the checkpoint can fill, or buffers that no
            model of its size has. The first is found while it is built.
    """
    most = PARTS * len(entries) + SPARE
    parameters = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal parameters
        parameters += 1
        if parameters > most:
            raise OverflowError(
                f"it asks for more than {most:,} parameters, but the checkpoint has only "
                f"{len(entries):,} tensors"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _Made() as made:
            model = build()
    finally:
        hook.remove()
    tables = made.nbytes - sum(parameter.nbytes for parameter in model.parameters())
    allowed = max(TABLES, total_bytes(entries.values()))
    if tables > allowed:
        raise OverflowError(
            f"it asks for {format_size(tables)} beside the weights, for tables of positions and "
            f"their like; a checkpoint of this size may have {format_size(allowed)}"
        )
    return model


class _Made(TorchDispatchMode):
    """Counts the bytes of new tensors."""

    nbytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        self.nbytes += sum(
            storage.nbytes() for key, storage in _storages(result).items() if key not in given
        )
        return result


def _storages(values: object) -> dict[int, torch.UntypedStorage]:
    """The storages of the tensors among `values`; views share one."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage for storage in storages}
