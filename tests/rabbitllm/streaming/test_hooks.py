from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rabbitllm.streaming.hooks import around


def test_what_is_behind_a_forward_comes_behind_hooks_that_were_registered_later() -> None:
    module, seen = nn.Identity(), []
    around(module, lambda: seen.append("before"), lambda: seen.append("behind"))
    module.register_forward_pre_hook(lambda *_: seen.append("user's before"))
    module.register_forward_hook(lambda *_: seen.append("user's"))
    for _ in range(2):
        module(torch.zeros(1))
        assert seen == ["before", "user's before", "user's", "behind"]
        seen.clear()


def test_it_comes_when_the_forward_fails_too() -> None:
    class Failing(nn.Module):
        def forward(self) -> Any:
            raise ArithmeticError

    module, seen = Failing(), []
    around(module, lambda: seen.append("before"), lambda: seen.append("behind"))
    with pytest.raises(ArithmeticError):
        module()
    assert seen == ["before", "behind"]
