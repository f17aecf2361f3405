"""Behind a fork both processes answer, or the child says why not. Neither waits for a thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from rabbitllm import AutoModel, StreamedModel
from rabbitllm.streaming.devices import CpuTransfer, CudaTransfer
from tests.patience import PATIENCE

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    # What this warns of, a child that waits for a lock, is what is tested here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

GREEDY = {"max_new_tokens": 6, "do_sample": False}
RIGHT, WRONG = 0, 1


def wait_for(child: int) -> int:
    """The exit code of a forked process; below zero where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end(right: bool) -> None:
    """Leaves a forked process, without a word to pytest."""
    os._exit(RIGHT if right else WRONG)


def in_child(check: Callable[[], bool]) -> int:
    """Forks a process that leaves with what `check` says."""
    if child := os.fork():
        return wait_for(child)
    right = False
    try:
        signal.alarm(PATIENCE)
        right = check()
    finally:
        end(right)
    raise AssertionError("this process has ended")


def answers(model: Any, prompt: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(model.generate(prompt, **GREEDY), expected)


@pytest.fixture
def expected(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> torch.Tensor:
    output: Any = streamed(checkpoint()).generate(prompt, **GREEDY)
    return output


@pytest.mark.parametrize("options", [{}, {"host_memory": "auto"}, {"prefetching": False}], ids=str)
def test_both_processes_answer(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
    options: dict[str, Any],
) -> None:
    model = streamed(checkpoint(), **options)
    for _ in range(3):
        assert in_child(lambda: answers(model, prompt, expected)) == RIGHT
        assert answers(model, prompt, expected)


def test_what_is_encoded_is_read_behind_a_fork(
    build: Callable[..., Any],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    build("llama", torch.bfloat16, hidden_size=256, intermediate_size=512).save_pretrained(tmp_path)
    model = streamed(tmp_path, compression="lossless", layer_shards_saving_path=tmp_path / "stores")
    expected: Any = model.generate(prompt, **GREEDY)
    assert in_child(lambda: answers(model, prompt, expected)) == RIGHT


def test_a_child_of_a_child_answers(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    model = streamed(checkpoint())

    def grandchild() -> bool:
        return in_child(lambda: answers(model, prompt, expected)) == RIGHT

    assert in_child(lambda: grandchild() and answers(model, prompt, expected)) == RIGHT


def test_a_fork_while_another_thread_generates(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    model, done = streamed(checkpoint()), threading.Event()

    def keep_busy() -> None:
        torch.set_num_threads(1)
        while not done.is_set():
            model(prompt)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        codes = [in_child(lambda: answers(model, prompt, expected)) for _ in range(10)]
    finally:
        done.set()
        thread.join(PATIENCE)
    assert codes == [RIGHT] * 10
    assert answers(model, prompt, expected)


@pytest.mark.parametrize("layer", range(4))
def test_a_forward_in_which_the_fork_falls_is_finished_by_both(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    layer: int,
) -> None:
    model = streamed(checkpoint())
    expected = [model(prompt).logits, model(prompt[:, :4]).logits]
    children: list[int] = []
    model.model.layers[layer].mlp.register_forward_hook(
        lambda *_: None if children else children.append(os.fork())
    )
    right = False
    try:
        right = all(
            torch.equal(model(ids).logits, logits)
            for ids, logits in zip((prompt, prompt[:, :4]), expected, strict=True)
        )
    finally:
        if children == [0]:
            end(right)
    assert right
    assert wait_for(children[0]) == RIGHT


def test_a_block_called_by_itself_behind_a_fork(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    head: Any = streamed(checkpoint()).lm_head
    hidden = torch.randn(1, 3, head.in_features)
    expected = head(hidden)
    assert in_child(lambda: torch.equal(head(hidden), expected)) == RIGHT


SCRIPT = """
import os, sys, torch
from rabbitllm import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], device="cpu", host_memory="min")
torch.set_num_threads(2)
ids = torch.arange(3, 103)[None]
torch.randn(999, 999) @ torch.randn(999, 999)  # now torch has two threads
expected = model(ids).logits
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
torch.testing.assert_close(model(ids).logits, expected)
"""


def test_torchs_threads_are_done_without(checkpoint: Callable[..., Path]) -> None:
    """They stay with the parent; stock's model waits for them for ever."""
    arguments = [sys.executable, "-c", SCRIPT, str(checkpoint())]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Start it by 'spawn', and load the model there, to have 2." in ended.stderr


class Numbers(Dataset[int]):
    """A data set that happens to know a model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


def test_workers_that_inherit_a_model_end(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    model = streamed(checkpoint())
    loader = DataLoader(
        Numbers(model), num_workers=2, multiprocessing_context="fork", timeout=PATIENCE
    )
    assert [int(batch) for batch in loader] == list(range(8))
    process = multiprocessing.get_context("fork").Process(target=len, args=([model],))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert answers(model, prompt, expected)


def test_a_model_can_be_deleted_and_loaded_in_a_child(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    held = [streamed(checkpoint())]

    def again() -> bool:
        held.clear()
        own = AutoModel.from_pretrained(checkpoint(), device="cpu", host_memory="min")
        return answers(own, prompt, expected)

    assert in_child(again) == RIGHT
    assert answers(held[0], prompt, expected)


def test_what_does_not_survive_a_fork_is_not_freed_by_the_child(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CpuTransfer, "survives_fork", False)
    held = [streamed(checkpoint())]
    pipeline = weakref.ref(held[0]._pipeline)

    def kept() -> bool:
        held.clear()
        return pipeline() is not None

    assert in_child(kept) == RIGHT
    assert answers(held[0], prompt, expected)
    held.clear()
    assert pipeline() is None


def test_on_cuda_a_child_names_the_way_out() -> None:
    transfer = CudaTransfer.__new__(CudaTransfer)
    transfer.device = torch.device("cuda:0")
    with pytest.raises(RuntimeError, match=r"model is on cuda:0, .* by 'spawn'"):
        transfer.take_over()
