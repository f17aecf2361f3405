from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rabbitllm.releases import checkup
from rabbitllm.releases.checkup import Checkup, LostError, ask
from rabbitllm.releases.environments import Environment, UnavailableError

RELEASES = [f"5.{minor}.{patch}" for minor in range(4) for patch in range(2)]


def answered(digest="a", tokens=(1,), **errors):
    return {
        "errors": errors,
        "versions": {"torch": "2.13.0"},
        "weights": {"missing": [], "mismatched": []},
        "backend": "sdpa",
        "input": [1],
        "watched": [[0]],
        "logits": {"digest": digest, "largest": 1.0, "values": [[ord(digest) / 100]]},
        "tokens": list(tokens),
        "cached": 0.0,
        "backends": {"sdpa": 0.0},
    }


@pytest.fixture
def check(monkeypatch):
    """Return a checkup whose releases answer as `answers` has it, else well."""
    answers, asked = {}, []

    class Stub:
        def make(self, release):
            if answers.get(release) == "unavailable":
                raise UnavailableError("needs a newer Python")
            return Environment(release, Path("/none") / release, "2026-01-01")

    def reply(question, variables, python, timeout):
        release = python.parts[2]
        asked.append((release, question["input"], question["watched"]))
        return answers.get(release) or answered()

    monkeypatch.setattr(checkup, "ask", reply)
    question = {"dtype": "float32", "weights": False, "folder": ""}
    made = Checkup(question, Stub(), {"dtype": "float32"}, None, lambda row: None)
    made.answers, made.asked = answers, asked
    return made


def test_the_first_good_release_gives_what_is_right(check):
    check.answers["5.0.0"] = answered(model="ValueError: no")
    assert [check.measure(r).status for r in ("5.0.0", "5.0.1", "5.1.0")] == ["bad", "good", "good"]
    assert check.golden.release == "5.0.1"
    assert [asked[1:] for asked in check.asked] == [(None, None), (None, None), ([1], [[0]])]


def test_checks_that_break_together_are_one_break_and_others_are_their_own(check):
    for release in RELEASES[3:]:
        check.answers[release] = answered("z", (2,))
    for release in RELEASES[6:]:
        check.answers[release] = {**answered("z", (2,)), "cached": 1.0}
    for release in (RELEASES[0], RELEASES[-1]):
        check.measure(release)
    found = [(b.checks, b.good, b.bad, b.skipped) for b in check.breaks(RELEASES)]
    assert found == [
        (("logits", "tokens"), "5.1.0", "5.1.1", ()),
        (("cached",), "5.2.1", "5.3.0", ()),
    ]
    assert len(check.asked) == len({release for release, *_ in check.asked})


def test_a_release_that_cannot_be_installed_is_passed_over(check):
    check.answers |= dict.fromkeys(RELEASES[3:5], "unavailable")
    for release in RELEASES[5:]:
        check.answers[release] = answered("z")
    for release in (RELEASES[0], RELEASES[-1]):
        check.measure(release)
    (found,) = check.breaks(RELEASES)
    assert (found.good, found.bad, found.skipped) == ("5.1.0", "5.2.1", ("5.1.1", "5.2.0"))
    assert check.rows["5.2.0"].status == "not-run"
    assert check.rows["5.2.0"].reason == "needs a newer Python"


def test_what_comes_back_and_breaks_again_is_two_breaks(check):
    for release in ("5.1.0", "5.3.0"):
        check.answers[release] = answered("z")
    for release in ("5.0.0", "5.1.0", "5.2.0", "5.3.0"):
        check.measure(release)
    assert [(b.good, b.bad) for b in check.breaks(RELEASES)] == [
        ("5.0.1", "5.1.0"),
        ("5.2.1", "5.3.0"),
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('gone')", "The process ended with status 1. gone"),
        ("import os; os.kill(os.getpid(), 11)", "The process ended with status -11."),
    ],
)
def test_a_process_that_dies_is_a_failure_to_load(monkeypatch, tmp_path, code, said):
    script = tmp_path / "probe.py"
    script.write_text(code)
    monkeypatch.setattr(checkup.probe, "__file__", str(script))
    answer = ask({}, dict(os.environ), Path(sys.executable), 60)
    assert answer["errors"]["model"] == said
    results = {r.check: r.status for r in checkup.judge(answer, None, "float32")}
    assert results["load"] == "fail"
    assert "pass" not in results.values()


@pytest.mark.parametrize(
    ("code", "timeout", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", 60, "want of memory: try --shrink"),
        ("import time; time.sleep(60)", 0.2, "longer than 0 s"),
    ],
)
def test_a_process_that_was_killed_tells_nothing(monkeypatch, tmp_path, code, timeout, said):
    script = tmp_path / "probe.py"
    script.write_text(code)
    monkeypatch.setattr(checkup.probe, "__file__", str(script))
    with pytest.raises(LostError, match=said):
        ask({}, dict(os.environ), Path(sys.executable), timeout)


def test_a_release_whose_process_tells_nothing_is_no_bad_one(check, monkeypatch):
    def lost(*_):
        raise LostError("killed")

    monkeypatch.setattr(checkup, "ask", lost)
    row = check.measure("5.0.0")
    assert (row.status, row.reason) == ("not-run", "killed")


def test_tiny_weights_of_another_release_are_refused(check, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("one")
    check.question |= {"folder": str(tmp_path), "weights": True}
    check.measure("5.0.0")
    assert len(check.golden.recipe["made"]) == 16
    check.question["weights"] = True
    (tmp_path / "model.safetensors").write_text("other")
    with pytest.raises(ValueError, match="begin with that release"):
        check.measure("5.0.1")


def test_a_process_of_its_own_answers(sharp):
    question = {"folder": str(sharp), "trust": False, "dtype": "float32", "backends": []}
    rest = {"input": None, "watched": None, "weights": False}
    answer = ask({**question, **rest}, dict(os.environ), Path(sys.executable), 60)
    assert "trust_remote_code" in answer["errors"]["model"]
    assert len(answer["ids"]) == 3
