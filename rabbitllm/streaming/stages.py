"""Which modules' weights load together.

A stage is an outermost `GradientCheckpointingLayer` (what transformers calls a decoder layer in
every architecture), a mixture's experts within one, or a large embedding or linear layer outside of
them. Every other weight is small: together they are one stage more, which is pinned.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from inspect import signature
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rabbitllm.streaming.experts import Experts, find_experts
from rabbitllm.streaming.weights import Owner, Stage, Weight, lay_out

LARGE = 1 / 8
"""A layer outside the blocks is a stage of its own from this fraction of the largest block on."""
SMALL = 1 / 1024
"""A part of a split block is resident up to this fraction of the limit: a norm is worth no turn."""
WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch that read the weights of their children and do not call them."""
REST = ""
"""The name of the stage of all that belongs to no other: the path of the model itself."""


def find_stages(
    model: PreTrainedModel,
    tied: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype],
    limit: int | None = None,
    rowwise: Callable[[str, int], bool] = lambda *_: True,
    apart: Collection[str] = (),
) -> list[Stage]:
    """Splits the weights of `model` into the stages that can stream and the rest, which is pinned.

    Args:
        model: the model, its parameters on the meta device.
        tied: name -> name of the parameter that it shares its values with.
        dtypes: name of a parameter or persistent buffer -> dtype in the running model.
        limit: bytes; larger blocks split into their children.
        rowwise: whether a weight, by its name, is stored so that each of so many rows can be read
            by itself.
        apart: modules that are stages of their own, by name, where they are large enough; their
            blocks split around them.

    Returns:
        The rest first, if there is one, then the stages in the order of the modules.
    """
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    tensors = {name: tensor for name, tensor in named if name in dtypes}
    nbytes = {name: tensor.numel() * dtypes[name].itemsize for name, tensor in tensors.items()}
    groups = _tied_groups(tensors, tied)
    blocks = find_blocks(model)
    experts = _readable(find_experts(model, blocks), groups, dtypes, rowwise)
    for name in tensors:
        if _home(name, experts):
            del nbytes[name]
    leaves = _leaves(model, blocks, nbytes)
    largest = max((_under(root, nbytes) for root in blocks), default=0)
    apart = [name for name in apart if _under(name, nbytes) > largest * LARGE]
    if apart and limit is None:
        limit = largest
    split = dict(pair for pair in blocks.items() for pair in _pieces(*pair, nbytes, limit, apart))
    home = {name: _home(name, experts) or _home(name, split) for name in tensors}
    for name in tensors:
        path, _, attribute = name.rpartition(".")
        if home[name] in experts:
            continue
        if _routes(name, tensors[name], experts):
            home[name] = REST  # it is small, and what tells which experts are to come
            continue
        if attribute in model.get_submodule(path)._buffers:
            # Of a split block it stays: parents read their children's, as a router's bias.
            home[name] = home[name] if home[name] in blocks else REST
        elif path in leaves:  # its own weights alone: a norm in an embedding is not asked by ids
            home[name] = path
    leader = {root: root for root in (*split, *experts)} | _leaders(groups, home, leaves)
    members = _members(groups, home, leader)
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}

    def stage(name: str) -> Stage:
        if name == REST:
            weights = (_weight(group, model, tensors, dtypes) for group in members[REST])
            return Stage(REST, (model,), lay_out(weights), pinned=True)
        if name in experts:
            weights = (_weight(group, model, tensors, dtypes) for group in members[name])
            return experts[name].stage(name, model, weights)
        modules = tuple(module for root, module in (split | leaves).items() if leader[root] == name)
        embedding = model.get_input_embeddings()
        asked = embedding if embedding in modules and isinstance(embedding, nn.Embedding) else None
        weights = (_weight(group, model, tensors, dtypes, asked) for group in members[name])
        return Stage(name, modules, lay_out(weights))

    return [stage(name) for name in sorted(members, key=order.__getitem__)]


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost decoder layers, by their paths, in the order of the modules.

    Code that comes with a checkpoint may know nothing of transformers' class for them: then they
    are what the model says must not be split (`_no_split_modules`).
    """
    found = dict(_blocks(model, "", lambda module: isinstance(module, GradientCheckpointingLayer)))
    named = getattr(model, "_no_split_modules", None) or ()
    return found or dict(_blocks(model, "", lambda module: type(module).__name__ in named))


def block_of(name: str, blocks: Collection[str]) -> str:
    """The path of the block that a module or weight is or lies in; "" if it is outside of all."""
    while name and name not in blocks:
        name = name.rpartition(".")[0]
    return name


def _readable(
    experts: Mapping[str, Experts],
    groups: list[list[str]],
    dtypes: Mapping[str, torch.dtype],
    rowwise: Callable[[str, int], bool],
) -> dict[str, Experts]:
    """Those that can be read one by one."""
    alone = {names[0] for names in groups if len(names) == 1}
    return {
        path: each
        for path, each in experts.items()
        if all(
            name in alone and name in dtypes and rowwise(name, weight.slices)
            for name, weight in each.weights.items()
        )
    }


def _routes(name: str, tensor: torch.Tensor, experts: Mapping[str, Experts]) -> bool:
    """Whether a weight beside experts has a row for each of them, as a router has."""
    return tensor.dim() > 0 and any(
        name.startswith(path.rpartition(".")[0] + ".") and len(tensor) in each.counts
        for path, each in experts.items()
    )


def _leaves(
    model: nn.Module, blocks: Collection[str], nbytes: Mapping[str, int]
) -> dict[str, nn.Module]:
    """The large embeddings and linear layers outside of the blocks."""
    # A model without blocks counts as one: only what is large by its measure streams.
    largest = max((_under(root, nbytes) for root in blocks), default=sum(nbytes.values()))
    apart = {
        *blocks,
        *(name for name, module in model.named_modules() if isinstance(module, WHOLE)),
    }
    return {
        name: module
        for name, module in model.named_modules()
        if _is_plain(module)
        and not _home(name + ".", apart)
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
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    asked: nn.Embedding | None = None,
) -> Weight:
    """The weight of these names; an embedding that is `asked` for rows is its first owner."""
    places = [name.rpartition(".") for name in names]
    owners = [Owner(model.get_submodule(path), attribute) for path, _, attribute in places]
    owners.sort(key=lambda owner: owner.module is not asked)
    first, attribute = owners[0]
    return Weight(
        name=names[0],
        owners=tuple(owners),
        dtype=dtypes[names[0]],
        shape=tensors[names[0]].shape,
        by=0 if (looked := (asked, "weight") in owners) else None,
        rows=tensors[names[0]].shape[0] if looked else 0,
        kind="_buffers" if attribute in first._buffers else "_parameters",
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether it is an embedding or linear layer that is called as torch's own are.

    One with more arguments does more than multiply or look up, and may be entered by other ways
    than its forward, which hooks do not see (the position table of prophetnet is).
    """
    return (
        isinstance(module, nn.Embedding | nn.Linear)
        and len(signature(module.forward).parameters) == 1
    )


