"""What a mutation is, and the ways of breaking that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import pytest
from torch import Tensor, nn

from harness.measuring.contract import text_blocks
from harness.records import Status
from rabbitllm import prepare
from rabbitllm.streaming.devices import CpuTransfer
from rabbitllm.streaming.devices.transfer import Transfer

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]
Change = Callable[..., Any]

PARITY = frozenset(
    {"prefill_parity", "incremental_decoding", "cache_fill", "left_padded", "golden"}
)
"""The checks that see any other number in a block."""
LOGITS = PARITY - {"cache_fill"}
"""Those that see one behind the blocks."""
RUNNING = PARITY | {"residency", "tied_head"}
"""What runs the model."""
SEEING = (
    "contract",
    "split_and_load",
    "residency",
    "prefill_parity",
    "incremental_decoding",
    "cache_fill",
    "left_padded",
    "tied_head",
    "golden",
)
"""The checks that most mutations are looked at with."""


@dataclass(frozen=True)
class Mutation:
    """One way to break the engine or the release, and what the harness must say to it.

    Attributes:
        name: what is broken.
        breaks: breaks it.
        architecture: where it shows.
        red: the checks that must fail, and no others but those that are unsure.
        message: regular expression in what the cell says.
        cause: beginning of the known cause that explains it; empty where the message says it all.
        status: of the cell: whose fault it is.
        backend: of attention.
        unsure: the checks that may fail or not: small differences may choose another token.
        checks: what the cell runs.
    """

    name: str
    breaks: Break
    architecture: str
    red: frozenset[str]
    message: str
    cause: str
    status: Status = "fail"
    backend: str = "sdpa"
    unsure: frozenset[str] = frozenset({"greedy_generation"})
    checks: tuple[str, ...] = SEEING


def around(owner: Any, name: str, change: Change) -> Break:
    """Have `change(original, *arguments)` run in a function's place."""

    def breaks(patch: Patch) -> None:
        original = getattr(owner, name)

        @wraps(original)  # transformers asks for the names of arguments
        def changed(*args: Any, **kwargs: Any) -> Any:
            return change(original, *args, **kwargs)

        is_static = isinstance(vars(owner).get(name), staticmethod)
        patch.setattr(owner, name, staticmethod(changed) if is_static else changed)

    return breaks


def around_entry(table: Any, name: str, change: Change) -> Break:
    """The same for a function in a table."""

    def breaks(patch: Patch) -> None:
        original = table[name]
        patch.setitem(table, name, lambda *args, **kwargs: change(original, *args, **kwargs))

    return breaks


def when_made(owner: type[nn.Module], change: Change) -> Break:
    """Have every module of a class changed as soon as it is made."""

    def init(original: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        original(module, *args, **kwargs)
        change(module)

    return around(owner, "__init__", init)


def with_values(owner: type[nn.Module], **values: Any) -> Break:
    """Have every module of a class hold other values."""
    return when_made(owner, lambda module: vars(module).update(values))


def built(change: Change) -> Break:
    """Have the engine change every model that it builds."""

    def build(original: Any, *args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        change(model)
        return model

    return around(prepare, "_skeleton", build)


def each_block(change: Change) -> Break:
    """Have it change every block."""
    return built(lambda model: [change(block) for block in text_blocks(model).values()])


def attention_with(**values: Any) -> Break:
    """Have it change attributes of every block's attention."""
    return each_block(lambda block: vars(block.self_attn).update(values))


def called_with(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Break:
    """Have it change the keywords that the base model is called with."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | change(kwargs)

    return built(lambda m: m.base_model.register_forward_pre_hook(hook, with_kwargs=True) and None)


def gives(change: Callable[[Any], Any]) -> Break:
    """Have it change what the model gives."""
    return built(lambda m: m.register_forward_hook(lambda *given: change(given[-1])) and None)


def recipes(change: Callable[[dict[str, Any]], None]) -> Break:
    """Have it change how checkpoint keys become parameters, by the parameters' names."""

    def make(original: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        change({recipe.targets[0]: recipe for recipe in made})
        return made

    return around(prepare, "recipes_for", make)


def exchanged(one: str, other: str) -> Break:
    """Have it take the parameters with one part in their names for those with the other."""

    def change(by_name: dict[str, Any]) -> None:
        for name, recipe in by_name.items():
            if one in name:
                second = by_name[name.replace(one, other)]
                recipe.sources, second.sources = second.sources, recipe.sources

    return recipes(change)


def reading(change: Change) -> Break:
    """Have it read stages by `change(original, transfer, stage, buffer)`."""
    return around(Transfer, "read", change)


def arrives(name: str, change: Callable[[Tensor], Any]) -> Break:
    """Have it change weights in place as soon as they are read, those whose names end so."""

    def read(original: Any, transfer: Transfer, stage: Any, buffer: Tensor) -> None:
        original(transfer, stage, buffer)
        for weight in stage.weights:
            if weight.name.endswith(name):
                values = buffer[weight.offset : weight.offset + weight.nbytes]
                change(values.view(weight.dtype).view(weight.shape))

    return reading(read)


def rows_arrive(name: str, change: Callable[[int, Tensor], Any]) -> Break:
    """Have it change rows in place as soon as they are read, of weights whose names end so."""

    def read(original: Any, transfer: Any, stage: Any, rows: Any) -> None:
        original(transfer, stage, rows)
        for number, buffer in rows:
            for weight in stage.weights:
                if weight.name.endswith(name):
                    values = buffer[weight.offset : weight.offset + weight.nbytes]
                    change(number, values.view(weight.dtype).view(weight.shape))

    return around(CpuTransfer, "_read_rows", read)
