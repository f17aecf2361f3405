"""The experts of a mixture, whatever holds them: which weights are whose, and what is called."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from rabbitllm.streaming.listed import find_listed
from rabbitllm.streaming.routed import find_routed
from rabbitllm.streaming.weights import Stage, Weight, lay_out


class Slices(NamedTuple):
    """A weight of all experts, each of which has a slice of it: see `Weight`."""

    by: int
    rows: int
    row: None = None

    @property
    def slices(self) -> int:
        """Of how many parts each is read by itself."""
        return self.rows


class Own(NamedTuple):
    """A weight of one expert alone: see `Weight`."""

    row: int
    rows: int
    by: None = None

    @property
    def slices(self) -> int:
        """It is read whole."""
        return 1


class Experts(NamedTuple):
    """Those of one layer.

    Attributes:
        modules: the paths of what is called for them: one for all, or one for each.
        weights: their weights, by name.
        least: how many must be on the device at a time.
    """

    modules: list[str]
    weights: Mapping[str, Slices | Own]
    least: int

    @property
    def counts(self) -> set[int]:
        """How many there are, of all kinds or of one."""
        return {weight.rows for weight in self.weights.values()}

    def stage(
        self, path: str, modules: Mapping[str, nn.Module], weights: Iterable[Weight]
    ) -> Stage:
        """Their stage.

        Args:
            path: what it is called by: the path of what holds them.
            modules: the model's, by their paths.
            weights: all of theirs.
        """
        asked = (replace(weight, **self.weights[weight.name]._asdict()) for weight in weights)
        called = tuple(modules[each] for each in self.modules)
        return Stage(path, called, lay_out(asked), least_rows=self.least)


def find_experts(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, Experts]:
    """The experts of a model, by the path of what holds those of a layer.

    Args:
        model: whose.
        blocks: its decoder layers, by their paths.
    """
    found = {}
    for path, routed in find_routed(model).items():
        slices = {f"{path}.{name}": Slices(routed.by, rows) for name, rows in routed.rows.items()}
        found[path] = Experts([path], slices, max(routed.rows.values()))
    for path, modules in find_listed(blocks).items():
        own = {
            f"{module}.{name}": Own(number, len(modules))
            for number, module in enumerate(modules)
            for name, _ in model.get_submodule(module).named_parameters()
        }
        found[path] = Experts(modules, own, 1)
    return found
