from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from rabbitllm.utils.platform import is_flash_attention_available


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with flash-attn and a GPU, as far as each is asked for."""

    def make(
        installed: bool = True,
        cuda: bool = True,
        capability: tuple[int, int] = (9, 0),
        call: Callable[..., None] | None = lambda q, k, v: None,
    ) -> None:
        def version(name: str) -> str:
            if name == "flash-attn" and not installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return "2.8.0"

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU at {device}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *s, dtype, device: zeros(*s, dtype=dtype))
        module = ModuleType("flash_attn")
        if call is not None:
            module.flash_attn_func = call  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", module)

    return make


def test_it_is_available_with_package_gpu_and_a_call_that_works(
    machine: Callable[..., None],
) -> None:
    called = []
    machine(call=lambda *tensors: called.append([t.shape for t in tensors]))
    assert is_flash_attention_available() == (True, "GPU at cuda")
    assert is_flash_attention_available("cuda:1") == (True, "GPU at cuda:1")
    assert called[0] == [torch.Size((1, 2, 1, 64))] * 3


def test_the_lowest_capability_will_do(machine: Callable[..., None]) -> None:
    machine(capability=(8, 0))
    assert is_flash_attention_available()[0]


def failing(*_: object) -> None:
    raise RuntimeError("no kernel image is available\nCUDA kernel errors might be ...")


@pytest.mark.parametrize(
    ("device", "lacks", "reason"),
    [
        (None, {"installed": False}, "the flash-attn package is not installed"),
        (None, {"cuda": False}, "no CUDA device"),
        ("cpu", {}, "the model runs on cpu, not on CUDA"),
        (None, {"capability": (7, 5)}, "GPU at cuda has compute capability 7.5, below 8.0"),
        (
            None,
            {"call": failing},
            "flash-attn does not work here: RuntimeError: no kernel image is available",
        ),
    ],
)
def test_the_reason_says_what_is_missing(
    machine: Callable[..., None], device: str | None, lacks: dict[str, object], reason: str
) -> None:
    machine(**lacks)
    assert is_flash_attention_available(device) == (False, reason)


def test_a_package_that_does_not_import_is_unavailable(machine: Callable[..., None]) -> None:
    machine(call=None)
    available, reason = is_flash_attention_available()
    assert not available
    assert reason.startswith("flash-attn does not work here: ImportError: cannot import name")
