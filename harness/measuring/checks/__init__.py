"""The checks, in order: one module each, whose docstring's first line is its message."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from harness.records import Status

if TYPE_CHECKING:
    from harness.measuring.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        status: pass, degraded, fail, unsupported, not-run, or one of those of stock.
        figures: what it measured.
        message: what exactly is wrong, after the check's own sentence.
    """

    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    message: str = ""


Check = Callable[["Subject"], Outcome]


def load(name: str) -> tuple[Check, str]:
    """A check and the sentence that it fails with."""
    module = importlib.import_module(f"{__name__}.{name}")
    sentence = (module.__doc__ or "").strip().splitlines()[0]
    return cast(Check, module.run), sentence


def verdict(good: bool, figures: dict[str, Any], message: str) -> Outcome:
    """A pass, or a failure with this message."""
    return Outcome("pass", figures) if good else Outcome("fail", figures, message)
