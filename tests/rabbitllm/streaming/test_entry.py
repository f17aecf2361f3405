from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import torch
from torch import nn

from rabbitllm.streaming.entry import Forward, run_by


def noted(calls: list[Any]) -> Any:
    def run(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append((args, kwargs))
        return forward(*args, **kwargs)

    return run


def test_the_call_comes_through_as_it_was_made() -> None:
    module, calls, hidden = nn.Linear(3, 2), [], torch.randn(1, 3)
    expected = module(hidden)
    run_by(module, noted(calls))
    assert torch.equal(module(hidden), expected)
    assert torch.equal(module(input=hidden), expected)
    assert calls == [((hidden,), {}), ((), {"input": hidden})]
    assert list(inspect.signature(module.forward).parameters) == ["input"]


def test_a_forward_that_was_replaced_before_is_the_one_that_runs() -> None:
    module, calls = nn.Linear(3, 2), []
    module.forward = lambda hidden: hidden + 1
    run_by(module, noted(calls))
    assert module(torch.zeros(1)).item() == 1
    assert len(calls) == 1


def test_the_module_goes_with_its_last_holder() -> None:
    module = nn.Linear(3, 2)
    run_by(module, noted([]))
    alive = weakref.ref(module)
    gc.disable()
    try:
        del module
        assert alive() is None
    finally:
        gc.enable()
