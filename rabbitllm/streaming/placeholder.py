"""What stands in a streamed weight's place while its weights are elsewhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.streaming.binding import bindings, put
from rabbitllm.streaming.weights import Stage

ASKED = "model.state_dict() and weight.detach() give its values"
ELSEWHERE = (
    "is in memory only while its layer runs. To have it there longer: `with model.weights(...)`, "
    "or model.keep_weights(...) for good; to read it, "
    f"{ASKED}"
)
LISTED = (
    " The modules of {0} are taken for experts: weights of one are in memory while it, or the "
    "module in it that has them, is called, and not where other code reads them. For such code: "
    'model.keep_weights("{0}").'
)

COMPARISONS = (torch.allclose, torch.Tensor.allclose)
"""To which torch says yes without looking: on the meta device there is nothing to compare."""


class Placeholder(nn.Parameter):
    """A parameter on the meta device that names the device where it is going to be used.

    Libraries put what belongs to a layer where its weight is, as PEFT does with adapters. On the
    meta device an adapter would lose its values without an error.

    Computing with one is an error. torch itself does not always say so: on a CPU, its `linear` with
    a weight on the meta device returns whatever is in memory. Detached, which state dicts do, it is
    a tensor with the values: a view of the file where they lie there as they are. Rows of it can be
    taken, too: some models read the embedding of a padding token from the weight itself.
    """

    _streams = True
    home: torch.device
    path: str
    lists: str  # the path of the list of experts that it belongs to one of; "" for none
    values: Callable[[], torch.Tensor]

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
            IndexError: it has no such rows.
        """
        given = _flat([*args, *(kwargs or {}).values()])
        if func is torch.Tensor.detach:
            return args[0].values()
        if func == torch.Tensor.__getitem__ and isinstance(args[0], cls):
            return args[0].values()[args[1]].to(args[0].home)
        if func is torch.Tensor.requires_grad_:
            return _refuse_training(args[0], *given[1:])
        others = [arg for arg in given if isinstance(arg, torch.Tensor) and type(arg) is not cls]
        if func not in COMPARISONS and all(other.is_meta for other in others):
            try:
                result = super().__torch_function__(func, types, args, kwargs or {})
            except NotImplementedError:  # torch's own word for values that are not there
                pass
            else:
                if not isinstance(result, torch.Tensor):
                    return result
        names = ", ".join(dict.fromkeys(arg.path for arg in given if isinstance(arg, cls)))
        lists = next((each.lists for each in given if isinstance(each, cls) and each.lists), "")
        raise RuntimeError(
            f"{names} is used while it is not in memory: a streamed weight {ELSEWHERE}."
            + (LISTED.format(lists) if lists else "")
        )

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute, to type checkers
        """Where the weights are whenever they are used."""
        return self.home

    @property
    def requires_grad(self) -> bool:
        """Never: the checkpoint's weights are not trained."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        _refuse_training(self, value)

    @property
    def data(self) -> torch.Tensor:
        """There is none: a change, such as a merged adapter, would be lost.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self.path} of a streamed model {ELSEWHERE}.")

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise RuntimeError(
            f"{self.path} of a streamed model {ELSEWHERE}. To replace it, assign a new "
            "nn.Parameter to its module: that stays in memory."
        )


def _flat(values: Iterable[Any]) -> list[Any]:
    """What is given to a function, with the elements of lists such as `torch.cat` takes."""
    return [
        each
        for value in values
        for each in (_flat(value) if isinstance(value, list | tuple) else [value])
    ]


def _refuse_training(idle: Placeholder, requires: bool = True) -> Placeholder:
    """Gives it back as it is.

    Raises:
        RuntimeError: it is to be trained.
    """
    if requires:
        raise RuntimeError(
            f"{idle.path} is streamed from the checkpoint, which is not trained: its weight cannot "
            "require gradients. Train an adapter (PEFT), or take the weight into memory first: "
            "model.keep_weights(...)."
        )
    return idle


def put_placeholders(stage: Stage, home: torch.device, reader: Reader) -> None:
    """Has placeholders stand in for the stage's weights.

    Args:
        stage: whose.
        home: where they are going to be used.
        reader: knows their values.
    """
    tensors: list[torch.Tensor] = []
    for weight in stage.weights:
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        placeholder = Placeholder(empty, requires_grad=False)
        placeholder.home, placeholder.path = home, weight.name
        placeholder.lists = "" if weight.row is None else stage.name
        placeholder.values = partial(reader.apart, weight.name)
        tensors.append(placeholder)
    put(bindings(stage), tensors)
