"""What stages are made of, whichever way a model is split into them: it is found once."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.experts import Experts, find_experts
from rabbitllm.streaming.weights import Kind, Owner, Weight

Names: TypeAlias = tuple[str, ...]
"""All names of a weight: several where it is tied."""
WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch that read the weights of their children and do not call them."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A model's modules and weights.

    Attributes:
        model: the model, its parameters on the meta device.
        modules: all, by their paths, in order.
        blocks: the decoder layers.
        plain: embeddings and linear layers outside of the blocks, which can be stages.
        experts: those that nothing else shares, by the path of what holds them.
        weights: all, in order, each whole to all its owners.
    """

    model: PreTrainedModel
    modules: Mapping[str, nn.Module]
    blocks: Mapping[str, nn.Module]
    plain: Mapping[str, nn.Module]
    experts: Mapping[str, Experts]
    weights: Mapping[Names, Weight]


def find_structure(
    model: PreTrainedModel, tied: Mapping[str, str], dtypes: Mapping[str, torch.dtype]
) -> Structure:
    """What a model is made of.

    Args:
        model: the model, its parameters on the meta device.
        tied: name -> name of the parameter that it shares its values with.
        dtypes: name of a parameter or persistent buffer -> dtype in the running model.
    """
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    tensors = {name: tensor for name, tensor in named if name in dtypes}
    groups = _tied_groups(tensors, tied)
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = find_blocks(model)
    alone = {names[0] for names in groups if len(names) == 1}
    return Structure(
        model=model,
        modules=modules,
        blocks=blocks,
        plain=dict(_plain(model, blocks)),
        experts={
            path: experts
            for path, experts in find_experts(model, blocks).items()
            if alone.issuperset(experts.weights)
        },
        weights={
            names: _weight(names, tensors[names[0]], dtypes[names[0]], modules) for names in groups
        },
    )


def _weight(
    names: Names, tensor: torch.Tensor, dtype: torch.dtype, modules: Mapping[str, nn.Module]
) -> Weight:
    places = [name.rpartition(".") for name in names]
    owners = tuple(Owner(modules[path], attribute) for path, _, attribute in places)
    first, attribute = owners[0]
    kind: Kind = "_buffers" if attribute in first._buffers else "_parameters"
    return Weight(names[0], owners, dtype, tensor.shape, kind=kind)


def _plain(model: nn.Module, blocks: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """The embeddings and linear layers outside of the blocks that are called as torch's own are.

    One with more arguments does more than multiply or look up, and may be entered by other ways
    than its forward, which hooks do not see (the position table of prophetnet is).
    """
    apart = {*blocks, *(name for name, each in model.named_modules() if isinstance(each, WHOLE))}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Embedding | nn.Linear) and not block_of(name, apart)
        if plain and len(signature(module.forward).parameters) == 1:
            yield name, module


def _tied_groups(tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str]) -> list[Names]:
    """The names, those that share values together, each group in the model's order."""
    leader: dict[str, str] = {}
    by_identity: dict[int, str] = {}
    for name, tensor in tensors.items():
        leader[name] = by_identity.setdefault(id(tensor), name)
    order = {name: place for place, name in enumerate(tensors)}
    for pair in tied.items():
        first, last = sorted((leader[name] for name in pair), key=order.__getitem__)
        leader = {name: first if head == last else head for name, head in leader.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        groups[leader[name]].append(name)
    return list(map(tuple, groups.values()))
