from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rabbitllm import BudgetError
from rabbitllm.streaming.buffers import HUGE_PAGE, host_buffer, pinned_buffer, views
from rabbitllm.streaming.weights import ALIGNMENT, Stage, Weight


@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 4096, 1_000_003])
def test_host_buffers_have_the_size_asked_for_and_are_aligned(nbytes: int) -> None:
    buffers = [host_buffer(nbytes) for _ in range(16)]
    for n, buffer in enumerate(buffers):
        assert (buffer.dtype, buffer.shape) == (torch.uint8, (nbytes,))
        assert buffer.data_ptr() % ALIGNMENT == 0 or nbytes == 0
        buffer.fill_(n)
    assert all((buffer == n).all() for n, buffer in enumerate(buffers))


def test_memory_that_may_not_be_locked_is_a_budget_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refusing)
    with pytest.raises(BudgetError, match=r"4,096 bytes \(error 2\)\. Lower host_memory"):
        pinned_buffer(4096, ExitStack())


def test_locked_memory_is_all_of_its_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[tuple[int, int]] = []

    def lock(start: int, nbytes: int, _: int) -> int:
        locked.append((start, nbytes))
        return 0

    runtime = SimpleNamespace(cudaHostRegister=lock, cudaHostUnregister=lambda _: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    with ExitStack() as unlocking:
        buffers = [pinned_buffer(nbytes, unlocking) for nbytes in (4, 4096, 1 << 22, 5_000_003)]
    # torch looks at the first byte of the storage, not of the tensor.
    assert [(each.untyped_storage().data_ptr(), len(each)) for each in buffers] == locked
    assert all(start % HUGE_PAGE == 0 for start, _ in locked)


def test_alignment_suits_the_widest_vector_instructions() -> None:
    assert ALIGNMENT % 64 == 0


@pytest.mark.parametrize("inference", [False, True])
def test_weights_are_views_of_their_places(inference: bool) -> None:
    float32, half = torch.randn(3, 5), torch.randn(7).half()
    stage = Stage(
        "stage",
        (nn.Identity(),),
        (
            Weight("a", (), torch.float32, float32.shape, 0),
            Weight("b", (), torch.float16, half.shape, ALIGNMENT),
            Weight("c", (), torch.int8, torch.Size((2,)), 2 * ALIGNMENT, kind="_buffers"),
        ),
    )
    buffer = host_buffer(stage.nbytes)
    buffer[2 * ALIGNMENT :] = 7
    with torch.inference_mode(inference):
        a, b, c = views(stage, buffer)
    buffer[: float32.nbytes] = float32.flatten().view(torch.uint8)
    buffer[ALIGNMENT : ALIGNMENT + half.nbytes] = half.view(torch.uint8)
    assert torch.equal(a, float32)
    assert torch.equal(b, half)
    assert isinstance(a, nn.Parameter)
    assert type(c) is torch.Tensor
    assert c.tolist() == [7, 7]
    assert not a.requires_grad
    assert not a.is_inference()
