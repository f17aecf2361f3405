from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.upstream import run
from harness.upstream.results import Result, Test, counted, path_of, read


def made(model, budget, *tests):
    return Result(
        model=model,
        budget=budget,
        release="5.0.0",
        source="5.0.0",
        counts=counted(tests),
        named=tuple(test for test in tests if test.outcome != "passed"),
    )


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Give a function that runs the command, with tests that stand in for those of each model."""
    folder = tmp_path / "source"
    for model in ("llama", "phi3"):
        (folder / "tests" / "models" / model).mkdir(parents=True)
    tests = {}

    def stand_in(place, models, budgets, *_):
        assert place == folder
        for model in models:
            for budget in budgets:
                yield made(model, budget, *tests.get(model, [Test(name="a", outcome="passed")]))

    monkeypatch.setattr(run, "run_all", stand_in)

    def call(*arguments, **chosen):
        tests.update(chosen)
        return main(["upstream", "--source", str(folder), "--reports", str(tmp_path), *arguments])

    return call


def test_results_are_recorded_and_rendered(command, tmp_path, capsys):
    assert command("--models", "llama,phi3") == 0
    assert "2 models in 0 s: 4 passed" in capsys.readouterr().out
    assert len(read(path_of(tmp_path / "upstream", "5.0.0"))) == 4
    assert "| all | half | 2 | 0 | 0 |" in (tmp_path / "upstream.md").read_text()


@pytest.mark.parametrize("outcome", ["failed", "unexpected", "ended"])
def test_what_is_not_as_expected_makes_the_status_1(command, capsys, outcome):
    test = Test(name="Some::test_a", outcome=outcome, failure="TypeError: no")
    assert command("--models", "llama", "--budgets", "min", llama=[test]) == 1
    line = f"NOT AS EXPECTED  llama at min, Some::test_a: {outcome} TypeError: no\n"
    assert capsys.readouterr().out.endswith(line)


@pytest.mark.parametrize("outcome", ["refused", "stock-fails", "skipped", "idle"])
def test_what_is_expected_makes_the_status_0(command, outcome):
    assert command("--models", "llama", llama=[Test(name="A::test_a", outcome=outcome)]) == 0


def test_the_report_alone_is_rendered_from_the_results(command, tmp_path, capsys):
    assert command("--render") == 2
    assert "tox -e upstream" in capsys.readouterr().err
    command("--models", "llama")
    (tmp_path / "upstream.md").unlink()
    assert command("--render") == 0
    assert (tmp_path / "upstream.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "lama"], "Unknown model 'lama'. Available: llama, phi3"),
        (["--models", "llama", "--budgets", "max"], "Unknown budget 'max'. Available: min, half"),
        (["--source", "/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_command_is_an_error_with_the_alternatives(command, capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err