def _blocks(
    module: nn.Module, prefix: str, is_block: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if is_block(child):
            yield prefix + name, child
        else:
            yield from _blocks(child, f"{prefix}{name}.", is_block)


def _pieces(
    name: str,
    module: nn.Module,
    nbytes: Mapping[str, int],
    limit: int | None,
    apart: Collection[str] = (),
) -> Iterator[tuple[str, nn.Module]]:
    """The module, or, as long as it is larger than `limit`, its children. A list has no forward.

    What has modules inside that are stages of their own falls into its children, too.

    Of the children only those that are worth streaming.
    """
    children = [(f"{name}.{child}", part) for child, part in module.named_children()]
    large = limit is not None and _under(name, nbytes) > limit and not isinstance(module, WHOLE)
    large |= any(_home(inner, (name,)) for inner in apart)
    if children and (large or isinstance(module, nn.ModuleList | nn.ModuleDict)):
        for pair in children:
            yield from _pieces(*pair, nbytes, limit, apart)
    elif limit is None or _under(name, nbytes) > limit * SMALL:
        yield name, module


def _tied_groups(tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str]) -> list[list[str]]:
    """The names, those that share values together, each group in the model's order."""
    leader: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    for name, tensor in tensors.items():
        leader[name] = by_identity.setdefault(id(tensor), name)
    order = list(tensors)
    for pair in tied.items():
        first, last = sorted((leader[name] for name in pair), key=order.index)
        leader = {name: first if head == last else head for name, head in leader.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        groups[leader[name]].append(name)
    return list(groups.values())


def _home(name: str, roots: Collection[str]) -> str:
    """The stage root that a parameter lies under; REST when it lies under none."""
    return next((root for root in roots if name.startswith(f"{root}.")), REST)


def _under(root: str, nbytes: Mapping[str, int]) -> int:
    return sum(size for name, size in nbytes.items() if name.startswith(f"{root}."))
