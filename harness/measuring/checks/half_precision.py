"""In half precision stock computes norms or positions in it, which belong in float32.

The golden checkpoint is loaded as bfloat16. What each norm and each rotary embedding gives is
compared with what the same module gives in float32 of the same input: only what comes out, and what
is multiplied with the weights, may be rounded.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.measuring.checkpoints import load_reference
from harness.measuring.checks import Outcome
from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.values import read_values
from harness.measuring.subject import Subject, reference_side

KINDS = ("Norm", "RotaryEmbedding")
"""Parts of the names of their classes."""
UNIT = torch.finfo(torch.bfloat16).eps
LARGEST = 0.36
"""Root mean square of the differences, in `UNIT`s.

0.32 is the largest of all rows, where a norm rounds twice.
"""
SMALLEST = 1e-3
"""Values below it are not divided by."""


def run(subject: Subject) -> Outcome:
    """Reads the golden text, and compares module for module."""
    name = subject.cell.architecture.id
    if name not in architectures():
        return Outcome("not-run", message=f"{name} has no golden checkpoint")
    values = read_values(name)
    folder = subject.published(values.sha256).folder
    row = replace(subject.cell.architecture, dtype="bfloat16")
    with reference_side():
        model = load_reference(replace(subject.cell, architecture=row), folder, subject.device)
        off = rounding(model, torch.tensor([values.text], device=subject.device))
    module, most = max(off.items(), key=lambda item: item[1])
    figures = {"modules": len(off), "largest": most}
    if most <= LARGEST:
        return Outcome("pass", figures)
    return Outcome("stock-wrong", figures, f"{module} is off by {most:.2g} units of bfloat16")


@torch.no_grad()
def rounding(model: Any, ids: Tensor) -> dict[str, float]:
    """How far each norm and rotary embedding is from itself in float32, in `UNIT`s."""
    off: dict[str, float] = {}

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch.no_grad():
            exact = twins[name](*map(exactly, args), **{k: exactly(v) for k, v in kwargs.items()})
        pairs = [(output, exact)] if isinstance(output, Tensor) else zip(output, exact, strict=True)
        off[name] = max(off.get(name, 0.0), *(distance(*pair) for pair in pairs), 0.0)

    chosen = {
        name: module
        for name, module in model.named_modules()
        if any(kind in type(module).__name__ for kind in KINDS)
    }
    twins = {name: copy.deepcopy(module).float() for name, module in chosen.items()}
    for name, module in chosen.items():
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: after(
                name, module, args, kwargs, output
            ),
            with_kwargs=True,
        )
    model(ids, use_cache=False)
    return off


def exactly(value: Any) -> Any:
    """A tensor of halves in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def distance(found: Tensor, exact: Tensor) -> float:
    """The root mean square of the relative differences, in `UNIT`s; NaN counts as endless."""
    if exact.is_complex():
        found, exact = torch.view_as_real(found), torch.view_as_real(exact)
    relative = (found.float() - exact) / exact.abs().clamp(min=SMALLEST)
    far = float(relative.square().mean().sqrt()) / UNIT
    return far if far == far else float("inf")
