"""What stands in a streamed weight's place while its weights are elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from rabbitllm.streaming.binding import bind, bindings
from rabbitllm.streaming.weights import Stage

METADATA = (torch.Tensor.detach, torch.Tensor.requires_grad_)
"""Functions that give a tensor without computing with it; state dicts and freezing need them."""


class Placeholder(nn.Parameter):
    """A parameter on the meta device that names the device where it is going to be used.

    Libraries put what belongs to a layer where its weight is, as PEFT does with adapters. On the
    meta device an adapter would lose its values without an error.

    Computing with one is an error. torch itself does not always say so: on a CPU, its `linear` with
    a weight on the meta device returns whatever is in memory.
    """

    home: torch.device
    path: str

    @classmethod
    @override
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Lets torch ask about the weight, but not compute with it.

        Raises:
            RuntimeError: naming the weight.
        """
        given = [*args, *(kwargs or {}).values()]
        others = [arg for arg in given if isinstance(arg, torch.Tensor) and type(arg) is not cls]
        real = any(not other.is_meta for other in others)
        result = None if real else super().__torch_function__(func, types, args, kwargs or {})
        if real or (isinstance(result, torch.Tensor) and func not in METADATA):
            names = ", ".join(arg.path for arg in given if isinstance(arg, cls))
            raise RuntimeError(
                f"{names} is used while it is not in memory: this model reaches the weight by "
                "another way than the forward of its layer, so it cannot be streamed."
            )
        return result

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute, to type checkers
        """Where the weights are whenever they are used."""
        return self.home

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """There is none: a change, such as a merged adapter, would be lost.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "This weight of a streamed model is in memory only while its layer runs, so it cannot "
            "be read or changed. Adapters work unmerged; to merge one, load the model with stock "
            "transformers."
        )


def put_placeholders(stage: Stage, home: torch.device) -> None:
    """Has placeholders stand in for the stage's weights, which are going to be used on `home`."""
    tensors = []
    for weight in stage.weights:
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        placeholder = Placeholder(empty, requires_grad=False)
        placeholder.home, placeholder.path = home, weight.name
        tensors.append(placeholder)
    bind(bindings(stage), tensors)
