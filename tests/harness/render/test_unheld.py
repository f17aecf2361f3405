from __future__ import annotations

import pytest

from harness.records import CheckResult
from harness.render.failures import failures
from harness.render.frames import Rows, cells

ROWS = Rows(backends=("eager", "sdpa", "flash_attention_2"))


@pytest.fixture
def on_cuda(record):
    """Cells of one architecture and release, by backend and what became of the golden check."""

    def make(**golden):
        return [
            record(
                backend=backend,
                device="cuda",
                status="pass" if status in ("pass", "not-run") else status,
                checks={"golden": CheckResult(status)},
                dtype="bfloat16" if status == "not-run" else "float32",
                expected="" if status in ("pass", "not-run") else "It has no cache.",
            )
            for backend, status in golden.items()
        ]

    return make


def test_what_agrees_with_a_wrong_stock_alone_does_not_pass(on_cuda, record):
    wrong = on_cuda(eager="stock-wrong", sdpa="stock-wrong", flash_attention_2="not-run")
    frame = cells([*wrong, record(device="cuda", release="5.1.0")], ROWS)
    assert list(frame["status"]) == ["stock-wrong", "stock-wrong", "pass", "stock-wrong"]
    assert frame["message"].iloc[-1] == (
        "Agrees with stock, which is not held to golden values in bfloat16; "
        "with eager it is, and that fails."
    )
    (row,) = failures(frame).to_dict(orient="records")
    assert row["where"] == "eager, sdpa and flash_attention_2 on cuda"
    assert row["cause"] == "It has no cache."


def test_nor_does_it_where_stock_cannot_load_what_is_published(on_cuda):
    wrong = on_cuda(eager="reference-broken", sdpa="reference-broken", flash_attention_2="not-run")
    assert list(cells(wrong, ROWS)["status"]) == ["reference-broken"] * 3


@pytest.mark.parametrize(
    ("eager", "sdpa"), [("pass", "stock-wrong"), ("pass", "pass"), ("not-run", "not-run")]
)
def test_it_passes_where_another_backend_is_right_or_none_is_known_to_be_wrong(
    eager, sdpa, on_cuda
):
    frame = cells(on_cuda(eager=eager, sdpa=sdpa, flash_attention_2="not-run"), ROWS)
    assert list(frame["status"]) == ["pass", sdpa.replace("not-run", "pass"), "pass"]


def test_a_record_from_before_there_were_golden_values_may_be_right(on_cuda, record):
    old = record(backend="sdpa", device="cuda")
    frame = cells([*on_cuda(eager="stock-wrong", flash_attention_2="not-run"), old], ROWS)
    assert list(frame["status"]) == ["stock-wrong", "pass", "pass"]


def test_another_device_and_release_say_nothing(on_cuda, record):
    others = [record(device="cpu"), record(device="cuda", release="5.1.0")]
    frame = cells([*on_cuda(eager="stock-changed"), *others], ROWS)
    assert sorted(frame["status"]) == ["pass", "pass", "stock-changed"]
