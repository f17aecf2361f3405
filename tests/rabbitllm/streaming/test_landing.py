"""What kernels write to the host's memory and read there, on a device whose memory that is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rabbitllm.streaming import landing
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.page import Page

CPU = torch.device("cpu")


class Device:
    """A device that computes once it is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waited = 0
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self)

    def synchronize(self) -> None:
        self.waited += 1

    def record(self, stream: Device) -> None: ...


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_page_gives_each_output_in_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    device, page = Device(monkeypatch), host_buffer(4096)
    lands = Page(page, page)
    outputs = [torch.randn(1, tokens, 64).to(dtype) for tokens in (1, 3, 2)]
    outputs[1] = outputs[1].transpose(0, 1)  # not in one piece
    outputs[2][0, 0, 0] = float("nan")
    brought = [lands.bring(output) for output in outputs]
    assert device.waited == len(outputs)  # nothing is overwritten before it has been fetched
    for output, there in zip(outputs, brought, strict=True):
        assert (there.dtype, there.shape) == (output.dtype, output.shape)
        bits = [tensor.contiguous().view(torch.uint8) for tensor in (output, there)]
        assert torch.equal(*bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_a_page_takes_each_input_once_it_has_been_written(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    device, page = Device(monkeypatch), host_buffer(4096)
    lands = Page(page, page)
    inputs = [torch.randint(0, 2, (2, tokens, 32)).to(dtype) for tokens in (1, 3, 2)]
    inputs[1] = inputs[1].transpose(0, 1)  # not in one piece
    inputs.append(inputs[0].sum().to(dtype))
    taken = []
    for count, given in enumerate(inputs, 1):
        taken.append(lands.take(given))
        assert device.waited == 2 * count  # for what was there before, and for the kernel
    for given, there in zip(inputs, taken, strict=True):
        assert there.dtype == given.dtype
        assert torch.equal(given, there)


def test_what_is_large_or_no_tensor_or_not_for_a_gpu_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.device] = []

    class Page:
        def bring(self, output: torch.Tensor) -> str:
            return "fetched"

        def take(self, given: torch.Tensor) -> str:
            return "written"

    def page(device: torch.device) -> Any:
        asked.append(device)
        return Page() if device.index == 0 else None

    monkeypatch.setattr(landing, "page_of", page)
    monkeypatch.setattr(landing, "PAGE", 100)
    monkeypatch.setattr(landing, "send_to_device", lambda output, device: "copied")
    lands, gpu, other = Landing(), torch.device("cuda", 0), torch.device("cuda", 1)
    small, large = torch.zeros(25), torch.zeros(26)
    assert [lands.bring(small, gpu), lands.bring(small, gpu)] == ["fetched"] * 2
    assert asked == [gpu]
    for output, device in ((large, gpu), ((small,), gpu), (small[:0], gpu), (small, CPU)):
        assert lands.bring(output, device) == "copied"
    assert lands.bring(small, other) == "copied"
    assert lands.take((small, {"mask": None, "states": small})) == (
        small,
        {"mask": None, "states": small},
    )
    assert [_where(lands, each, gpu) for each in (small, large)] == ["written", "copied"]
    assert _where(lands, small, other) == "copied"


def _where(lands: Landing, given: torch.Tensor, device: torch.device) -> Any:
    """How a tensor that says to be on a device is taken."""
    there = SimpleNamespace(nbytes=given.nbytes, device=device, to=lambda _: "copied")
    return lands._take(there)  # type: ignore[arg-type]
