"""Engine and release are broken on purpose: the checks go red that must, and say whose fault."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness.judging.causes import explanation, load_causes
from harness.measuring.cell import Measurement, measure
from harness.records import FAILED
from rabbitllm.streaming.devices import CudaTransfer
from tests.harness.measuring.mutations.arguments import ARGUMENTS, ARGUMENTS_OF_STOCK
from tests.harness.measuring.mutations.breaking import SEEING
from tests.harness.measuring.mutations.calls import CALLS
from tests.harness.measuring.mutations.dimensions import DIMENSIONS
from tests.harness.measuring.mutations.outside import OUTSIDE
from tests.harness.measuring.mutations.residency import RESIDENCY
from tests.harness.measuring.mutations.rules import RULES
from tests.harness.measuring.mutations.stocks import STOCKS
from tests.harness.measuring.mutations.weights import WEIGHTS

RELEASES = STOCKS + RULES + ARGUMENTS_OF_STOCK
ENGINES = WEIGHTS + OUTSIDE + RESIDENCY + CALLS + DIMENSIONS + ARGUMENTS
MUTATIONS = {mutation.name: mutation for mutation in ENGINES}


def red(found: Measurement) -> set[str]:
    return {name for name, result in found.checks.items() if result.status in FAILED}


@pytest.fixture(scope="session")
def sound(cell, tmp_path_factory):
    """Measure a cell as it is, once; gives the folder of its checkpoints, too."""
    made: dict[Any, tuple[Measurement, Path]] = {}

    def measured(key: tuple[str, str], checks: tuple[str, ...]) -> tuple[Measurement, Path]:
        if (key, checks) not in made:
            folder = tmp_path_factory.mktemp("sound")
            made[key, checks] = measure(small(cell(*key), checks), folder), folder
        return made[key, checks]

    return measured


def small(cell: Any, checks: tuple[str, ...] = SEEING) -> Any:
    """Return the cell with these checks and no further ones."""
    row = replace(cell.architecture, checks=checks)
    backend = replace(cell.backend, checks={})
    release = transformers.__version__
    return replace(cell, release=release, architecture=row, backend=backend, dealt=())


@pytest.mark.parametrize("mutation", ENGINES + RELEASES, ids=lambda mutation: mutation.name)
def test_what_is_broken_is_seen_and_named(mutation, sound, cell, tmp_path, monkeypatch):
    key = mutation.architecture, mutation.backend
    before, folder = sound(key, mutation.checks)
    assert (before.status, before.message) == ("pass", "")
    # The checkpoints are the sound ones; what a broken engine stores is its own.
    shutil.copytree(folder, tmp_path, ignore=shutil.ignore_patterns("stores"), dirs_exist_ok=True)
    mutation.breaks(monkeypatch)
    found = measure(small(cell(*key), mutation.checks), tmp_path)
    assert found.status == mutation.status, found.message
    assert mutation.red <= red(found) <= mutation.red | mutation.unsure
    assert re.search(mutation.message, found.message), found.message
    sentence = explanation(found.exception, found.message)
    assert sentence.startswith(mutation.cause)
    assert bool(sentence) is bool(mutation.cause)


def test_there_are_many_and_each_has_a_name_and_a_cause_that_is_known():
    assert len(ENGINES) >= 40
    assert len(RELEASES) >= 16
    for group in (ENGINES, RELEASES):
        assert len({mutation.name for mutation in group}) == len(group)
    starts = {mutation.cause for mutation in ENGINES + RELEASES}
    assert all(any(cause.sentence.startswith(start) for cause in load_causes()) for start in starts)


def test_a_cause_has_one_fingerprint_wherever_it_shows(cell, tmp_path, monkeypatch):
    MUTATIONS["layers swapped"].breaks(monkeypatch)
    prefill = ("split_and_load", "prefill_parity")
    swapped = [
        measure(small(cell(architecture, backend), prefill), tmp_path).fingerprint
        for architecture, backend in (("llama", "eager"), ("mistral", "sdpa"))
    ]
    assert swapped[0] == swapped[1] != ""
    monkeypatch.undo()
    MUTATIONS["stage not read"].breaks(monkeypatch)
    assert measure(small(cell("llama"), prefill), tmp_path).fingerprint not in (swapped[0], "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_missing_wait_on_the_copy_event_is_seen(cell, tmp_path, monkeypatch):
    copy = CudaTransfer._copy

    def late(self: CudaTransfer, *args: Any) -> None:
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(20_000_000)  # copies of tiny layers are too quick to be missed
        copy(self, *args)

    def wait(self: CudaTransfer, slot: Any) -> None:
        slot.load.arrival.result()

    monkeypatch.setattr(CudaTransfer, "_copy", late)
    here = replace(small(cell("llama")), device="cuda")
    before = measure(here, tmp_path)
    assert (before.status, before.message) == ("pass", "")
    monkeypatch.setattr(CudaTransfer, "wait", wait)
    found = measure(here, tmp_path)
    assert "prefill_parity" in red(found)
    assert "arrived" in explanation(found.exception, found.message), found.message
