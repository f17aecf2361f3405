from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import pytest

from harness.matrix import Gguf
from harness.running import cell as cells
from harness.running.cell import cause_of_death, run
from harness.running.isolation import Ended, isolated
from tests.patience import PATIENCE


@dataclass(frozen=True)
class Answer:
    text: str
    pid: int


def die_at_the_end() -> Answer:
    from multiprocessing.util import Finalize

    Finalize(None, os.kill, args=(os.getpid(), signal.SIGABRT), exitpriority=1)
    return Answer("done", 0)


def test_a_crash_after_the_last_check_is_no_pass(monkeypatch, cell, tmp_path):
    ended = isolated(die_at_the_end, (), PATIENCE)
    assert ended.value is not None
    assert ended.exit_code == -signal.SIGABRT
    assert cause_of_death(ended, PATIENCE) == (
        "crash",
        "SIGABRT",
        "the process died of SIGABRT after its last check",
    )
    passed = replace(ended, value={"status": "pass"})
    monkeypatch.setattr(cells, "isolated", lambda *_: passed)
    assert run(cell(), tmp_path).status == "crash"


def outcomes(monkeypatch, *values: dict[str, str]):
    """Make the runs of a cell end like this, one after the other."""
    left = [Ended(value, 0, 0.1, 0.1, "") for value in values]
    monkeypatch.setattr(cells, "isolated", lambda *_: left.pop(0))
    return left


FAIL = {"status": "fail", "message": "RuntimeError: m", "fingerprint": "aa"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"status": "fine"}, "its answer: status: Unknown value 'fine'"),
        ({"status": "xfail"}, "it holds a judgement"),
        ({"status": "pass", "colour": 1}, "its answer: Unknown key 'colour'"),
        ({"status": "pass", "checks": 1}, "its answer: checks: expected"),
        ({"status": "pass", "release": "4.0.0"}, "its answer is of llama@4.0.0/sdpa/cpu"),
    ],
)
def test_an_answer_that_is_no_record_is_a_crash(monkeypatch, cell, tmp_path, value, reason):
    outcomes(monkeypatch, value, value)
    record = run(cell(), tmp_path)
    assert record.status == "crash"
    assert record.message.startswith("the process ended with exit code 0 and what is no result (")
    assert reason in record.message
    assert record.cell == cell().id


def test_a_signal_without_a_name_is_a_crash():
    ended = Ended(None, -40, 0.1, 0.0, "")
    assert cause_of_death(ended, PATIENCE) == (
        "crash",
        "signal 40",
        "the process died of signal 40",
    )


def test_a_pass_runs_once(monkeypatch, cell, tmp_path):
    left = outcomes(monkeypatch, {"status": "pass"}, {"status": "pass"})
    assert run(cell(), tmp_path).status == "pass"
    assert len(left) == 1


@pytest.mark.parametrize("status", ["reference-broken", "stock-wrong", "stock-changed"])
def test_what_is_about_stock_alone_runs_once(monkeypatch, cell, tmp_path, status):
    left = outcomes(monkeypatch, {"status": status}, {"status": "pass"})
    assert run(cell(), tmp_path).status == status
    assert len(left) == 1


def test_a_failure_that_repeats_is_a_failure(monkeypatch, cell, tmp_path):
    outcomes(monkeypatch, FAIL, FAIL)
    assert run(cell(), tmp_path).status == "fail"


@pytest.mark.parametrize("second", [{"status": "pass"}, FAIL | {"fingerprint": "bb"}])
def test_a_failure_that_does_not_repeat_is_flaky(monkeypatch, cell, tmp_path, second):
    outcomes(monkeypatch, FAIL, second)
    record = run(cell(), tmp_path)
    assert record.status == "flaky"
    assert "RuntimeError: m" in record.message


def test_a_known_cause_is_explained(monkeypatch, cell, tmp_path):
    sizes = "The size of tensor a (14) must match the size of tensor b (64)"
    message = f"{sizes} at non-singleton dimension 3"
    outcomes(monkeypatch, *[FAIL | {"message": message, "exception": "RuntimeError"}] * 2)
    assert "batch dimension was lost" in run(cell(), tmp_path).explanation


def test_a_backend_without_its_device_is_not_run(monkeypatch, cell, tmp_path):
    outcomes(monkeypatch)
    record = run(cell(backend="flash_attention_2"), tmp_path)
    assert record.status == "not-run"
    assert record.message == "flash_attention_2 needs a cuda device"


def test_a_backend_that_cannot_run_an_architecture_is_unsupported(monkeypatch, cell, tmp_path):
    outcomes(monkeypatch)
    record = run(cell("baichuan-13b", "flash_attention_2"), tmp_path)
    assert record.status == "unsupported"
    assert "on eager and sdpa only" in record.message


def test_a_real_model_without_its_package_is_not_run(monkeypatch, cell, tmp_path):
    outcomes(monkeypatch)
    found = cell()
    row = replace(found.architecture, gguf=Gguf("no-such-distribution", "x.gguf"))
    record = run(replace(found, architecture=row), tmp_path)
    assert record.status == "not-run"
    assert "no-such-distribution" in record.message


def test_a_record_says_with_what_it_was_measured(monkeypatch, cell, tmp_path):
    outcomes(monkeypatch, {"status": "pass"})
    record = run(cell(), tmp_path)
    assert record.key == ("llama", "sdpa", "cpu")
    assert record.versions["torch"]
    assert record.hardware.startswith("cpu ")
    assert len(record.engine_hash) == len(record.check_hash) == 16
    assert record.time.endswith("Z")
