"""Where a streamed model's forward first departs from stock's, asked when a check has failed.

Both models run a left-padded batch and one step with a cache. On the way their blocks are compared:
attributes, weights, buffers, what they are called with, what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from harness.measuring import caches
from harness.measuring.contract import text_blocks
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject
from rabbitllm.streaming.routed import find_routed

SHOWN = 3
"""Findings that are listed; more of a kind say nothing new."""


@dataclass
class Call:
    """One call of a block.

    Attributes:
        block: its name.
        given: what it was called with: positional arguments by their numbers, tensors and cache.
        returned: its result.
    """

    block: str
    given: dict[str, Any]
    returned: Any = None


@dataclass
class Observed:
    """What the blocks of a model did."""

    calls: list[Call] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def diagnose(subject: Subject) -> str:
    """What differs first, in a sentence or a few; nothing if nothing does or can be told."""
    stock, streamed = subject.reference, subject.streamed
    if isinstance(stock, OriginalModel):
        return ""  # its modules are not those of the streamed model
    found: dict[str, str] = {}
    owners: dict[str, str] = {}

    def look(name: str, block: nn.Module) -> None:
        owner, finding = compare_weights(name, block, text_blocks(stock))
        if owner:
            owners.setdefault(name, owner)
        elif finding:
            found.setdefault(name, finding)

    def look_at_rows(name: str, experts: nn.Module, numbers: list[int]) -> None:
        theirs = stock.get_submodule(name)
        if finding := compare_rows(name, experts, theirs, numbers):
            found.setdefault(name, finding)

    due = observe(subject, stock, lambda *_: None)
    with watched_rows(streamed, look_at_rows):
        seen = observe(subject, streamed, look)
    kinds: tuple[Callable[[], list[str]], ...] = (
        lambda: list(other_attributes(streamed, stock)),
        lambda: [*whose(owners, list(text_blocks(stock))), *found.values()],
        lambda: list(other_buffers(streamed, stock)),
        lambda: list(first_departure(seen, due)),
    )
    findings = next((findings for kind in kinds if (findings := kind())), [])
    return "; ".join(findings[:SHOWN])


@torch.no_grad()
def observe(subject: Subject, model: Any, look: Callable[[str, nn.Module], None]) -> Observed:
    """Runs the batch and a step; `look` is called with each block just before it runs."""
    seen, handles = Observed(), []

    def before(name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(name, block)
        seen.calls.append(Call(name, {str(n): a for n, a in enumerate(args)} | kwargs))

    for name, block in text_blocks(model).items():
        handles += [
            block.register_forward_pre_hook(
                lambda block, args, kwargs, name=name: before(name, block, args, kwargs),
                with_kwargs=True,
            ),
            block.register_forward_hook(
                lambda _block, _args, output: vars(seen.calls[-1]).update(returned=output)
            ),
        ]
    ids, mask = subject.padded["input_ids"], subject.padded["attention_mask"]
    cache = DynamicCache(config=model.config)
    pieces = ((ids, mask), (ids[:, -1:], torch.nn.functional.pad(mask, (0, 1), value=1)))
    try:
        for piece, seen_so_far in pieces:
            onto = caches.given(model, cache)
            output = model(piece, attention_mask=seen_so_far, use_cache=True, **onto)
            seen.logits.append(output.logits)
    except Exception:  # whatever it is, the check that failed recorded it
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def other_attributes(streamed: nn.Module, stock: nn.Module) -> Iterator[str]:
    """Yields numbers that a module keeps and that differ from stock's, such as head_dim."""
    theirs = dict(stock.named_modules())
    for name, module in streamed.named_modules():
        for attribute, value in vars(module).items():
            due = vars(theirs[name]).get(attribute) if name in theirs else None
            if isinstance(value, int | float) and isinstance(due, int | float) and value != due:
                yield f"{name}.{attribute} is {value}, stock's is {due}"


def other_buffers(streamed: nn.Module, stock: nn.Module) -> Iterator[str]:
    """Yields buffers that differ from stock's."""
    theirs = dict(stock.named_buffers())
    for name, buffer in streamed.named_buffers():
        due = theirs.get(name)
        if due is not None and not same(buffer, due):
            rounded = same(buffer, due.bfloat16().to(due.dtype))
            yield f"{name} differs from stock's" + (", rounded to bfloat16" if rounded else "")


def compare_weights(name: str, block: nn.Module, stock: dict[str, nn.Module]) -> tuple[str, str]:
    """The block of stock's whose weights this one holds, or what else is wrong with them."""
    routed = tuple(f"{path}." for path in find_routed(block))
    held = dict(block.named_parameters())
    due = {
        key: weight
        for key, weight in stock[name].named_parameters()
        if not (key in held and held[key].is_meta and key.startswith(routed))
    }
    wrong = [key for key in due if key not in held or not same(held[key], due[key])]
    if not wrong:
        return "", ""
    first = held.get(wrong[0])
    if first is None or first.is_meta:
        return "", f"{name} ran without {wrong[0]}"
    for other, module in stock.items():
        theirs = dict(module.named_parameters())
        # Its own values, a moment later, arrived while it ran.
        if other != name and all(key in theirs and same(held[key], theirs[key]) for key in wrong):
            return other, ""
    key, exchanged = wrong[0], exchange(first, due[wrong[0]])
    if exchanged:
        return "", f"{name}.{key} has experts {' and '.join(map(str, exchanged))} exchanged"
    return "", f"{name}.{key} holds other values than stock's"


