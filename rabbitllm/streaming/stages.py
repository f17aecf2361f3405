"""Which modules' weights load together.

A stage is an outermost `GradientCheckpointingLayer` (what transformers calls a decoder layer in
every architecture), or a large embedding or linear layer outside of them. Every other weight is
small, and always resident.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rabbitllm.checkpoint.codecs.codec import Codec, Layout
from rabbitllm.checkpoint.codecs.plain import PLAIN

ALIGNMENT = 256
"""Bytes. Weights start on such a boundary: kernels choose by alignment, and so change bits."""
LARGE = 1 / 8
"""A layer outside the blocks is a stage of its own from this fraction of the largest block on."""
SMALL = 1 / 1024
"""A part of a split block is resident up to this fraction of the limit: a norm is worth no turn."""
REST = ""
"""The name of what belongs to no stage."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter, wherever it is used.

    Attributes:
        name: its first name in the model.
        owners: (module, attribute) of every place it is bound in; several when tied.
        dtype: the dtype it has in the model.
        shape: the shape it has in the model.
        offset: bytes from the start of its stage's buffer, a multiple of `ALIGNMENT`.
        by: which argument of the first owner's forward names the rows, slices along dimension 0,
            that the forward needs; None where it needs the whole. Other owners need the whole.
        codec: how it is stored.
    """

    name: str
    owners: tuple[tuple[nn.Module, str], ...]
    dtype: torch.dtype
    shape: torch.Size
    offset: int = 0
    by: int | None = None
    codec: Codec = PLAIN

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, without padding."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def stored_nbytes(self) -> int:
        """Bytes that are stored of it."""
        return self.codec.nbytes(Layout(self.dtype, self.shape))


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

    @property
    def stored_nbytes(self) -> int:
        """Bytes that are read to fill the buffer; padding counts here, too."""
        return self.nbytes - sum(weight.nbytes - weight.stored_nbytes for weight in self.weights)

    @property
    def offsets(self) -> dict[str, int]:
        """Weight name -> where it begins in the stage's buffer, in bytes."""
        return {weight.name: weight.offset for weight in self.weights}

    def stored(self, codecs: Mapping[str, Codec]) -> "Stage":
        """The same with its weights stored by these codecs; those without one are stored plain."""
        weights = (replace(weight, codec=codecs.get(weight.name, PLAIN)) for weight in self.weights)
        return replace(self, weights=tuple(weights))

    def alone(self) -> "Stage":
        """The same without the modules: what may be kept without keeping them alive."""
        weights = tuple(replace(weight, owners=()) for weight in self.weights)
        return Stage(self.name, (), weights)

    def gathered(self) -> dict[tuple[nn.Module, int], list[Weight]]:
        """(module, argument of its forward) -> the weights that it names rows of."""
        found: dict[tuple[nn.Module, int], list[Weight]] = defaultdict(list)
        for weight in self.weights:
            if weight.by is not None:
                found[weight.owners[0][0], weight.by].append(weight)
        return found

    def streamed(self) -> "Stage | None":
        """What takes a slot: all but what is gathered; None if nothing is left."""
        if not self.gathered():
            return self
        weights = _lay_out(
            replace(weight, owners=weight.owners[weight.by is not None :], by=None)
            for weight in self.weights
            if weight.by is None or len(weight.owners) > 1
        )
        owners = {module for weight in weights for module, _ in weight.owners}
        modules = (module for module in self.modules if not owners.isdisjoint(module.modules()))
        return Stage(self.name, tuple(modules), weights) if weights else None


