from __future__ import annotations

import signal

import transformers

from harness.running.cell import Ended
from harness.upstream import run
from harness.upstream.rules import Apart, Refused, Rules

PASSES = """
def test_passes(self):
    model = self.model()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        first, second = model(ids).logits, model(ids).logits
    self.assertTrue(torch.equal(first, second))
    self.assertIsInstance(model, self.all_model_classes[0])
"""
REFUSED = """
def test_is_refused(self):
    self.model().to(torch.float16)
"""
BROKEN = """
def test_fails_where_layers_stream(self):
    self.assertTrue(all(not weight.is_meta for weight in self.model().parameters()))
"""
SUBTEST = """
def test_fails_in_a_subtest(self):
    with self.subTest("first"):
        self.assertEqual(1, 2)
"""
SKIPS = """
def test_skips(self):
    self.skipTest("because")
"""
IDLE = """
def test_runs_no_model(self):
    self.assertEqual(len(self.all_model_classes), 1)
"""
SAVES = """
def test_saves_and_loads(self):
    model = self.model()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(self).kind_of(self).from_pretrained(folder, attn_implementation="eager")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        self.assertTrue(torch.allclose(model(ids).logits, again(ids).logits, atol=1e-5))

def kind_of(self):
    return self.all_model_classes[0]
"""
STREAMS = """
def test_every_layer_streams(self):
    model = self.model()
    model(torch.tensor([[5, 6, 7]]))
    resident = [name for name in model.streaming_plan.resident() if "layers" in name]
    self.assertEqual(resident, [])
"""
STAYS = "RuntimeError: A streamed model stays on"


def found(folder, budget, **rules):
    result = run.run(folder, "llama", budget, Rules(models=("llama",), **rules))
    assert not any(test.outcome == "ended" for test in result.named), result.named
    return result


def outcomes(result):
    return {outcome: count for outcome, count in result.counts.items() if count}


def test_each_test_has_an_outcome(source):
    listed = PASSES.replace("test_passes", "test_is_listed")
    other = REFUSED.replace("test_is_refused", "test_is_listed_for_another_failure")
    apart = SKIPS.replace("test_skips", "test_is_apart")
    folder = source(
        PASSES, SAVES, STREAMS, REFUSED, other, listed, BROKEN, SUBTEST, SKIPS, IDLE, apart
    )
    refused = (
        Refused(("test_is_refused", "test_is_listed"), STAYS, "by design"),
        Refused(("test_is_listed_for_*",), "KeyError: ", "another"),
    )
    result = found(folder, "min", refused=refused, apart=(Apart(("*apart",), "says nothing"),))
    named = {test.name.partition("::")[2]: test for test in result.named}
    assert {name: test.outcome for name, test in named.items()} == {
        "test_is_refused": "refused",
        "test_is_listed": "unexpected",
        "test_is_listed_for_another_failure": "failed",
        "test_fails_where_layers_stream": "failed",
        "test_fails_in_a_subtest": "stock-fails",
    }
    assert named["test_is_listed_for_another_failure"].failure.startswith(STAYS)
    assert named["test_is_refused"].explained == "by design"
    assert outcomes(result) == {
        "passed": 3, "failed": 2, "refused": 1, "unexpected": 1, "stock-fails": 1,
        "skipped": 1, "idle": 1,
    }  # fmt: skip
    assert (result.apart, result.source, result.release) == (1, "5.0.0", transformers.__version__)


def test_at_the_other_budget_some_layers_stay_in_memory(source):
    refused = (Refused(("*layer_streams",), "Lists differ: ['model.layers", "stays"),)
    half = found(source(PASSES, SAVES, STREAMS), "half", refused=refused)
    assert outcomes(half) == {"passed": 2, "refused": 1}


def test_a_process_that_ends_before_its_tests_is_a_failure(monkeypatch, source):
    ended = Ended(None, -signal.SIGSEGV, 1.0, 1.0, "Fatal Python error")
    monkeypatch.setattr(run, "isolated", lambda *_: ended)
    result = run.run(source(PASSES), "llama", "min", Rules(models=("llama",)))
    assert outcomes(result) == {"ended": 1}
    assert "SIGSEGV" in result.named[0].failure
