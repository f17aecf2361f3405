"""Which modules' weights load together.

A stage is an outermost `GradientCheckpointingLayer` (what transformers calls a decoder layer in
every architecture), a mixture's experts within one, or a large embedding or linear layer outside of
them. Every other weight is small: together they are one stage more, which is pinned.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from rabbitllm.streaming.blocks import block_of
from rabbitllm.streaming.experts import Experts
from rabbitllm.streaming.structure import WHOLE, Names, Structure
from rabbitllm.streaming.weights import Stage, Weight, lay_out

LARGE = 1 / 8
"""A layer outside the blocks is a stage of its own from this fraction of the largest block on."""
SMALL = 1 / 1024
"""A part of a split block is resident up to this fraction of the limit: a norm is worth no turn."""
REST = ""
"""The name of the stage of all that belongs to no other: the path of the model itself."""


def find_stages(
    structure: Structure,
    limit: int | None = None,
    rowwise: Callable[[str, int], bool] = lambda *_: True,
    apart: Collection[str] = (),
) -> list[Stage]:
    """Splits a model's weights into the stages that can stream and the rest, which is pinned.

    Args:
        structure: of the model.
        limit: bytes; larger blocks split into their children.
        rowwise: whether a weight, by its name, is stored so that each of so many rows can be read
            by itself.
        apart: modules that are stages of their own, by name, where they are large enough; their
            blocks split around them.

    Returns:
        The rest first, if there is one, then the stages in the order of the modules.
    """
    blocks = structure.blocks
    experts = {
        path: each
        for path, each in structure.experts.items()
        if all(rowwise(name, weight.slices) for name, weight in each.weights.items())
    }
    sizes = _sizes(structure, experts)
    # A model without blocks counts as one: only what is large by its measure streams.
    largest = max((sizes[path] for path in blocks), default=sizes[REST])
    plain = structure.plain.items()
    leaves = {path: module for path, module in plain if sizes[path] > largest * LARGE}
    apart = [path for path in apart if sizes[path] > largest * LARGE]
    if apart and limit is None:
        limit = largest
    split = dict(pair for pair in blocks.items() for pair in _pieces(*pair, sizes, limit, apart))
    home = {
        name: _home(name, weight, structure, experts, split, leaves)
        for names, weight in structure.weights.items()
        for name in names
    }
    groups = structure.weights
    leader = {root: root for root in (*split, *experts)} | _leaders(groups, home, leaves)
    members = _members(groups, home, leader)
    model = structure.model

    def stage(name: str) -> Stage:
        weights = [structure.weights[names] for names in members[name]]
        if name == REST:
            return Stage(REST, (model,), lay_out(weights), pinned=True)
        if name in experts:
            return experts[name].stage(name, structure.modules, weights)
        modules = tuple(module for root, module in (split | leaves).items() if leader[root] == name)
        embedding = model.get_input_embeddings()
        if embedding in modules and isinstance(embedding, nn.Embedding):
            weights = [_asked(weight, embedding) for weight in weights]
        return Stage(name, modules, lay_out(weights))

    order = {name: position for position, name in enumerate(structure.modules)}
    return [stage(name) for name in sorted(members, key=order.__getitem__)]


def _sizes(structure: Structure, experts: Collection[str]) -> Mapping[str, int]:
    """Path of a module -> bytes of the weights in it, experts left out."""
    sizes: Counter[str] = Counter()
    for names, weight in structure.weights.items():
        for path in names:
            if block_of(path, experts):
                continue
            while path:
                path = path.rpartition(".")[0]
                sizes[path] += weight.nbytes
    return sizes


def _home(
    name: str,
    weight: Weight,
    structure: Structure,
    experts: Mapping[str, Experts],
    split: Collection[str],
    leaves: Collection[str],
) -> str:
    """The stage root that a weight lies under by one of its names; REST when under none."""
    if path := block_of(name, experts):
        return path
    if _routes(name, weight, experts):
        return REST  # it is small, and what tells which experts are to come
    root = block_of(name, split)
    if weight.kind == "_buffers":
        # Of a split block it stays: parents read their children's, as a router's bias.
        return root if root in structure.blocks else REST
    path = name.rpartition(".")[0]
    return path if path in leaves else root  # a norm in an embedding is not asked by ids


def _routes(name: str, weight: Weight, experts: Mapping[str, Experts]) -> bool:
    """Whether a weight beside experts has a row for each of them, as a router has."""
    return len(weight.shape) > 0 and any(
        name.startswith(path.rpartition(".")[0] + ".") and weight.shape[0] in each.counts
        for path, each in experts.items()
    )


def _leaders(
    groups: Collection[Names], home: Mapping[str, str], leaves: Collection[str]
) -> dict[str, str]:
    """Leaf -> the leaf whose stage it belongs to: itself, or the first that it is tied to."""
    leader = {leaf: leaf for leaf in leaves}
    for group in groups:
        homes = list(dict.fromkeys(home[name] for name in group))
        if all(root in leaves for root in homes):
            leader |= dict.fromkeys(homes, leader[homes[0]])
    return leader


def _members(
    groups: Collection[Names], home: Mapping[str, str], leader: Mapping[str, str]
) -> dict[str, list[Names]]:
    """Stage, or REST -> the weights that are its own, by their names."""
    members: dict[str, list[Names]] = defaultdict(list)
    for group in groups:
        # Shared between a stage and something else: resident, for either may run first.
        leaders = {leader.get(home[name], REST) for name in group}
        members[leaders.pop() if len(leaders) == 1 else REST].append(group)
    return members


def _asked(weight: Weight, embedding: nn.Embedding) -> Weight:
    """A weight of the embedding's stage: the embedding, its first owner, asks for rows of it."""
    if (embedding, "weight") not in weight.owners:
        return weight
    owners = sorted(weight.owners, key=lambda owner: owner.module is not embedding)
    return replace(weight, owners=tuple(owners), by=0, rows=weight.shape[0])


def _pieces(
    name: str,
    module: nn.Module,
    sizes: Mapping[str, int],
    limit: int | None,
    apart: Collection[str] = (),
) -> Iterator[tuple[str, nn.Module]]:
    """The module, or, as long as it is larger than `limit`, its children. A list has no forward.

    What has modules inside that are stages of their own falls into its children, too.

    Of the children only those that are worth streaming.
    """
    children = [(f"{name}.{child}", part) for child, part in module.named_children()]
    large = limit is not None and sizes[name] > limit and not isinstance(module, WHOLE)
    large |= any(inner.startswith(f"{name}.") for inner in apart)
    if children and (large or isinstance(module, nn.ModuleList | nn.ModuleDict)):
        for pair in children:
            yield from _pieces(*pair, sizes, limit, apart)
    elif limit is None or sizes[name] > limit * SMALL:
        yield name, module
