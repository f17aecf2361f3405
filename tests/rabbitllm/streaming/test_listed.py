from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rabbitllm.streaming.blocks import find_blocks
from rabbitllm.streaming.listed import find_listed
from tests.rabbitllm.streaming.listed_code import ListedConfig, ListedForCausalLM


def block(*experts: nn.Module, router: nn.Module | None = None, **others: nn.Module) -> Any:
    made = nn.Module()
    made.mlp = nn.Module()
    made.mlp.gate = router or nn.Linear(5, len(experts), bias=False)
    made.mlp.experts = nn.ModuleList(experts)
    for name, module in others.items():
        made.mlp.add_module(name, module)
    return made


def linears(count: int) -> list[nn.Module]:
    return [nn.Linear(5, 6) for _ in range(count)]


def test_lists_are_found_in_blocks_by_modules_alike_and_a_router() -> None:
    found = find_listed({"layers.3": block(*linears(8))})
    assert found == {"layers.3.mlp.experts": [f"layers.3.mlp.experts.{n}" for n in range(8)]}
    columns = nn.Module()
    columns.weight = nn.Parameter(torch.zeros(5, 8))
    assert find_listed({"0": block(*linears(8), router=columns)})
    named = nn.ModuleDict({"zero": nn.Linear(5, 6), "one": nn.Linear(5, 6), "drop": nn.Dropout()})
    found = find_listed({"0": block(nn.Linear(4, 4), router=nn.Linear(5, 2), named=named)})
    assert found == {"0.mlp.named": ["0.mlp.named.zero", "0.mlp.named.one"]}


def test_other_lists_are_none() -> None:
    def found(*modules: nn.Module, router: nn.Module | None = None) -> object:
        return find_listed({"0": block(*modules, router=router)})

    assert not found(*linears(8), router=nn.Linear(5, 7))
    assert not found(*linears(7), nn.Linear(5, 7))
    assert not found(*linears(7), nn.Linear(5, 6, bias=False))
    assert not found(*(nn.LayerNorm(5) for _ in range(8)))
    assert not found(*(nn.BatchNorm1d(5) for _ in range(8)))
    assert not found(*(nn.ReLU() for _ in range(8)))
    assert not found(*linears(3), router=nn.Conv2d(1, 5, 3))
    assert not found(*linears(3), router=nn.LayerNorm(3))
    assert not find_listed({"0": nn.Linear(8, 8)})


def test_blocks_of_other_peoples_code_are_what_must_not_be_split() -> None:
    model = ListedForCausalLM(ListedConfig())
    assert list(find_blocks(model)) == [f"layers.{n}" for n in range(3)]
    assert list(find_listed(find_blocks(model))) == [f"layers.{n}.mlp.experts" for n in range(3)]
    model._no_split_modules = None
    assert not find_blocks(model)
