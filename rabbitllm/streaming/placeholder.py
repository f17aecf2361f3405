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


Rows = Callable[[torch.Tensor], torch.Tensor]
"""What brings rows of a weight: int64 [rows] -> [rows, ...], both on the host."""


class Placeholder(nn.Parameter):
    """A parameter on the meta device that names the device where it is going to be used.

    Libraries put what belongs to a layer where its weight is, as PEFT does with adapters. On the
    meta device an adapter would lose its values without an error.

    Computing with one is an error. torch itself does not always say so: on a CPU, its `linear` with
    a weight on the meta device returns whatever is in memory.

    Rows are lent where they can be brought: some models read the embedding of a padding token from
    the weight itself.
    """

    home: torch.device
    path: str
    rows: Rows | None = None

    @classmethod
    @override
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Lets torch ask about the weight and take rows of it, but not compute with it.

        Raises:
            RuntimeError: naming the weight.
            IndexError: it has no such row.
        """
        if func == torch.Tensor.__getitem__ and isinstance(args[0], cls) and args[0].rows:
            first, *others = args[1] if isinstance(args[1], tuple) else (args[1],)
            if (numbers := _row_numbers(first, len(args[0]))) is not None:
                distinct, positions = torch.unique(numbers.cpu(), return_inverse=True)
                home = args[0].home
                return args[0].rows(distinct).to(home)[(positions.to(home), *others)]
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


def _row_numbers(index: object, count: int) -> torch.Tensor | None:
    """The rows, counted from the first, that an index of dimension 0 names; None if it may be all.

    Args:
        index: as in brackets behind a tensor.
        count: how many rows there are.
    """
    if isinstance(index, bool) or not isinstance(index, int | torch.Tensor):
        return None
    numbers = torch.as_tensor(index)
    if numbers.dtype.is_floating_point or numbers.dtype == torch.bool:
        return None
    return torch.where(numbers < 0, numbers + count, numbers)


def put_placeholders(stage: Stage, home: torch.device) -> None:
    """Has placeholders stand in for the stage's weights, which are going to be used on `home`."""
    tensors = []
    for weight in stage.weights:
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        placeholder = Placeholder(empty, requires_grad=False)
        placeholder.home, placeholder.path = home, weight.name
        tensors.append(placeholder)
    bind(bindings(stage), tensors)
