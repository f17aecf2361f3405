from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.sweep import run
from harness.sweep.results import Result, path_of, read

RAISED = {"message": "m", "exception": "RuntimeError"}


def made(model_type, outcome, **found):
    return Result(model_type=model_type, release="5.0.0", outcome=outcome, **found)


@pytest.fixture
def outcomes(monkeypatch):
    """Give types an outcome instead of sweeping them; by default they are bit-equal."""
    chosen = {}

    def stand_in(types, *_):
        for name in types:
            yield chosen.get(name, made(name, "bit-equal", streamed=4))

    monkeypatch.setattr(run, "sweep", stand_in)
    return chosen


def test_a_sweep_is_recorded_and_rendered(outcomes, tmp_path, capsys):
    assert main(["sweep", "--types", "llama,bloom", "--reports", str(tmp_path)]) == 0
    assert "2 types in 0 s: 2 bit-equal" in capsys.readouterr().out
    assert len(read(path_of(tmp_path / "sweep", "5.0.0"))) == 2
    assert "2 types, 8 streamed blocks: bloom, llama." in (tmp_path / "sweep.md").read_text()


def test_a_failure_is_printed_last_and_makes_the_status_1(outcomes, tmp_path, capsys):
    outcomes["bloom"] = made("bloom", "fails", **RAISED, fingerprint="f1")
    outcomes["llama"] = made("llama", "not-buildable", message="too large")
    assert main(["sweep", "--types", "llama,bloom", "--reports", str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("NOT AS EXPECTED  bloom: fails RuntimeError m (f1)\n")


def test_a_failure_that_is_explained_is_as_expected(outcomes, tmp_path):
    outcomes["rwkv"] = made("rwkv", "fails", **RAISED, explained="because")
    assert main(["sweep", "--types", "rwkv", "--reports", str(tmp_path)]) == 0
    assert "| rwkv | fails | because |" in (tmp_path / "sweep.md").read_text()


def test_a_known_failure_that_does_not_fail_is_not_as_expected(outcomes, tmp_path, capsys):
    assert main(["sweep", "--types", "rwkv", "--reports", str(tmp_path)]) == 1
    assert "rwkv: bit-equal: matrix/sweep.toml lists it" in capsys.readouterr().out


def test_the_report_alone_is_rendered_from_the_results(outcomes, tmp_path, capsys):
    assert main(["sweep", "--render", "--reports", str(tmp_path)]) == 2
    assert "tox -e sweep" in capsys.readouterr().err
    main(["sweep", "--types", "llama", "--reports", str(tmp_path)])
    (tmp_path / "sweep.md").unlink()
    assert main(["sweep", "--render", "--reports", str(tmp_path)]) == 0
    assert (tmp_path / "sweep.md").exists()


def test_an_unknown_type_is_an_error_with_the_alternatives(tmp_path, capsys):
    assert main(["sweep", "--types", "lama", "--reports", str(tmp_path)]) == 2
    assert "Unknown model type 'lama'. Available: " in capsys.readouterr().err
