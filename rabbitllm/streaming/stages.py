"""Which modules' weights load together.

A stage is an outermost `GradientCheckpointingLayer` (what transformers calls a decoder layer in
every architecture), or a large embedding or linear layer outside of them. Every other weight is
small, and always resident.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

ALIGNMENT = 256
"""Bytes. Weights start on such a boundary: kernels choose by alignment, and so change bits."""
LARGE = 1 / 8
"""A layer outside the blocks is a stage of its own from this fraction of the largest block on."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter, wherever it is used.

    Attributes:
        name: its first name in the model.
        owners: (module, attribute) of every place it is bound in; several when tied.
        dtype: the dtype it has in the model.
        shape: the shape it has in the model.
        offset: bytes from the start of its stage's buffer, a multiple of `ALIGNMENT`.
    """

    name: str
    owners: tuple[tuple[nn.Module, str], ...]
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, without padding."""
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Stage:
    """Weights that load together, and the modules whose forward needs them.

    Attributes:
        name: the path of its first module in the model.
        modules: as a rule one; two when a head is tied to the embedding.
        weights: laid out one behind the other in the stage's buffer.
    """

    name: str
    modules: tuple[nn.Module, ...]
    weights: tuple[Weight, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the stage's buffer, padding included."""
        last = self.weights[-1]
        return _align(last.offset + last.nbytes)


def find_stages(
    model: nn.Module, tied: dict[str, str], dtypes: dict[str, torch.dtype]
) -> tuple[Stage | None, list[Stage]]:
    """Splits the parameters of `model` into the resident rest and the stages that can stream.

    Args:
        model: the model, on the meta device.
        tied: name -> name of the parameter that it shares its values with.
        dtypes: name -> dtype in the running model.

    Returns:
        The resident rest (None if there is none), and the stages in the order of the modules.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    groups = _tied_groups(parameters, tied)
    roots = dict(_blocks(model, ""))
    largest = max((_nbytes(block, dtypes, name) for name, block in roots.items()), default=0)
    for name, module in model.named_modules():
        outside = not any(name == root or name.startswith(f"{root}.") for root in roots)
        if (
            outside
            and isinstance(module, nn.Embedding | nn.Linear)
            and _nbytes(module, dtypes, name) > largest * LARGE
        ):
            roots[name] = module
    members: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for group in groups:
        homes = tuple(dict.fromkeys(_home(name, roots) for name in group))
        members[homes].append(group)
    # Weights shared between a stage and anything else than a whole other leaf are resident: either
    # may run first.
    stages, rest = [], []
    leaf_pairs = {
        homes
        for homes in members
        if len(homes) > 1 and all(_is_leaf(roots.get(home)) for home in homes)
    }
    paired = {home for homes in leaf_pairs for home in homes}
    for homes, names in members.items():
        if "" in homes or (len(homes) > 1 and homes not in leaf_pairs):
            rest += names
        elif homes in leaf_pairs or homes[0] not in paired:
            extra = [
                group for home in homes if len(homes) > 1 for group in members.get((home,), [])
            ]
            stages.append(
                _stage(
                    homes, [roots[home] for home in homes], names + extra, model, parameters, dtypes
                )
            )
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    stages.sort(key=lambda stage: order[stage.name])
    base = _stage(("",), [model], rest, model, parameters, dtypes) if rest else None
    return base, stages


def _stage(
    homes: Iterable[str],
    modules: list[nn.Module],
    groups: list[list[str]],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    dtypes: dict[str, torch.dtype],
) -> Stage:
    weights, offset = [], 0
    for group in groups:
        owners = []
        for name in group:
            path, _, attribute = name.rpartition(".")
            owners.append((model.get_submodule(path), attribute))
        shape = parameters[group[0]].shape
        weights.append(Weight(group[0], tuple(owners), dtypes[group[0]], shape, offset))
        offset = _align(offset + weights[-1].nbytes)
    return Stage(next(iter(homes)), tuple(modules), tuple(weights))


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, GradientCheckpointingLayer):
            yield prefix + name, child
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _tied_groups(parameters: dict[str, nn.Parameter], tied: dict[str, str]) -> list[list[str]]:
    """The parameter names, those that share values together, each group in the model's order."""
    leader = {name: name for name in parameters}
    by_identity: dict[int, str] = {}
    for name, parameter in parameters.items():
        leader[name] = by_identity.setdefault(id(parameter), name)
    for a, b in tied.items():
        old, new = sorted((leader[a], leader[b]), key=list(parameters).index, reverse=True)
        leader = {name: new if head == old else head for name, head in leader.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in parameters:
        groups[leader[name]].append(name)
    return list(groups.values())


def _home(name: str, roots: dict[str, nn.Module]) -> str:
    """The stage root that a parameter lies under; "" for the resident rest."""
    return next((root for root in roots if name.startswith(f"{root}.")), "")


def _is_leaf(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Embedding | nn.Linear)


def _nbytes(module: nn.Module, dtypes: dict[str, torch.dtype], prefix: str) -> int:
    return sum(
        p.numel() * dtypes[f"{prefix}.{name}"].itemsize for name, p in module.named_parameters()
    )


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
