from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.stock_experts import StockExperts, has_interface


def test_experts_are_stocks_as_long_as_nothing_is_added(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> None:
    model = stock(checkpoint("qwen3_moe"), experts_implementation="grouped_mm")
    block = model.get_submodule("model.layers.0.mlp")
    experts = block.experts
    assert isinstance(experts, nn.Module)
    assert has_interface(experts)
    assert not has_interface(block)
    is_stock = StockExperts(experts)
    assert not is_stock()  # these weights do not stream
    for parameter in experts.parameters():
        marked(parameter)
    assert is_stock()
    hook = experts.act_fn.register_forward_hook(lambda *_: None)
    assert not is_stock()
    hook.remove()
    assert is_stock()
    experts.register_buffer("more", torch.zeros(1))
    assert not is_stock()
    del experts.more
    model.set_experts_implementation("batched_mm")
    assert not is_stock()
