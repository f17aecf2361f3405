from __future__ import annotations

from harness.render.failures import failures
from harness.render.frames import Rows, cells


def test_failures_come_before_known_ones(record):
    known = record(architecture="a", status="xfail", expected="known")
    new = record(architecture="b", status="crash", message="new")
    found = failures(cells([known, new, record(architecture="c")]))
    assert list(found["architectures"]) == ["b", "a"]
    assert list(found["cause"]) == ["new", "known"]
    assert list(found["side"]) == ["rabbitllm", "rabbitllm"]


def test_failures_of_one_cause_share_a_row(record):
    failing = {"status": "crash", "message": "the process died"}
    records = [
        record(architecture=name, release=release, backend=backend, **failing)
        for name in ("qwen2", "llama")
        for release in ("5.0.0", "5.1.0", "5.2.0")
        for backend in ("eager", "sdpa")
    ]
    (row,) = failures(cells(records)).to_dict(orient="records")
    assert row["architectures"] == "llama and qwen2"
    assert row["where"] == "eager and sdpa on cpu"
    assert row["releases"] == "5.0.0 to 5.2.0 (3 releases)"
    assert row["anchor"] in set(cells(records)["anchor"])


def test_what_differs_in_releases_has_rows_of_its_own(record):
    failing = {"status": "crash", "message": "the process died"}
    records = [
        record(architecture="llama", release="5.0.0", **failing),
        record(architecture="qwen2", release="5.1.0", **failing),
    ]
    found = failures(cells(records))
    assert list(found["releases"]) == ["5.0.0", "5.1.0"]


def test_a_status_that_passes_again_is_a_failure_without_a_side(record):
    found = failures(cells([record(status="xpass", message="passes now; remove the entry")]))
    assert found[["cause", "side"]].to_numpy().tolist() == [["passes now; remove the entry", ""]]


def test_a_backend_that_ran_uncompiled_is_called_so(record):
    failing = record(backend="flex_attention", status="crash", message="the process died")
    found = failures(cells([failing], Rows(uncompiled={"flex_attention": ("cpu",)})))
    assert found["where"].item() == "uncompiled flex_attention on cpu"
    assert found["releases"].item() == "5.0.0"


def test_without_failures_the_table_is_empty(record):
    assert failures(cells([record(), record(release="5.1.0", status="not-run")])).empty
