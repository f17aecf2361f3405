from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.records import CheckResult
from harness.records.merge import write
from harness.upgrading.bisection import BISECTED

REFUSED = (
    "does not support an attention implementation through "
    "torch.nn.functional.scaled_dot_product_attention"
)


@pytest.fixture
def results(cell_record, tmp_path):
    """Return a folder in which gemma2 with sdpa fails from 5.22.2 on, and later in the bisected."""

    def record(release, **changes):
        return cell_record(architecture="gemma2", release=release, **changes)

    failed = {
        "status": "reference-broken",
        "exception": "ValueError",
        "message": REFUSED,
        "explanation": "It refuses.",
        "fingerprint": "abcdefabcdef",
        "traceback": "Traceback (most recent call last):\n  File",
        "probes": {"cache_keyword": "cache"},
        "checks": {},
    }
    write([record("5.20.2"), record("5.22.2", **failed)], tmp_path)
    write([record("5.21.0", **failed)], tmp_path / BISECTED)
    return tmp_path


def test_a_failure_is_explained_in_full(results, capsys):
    assert main(["explain", "gemma2/sdpa", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "gemma2@5.22.2/sdpa/cpu: reference-broken",
        "Known cause: It refuses.",
        "Expected: Gemma 2 softcaps",
        "Fingerprint: abcdefabcdef",
        "stock's cache_keyword: cache",
        "Traceback (most recent call last):",
        "tox -e matrix -- --releases 5.22.2 --arch gemma2 --attn sdpa --device cpu --force",
        "matrix/expected_failures.toml: gemma2/sdpa on",
        "Last good release on record: 5.20.2; first bad: 5.21.0.",
    ):
        assert expected in printed


def test_a_pass_shows_its_figures(results, capsys):
    assert main(["explain", "gemma2@5.20.2/sdpa/cpu", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "prefill_parity" in printed
    assert "max_abs=0" in printed
    assert "Last good" not in printed


def test_a_failure_without_a_good_release_says_so(cell_record, tmp_path, capsys):
    failed = {"prefill_parity": CheckResult("fail", message="boom")}
    write([cell_record(status="fail", message="boom", checks=failed)], tmp_path)
    assert main(["explain", "llama/sdpa", "--results", str(tmp_path)]) == 0
    assert "No older release on record is good." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gemma3/sdpa", "gemma2@5.21.0/sdpa/cpu", "gemma2"])
def test_an_unknown_cell_is_an_error_of_one_line(name, results, capsys):
    assert main(["explain", name, "--results", str(results)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