@contextmanager
def watched_rows(model: Any, look: Callable[[str, nn.Module, list[int]], None]) -> Iterator[None]:
    """Has `look` called while experts that stream run: they hold just rows, by these numbers."""
    handles: list[Any] = []
    for name, routed in find_routed(model).items():
        experts = model.get_submodule(name)
        numbers: list[int] = []

        def note(
            _: nn.Module, args: Any, kwargs: Any, numbers: list[int] = numbers, by: int = routed.by
        ) -> None:
            numbers[:] = torch.unique([*args, *kwargs.values()][by]).tolist()

        def inside(
            *_: Any, name: str = name, experts: nn.Module = experts, numbers: list[int] = numbers
        ) -> None:
            look(name, experts, numbers)

        handles.append(experts.register_forward_pre_hook(note, with_kwargs=True))
        # Between its own hooks a module that streams holds nothing: what it calls sees its rows.
        handles += [part.register_forward_pre_hook(inside) for part in experts.children()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare_rows(name: str, experts: nn.Module, stock: nn.Module, numbers: Sequence[int]) -> str:
    """What is wrong with the rows that experts hold while they run; nothing if they hold all."""
    for key, held in experts.named_parameters():
        due = stock.get_parameter(key)
        if held.is_meta:
            return f"{name} ran without {key}"
        if len(held) == len(due) or len(held) != len(numbers):
            continue
        wrong = [
            number for row, number in zip(held, numbers, strict=True) if not same(row, due[number])
        ]
        if not wrong:
            continue
        rows = dict(zip(numbers, held, strict=True))
        others = {
            other
            for number in wrong
            for other in range(len(due))
            if other != number and same(rows[number], due[other])
        }
        if len(others | set(wrong)) == 2 and others:
            pair = " and ".join(map(str, sorted(others | set(wrong))))
            return f"{name}.{key} has experts {pair} exchanged"
        return f"{name}.{key} holds other values than stock's"
    return ""


def exchange(held: Tensor, due: Tensor) -> list[int]:
    """Which experts of a fused weight [experts, ...] hold one another's values."""
    if due.dim() < 3 or held.shape != due.shape:
        return []
    moved = [index for index in range(len(due)) if not same(held[index], due[index])]
    known = all(any(same(held[i], due[j]) for j in moved) for i in moved)
    return moved if known else []


def whose(owners: dict[str, str], order: list[str]) -> list[str]:
    """In words, which blocks ran with the weights of which."""
    steps = {order.index(owner) - order.index(name) for name, owner in owners.items()}
    if len(owners) > 1 and len(steps) == 1:
        step = steps.pop()
        place = f"{abs(step)} {'behind' if step > 0 else 'before'} it"
        return [f"each of {len(owners)} blocks ran with the weights of the one {place}"]
    mutual = [(a, b) for a, b in owners.items() if a < b and owners.get(b) == a]
    if mutual:
        return [f"{a} and {b} ran with each other's weights" for a, b in mutual]
    return [f"{name} ran with the weights of {owner}" for name, owner in owners.items()]


def first_departure(seen: Observed, due: Observed) -> Iterator[str]:
    """Yields what differs at the first call, or result, that is not stock's."""
    for ours, theirs in zip(seen.calls, due.calls, strict=False):
        lost = [key for key, value in theirs.given.items() if value is not None]
        lost = [key for key in lost if ours.given.get(key) is None]
        if lost:
            yield f"{ours.block} was called without {', '.join(lost)}"
            return
        other = [key for key, value in theirs.given.items() if not alike(ours.given[key], value)]
        if other:
            yield f"{ours.block} was called with other {', '.join(other)} than stock's"
            return
        if shape(ours.returned) != shape(theirs.returned):
            yield f"{ours.block} gave {shape(ours.returned)}, stock's {shape(theirs.returned)}"
            return
        if not alike(ours.returned, theirs.returned):
            yield f"{ours.block} gives another result from the same weights and inputs"
            return
    if len(seen.calls) == len(due.calls) and not alike(tuple(seen.logits), tuple(due.logits)):
        yield "the blocks agree with stock's, what follows them does not"


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two values are the same, as far as they are tensors."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return same(ours, theirs)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return isinstance(ours, Tensor | tuple) == isinstance(theirs, Tensor | tuple)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors hold the same values; not if either has none."""
    if ours.is_meta or theirs.is_meta or ours.shape != theirs.shape:
        return False
    return torch.equal(ours, theirs)


def shape(value: Any) -> str:
    """The shape of a tensor in words, or what the value is instead."""
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
