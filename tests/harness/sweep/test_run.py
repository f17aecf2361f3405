from __future__ import annotations

import signal

import pytest

from harness.running.cell import Ended
from harness.sweep import results, run
from harness.sweep.results import Result
from harness.sweep.rules import Known, Rules
from harness.sweep.run import causal_types
from harness.tables import TableError

EQUAL = {"outcome": "bit-equal", "blocks": 4, "streamed": 4, "model_class": "LlamaForCausalLM"}


def ends(monkeypatch, value, exit_code=0, stderr=""):
    monkeypatch.setattr(run, "isolated", lambda *_: Ended(value, exit_code, 1.0, 1.0, stderr))


def test_a_result_says_what_where_and_with_what(monkeypatch):
    ends(monkeypatch, EQUAL)
    (result,) = run.sweep(["llama"], Rules(), jobs=1)
    assert (result.model_type, result.outcome, result.streamed) == ("llama", "bit-equal", 4)
    assert result.release == result.versions["transformers"]
    assert len(result.engine_hash) == 16
    assert result.time.endswith("Z")


def test_results_come_in_the_order_of_the_types(monkeypatch):
    ends(monkeypatch, EQUAL)
    names = ["mixtral", "llama", "bloom", "gptj"]
    assert [found.model_type for found in run.sweep(names, Rules(), jobs=3)] == names


@pytest.mark.parametrize("value", [None, EQUAL])
def test_a_process_that_dies_fails_even_after_an_answer(monkeypatch, value):
    stderr = 'Fatal Python error\n  File "a.py", line 3 in forward\n'
    ends(monkeypatch, value, -signal.SIGSEGV, stderr)
    result = run.run("llama", Rules())
    assert (result.outcome, result.exception) == ("fails", "SIGSEGV")
    assert result.fingerprint
    assert "in forward" in result.traceback


def test_a_process_that_hangs_fails(monkeypatch):
    ends(monkeypatch, None, None)
    assert run.run("llama", Rules(), time_limit=1).exception == "Timeout"


def test_a_failure_is_explained_by_type_and_pattern(monkeypatch):
    rules = Rules(known=(Known(("llama",), "RuntimeError: no slot", "too deep"),))
    failure = {"outcome": "fails", "exception": "RuntimeError", "message": "no slot is free"}
    ends(monkeypatch, failure)
    assert run.run("llama", rules).explained == "too deep"
    assert run.run("bloom", rules).explained == ""
    ends(monkeypatch, failure | {"message": "another"})
    assert run.run("llama", rules).explained == ""


def test_types_are_those_with_a_causal_model():
    assert {"llama", "bloom", "hrm_text", "jamba"} <= set(causal_types())
    assert causal_types(["mixtral", "bloom"]) == ["bloom", "mixtral"]
    with pytest.raises(ValueError, match=r"Unknown model type 'lama'. Available: .*bloom"):
        causal_types(["lama"])


def made(model_type, outcome="bit-equal", **found):
    return Result(model_type=model_type, release="5.0.0", outcome=outcome, **found)


def test_results_replace_those_of_their_types_and_keep_others(tmp_path):
    path = results.path_of(tmp_path / "sweep", "5.0.0")
    first = [made("llama", "fails", message="why"), made("bloom")]
    results.put(path, first)
    results.put(path, [made("llama")])
    found = {result.model_type: result.outcome for result in results.read(path)}
    assert found == {"bloom": "bit-equal", "llama": "bit-equal"}


@pytest.mark.parametrize("line", ["{", "[]", '{"model_type": "llama"}', '{"outcome": "fine"}'])
def test_a_damaged_result_is_named_and_nothing_is_lost(tmp_path, line):
    path = results.path_of(tmp_path, "5.0.0")
    results.put(path, [made("llama")])
    path.write_text(path.read_text() + line + "\n")
    before = path.read_text()
    with pytest.raises(TableError, match=r"5\.0\.0\.jsonl:2"):
        results.put(path, [made("bloom")])
    assert path.read_text() == before
