"""What stands in a streamed parameter's place while its weights are elsewhere."""

import torch
from torch import nn


class IdleParameter(nn.Parameter):
    """A parameter on the meta device that names the device where it is going to be used.

    Libraries put what belongs to a layer where its weight is, as PEFT does with adapters. On the
    meta device an adapter would lose its values without an error.
    """

    home: torch.device

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


def make_idle(model: nn.Module, home: torch.device) -> None:
    """Makes every parameter on the meta device an `IdleParameter`; shared ones stay shared."""
    made: dict[int, IdleParameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = IdleParameter(parameter, requires_grad=False)
                made[id(parameter)].home = home
            module._parameters[name] = made[id(parameter)]
