"""A cell's models are let go with it: processes measure many cells."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import transformers

from harness.measuring import cell as measuring
from harness.measuring.subject import Subject


@pytest.mark.parametrize("check", ["padded_row", "golden", "batch_order"])
def test_nothing_of_a_cell_is_kept(cell, tmp_path, monkeypatch, check):
    made: list[weakref.ref[Subject]] = []

    class Seen(Subject):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            made.append(weakref.ref(self))

    monkeypatch.setattr(measuring, "Subject", Seen)
    found = cell(release=transformers.__version__)
    found = replace(found, architecture=replace(found.architecture, checks=(check,)), dealt=())
    assert measuring.measure(found, tmp_path).status == "pass"
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None