def find_stages(
    model: PreTrainedModel,
    tied: dict[str, str],
    dtypes: dict[str, torch.dtype],
    limit: int | None = None,
) -> tuple[Stage | None, list[Stage]]:
    """Splits the parameters of `model` into the resident rest and the stages that can stream.

    Args:
        model: the model, on the meta device.
        tied: name -> name of the parameter that it shares its values with.
        dtypes: name -> dtype in the running model.
        limit: bytes; larger blocks split into their children.

    Returns:
        The resident rest (None if there is none), and the stages in the order of the modules.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    nbytes = {name: p.numel() * dtypes[name].itemsize for name, p in parameters.items()}
    blocks = dict(_blocks(model, ""))
    leaves = _leaves(model, blocks, nbytes)
    split = dict(pair for pair in blocks.items() for pair in _pieces(*pair, nbytes, limit))
    # A leaf is its own weights; a norm inside an embedding is not asked by ids.
    home = {
        name: path if (path := name.rpartition(".")[0]) in leaves else _home(name, split)
        for name in parameters
    }
    groups = _tied_groups(parameters, tied)
    leader = {root: root for root in split} | _leaders(groups, home, leaves)
    members = _members(groups, home, leader)
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}

    def stage(name: str) -> Stage:
        modules = tuple(module for root, module in (split | leaves).items() if leader[root] == name)
        embedding = model.get_input_embeddings()
        asked = embedding if embedding in modules and isinstance(embedding, nn.Embedding) else None
        weights = (_weight(group, model, parameters, dtypes, asked) for group in members[name])
        return Stage(name, modules, _lay_out(weights))

    stages = [stage(name) for name in sorted(members.keys() - {REST}, key=order.__getitem__)]
    rest = _lay_out(_weight(group, model, parameters, dtypes) for group in members[REST])
    return Stage(REST, (model,), rest) if rest else None, stages


def _leaves(
    model: nn.Module, blocks: Collection[str], nbytes: dict[str, int]
) -> dict[str, nn.Module]:
    """The large embeddings and linear layers outside of the blocks."""
    # A model without blocks counts as one: only what is large by its measure streams.
    largest = max((_under(root, nbytes) for root in blocks), default=sum(nbytes.values()))
    return {
        name: module
        for name, module in model.named_modules()
        if _is_plain(module)
        and not _home(name + ".", blocks)
        and _under(name, nbytes) > largest * LARGE
    }


def _leaders(
    groups: list[list[str]], home: dict[str, str], leaves: Collection[str]
) -> dict[str, str]:
    """Leaf -> the leaf whose stage it belongs to: itself, or the first that it is tied to."""
    leader = {leaf: leaf for leaf in leaves}
    for group in groups:
        homes = list(dict.fromkeys(home[name] for name in group))
        if all(root in leaves for root in homes):
            leader |= dict.fromkeys(homes, leader[homes[0]])
    return leader


def _members(
    groups: list[list[str]], home: dict[str, str], leader: dict[str, str]
) -> dict[str, list[list[str]]]:
    """Stage, or REST -> the groups of names that are its weights."""
    members: dict[str, list[list[str]]] = defaultdict(list)
    for group in groups:
        # Shared between a stage and something else: resident, for either may run first.
        leaders = {leader.get(home[name], REST) for name in group}
        members[leaders.pop() if len(leaders) == 1 else REST].append(group)
    return members


def _weight(
    names: list[str],
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    dtypes: dict[str, torch.dtype],
    asked: nn.Embedding | None = None,
) -> Weight:
    """The weight of these names; an embedding that is `asked` for rows is its first owner."""
    places = [name.rpartition(".") for name in names]
    owners = [(model.get_submodule(path), attribute) for path, _, attribute in places]
    by = 0 if (asked, "weight") in owners else None
    owners.sort(key=lambda owner: owner[0] is not asked)
    return Weight(names[0], tuple(owners), dtypes[names[0]], parameters[names[0]].shape, by=by)


def _lay_out(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """The same, one behind the other in a buffer."""
    placed, offset = [], 0
    for weight in weights:
        placed.append(replace(weight, offset=offset))
        offset = _align(offset + weight.nbytes)
    return tuple(placed)


def _is_plain(module: nn.Module) -> bool:
    """Whether it is an embedding or linear layer that is called as torch's own are.

    One with more arguments does more than multiply or look up, and may be entered by other ways
    than its forward, which hooks do not see (the position table of prophetnet is).
    """
    return (
        isinstance(module, nn.Embedding | nn.Linear)
        and len(signature(module.forward).parameters) == 1
    )


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, GradientCheckpointingLayer):
            yield prefix + name, child
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _pieces(
    name: str, module: nn.Module, nbytes: dict[str, int], limit: int | None
) -> Iterator[tuple[str, nn.Module]]:
    """The module, or, as long as it is larger than `limit`, its children. A list has no forward.

    Of the children only those that are worth streaming.
    """
    children = [(f"{name}.{child}", part) for child, part in module.named_children()]
    large = limit is not None and _under(name, nbytes) > limit
    if children and (large or isinstance(module, nn.ModuleList | nn.ModuleDict)):
        for pair in children:
            yield from _pieces(*pair, nbytes, limit)
    elif limit is None or _under(name, nbytes) > limit * SMALL:
        yield name, module


def _tied_groups(parameters: dict[str, nn.Parameter], tied: dict[str, str]) -> list[list[str]]:
    """The parameter names, those that share values together, each group in the model's order."""
    leader: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    for name, parameter in parameters.items():
        leader[name] = by_identity.setdefault(id(parameter), name)
    order = list(parameters)
    for pair in tied.items():
        first, last = sorted((leader[name] for name in pair), key=order.index)
        leader = {name: first if head == last else head for name, head in leader.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in parameters:
        groups[leader[name]].append(name)
    return list(groups.values())


def _home(name: str, roots: Collection[str]) -> str:
    """The stage root that a parameter lies under; REST when it lies under none."""
    return next((root for root in roots if name.startswith(f"{root}.")), REST)


def _under(root: str, nbytes: dict[str, int]) -> int:
    return sum(size for name, size in nbytes.items() if name.startswith(f"{root}."))


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
