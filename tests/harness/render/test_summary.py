from __future__ import annotations

from dataclasses import replace

from harness.render.frames import Rows, cells
from harness.render.summary import listed, row_caption, row_summary, sentences

ROWS = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def said(records):
    """The sentences, without the last of each device, which is on weights."""
    return [(words, others[:-1]) for words, others in sentences(cells(records, ROWS))]


def test_how_many_cells_are_of_tiny_models_is_said_of_each_device(record):
    rows = replace(ROWS, real=("smollm2",))
    records = [record(), record(backend="eager"), record(architecture="smollm2")]
    records += [record(device="cuda"), record(architecture="b", status="unsupported")]
    on_cpu, on_cuda = (others[-1] for _, others in sentences(cells(records, rows)))
    assert on_cpu == (
        "2 of the 3 cells that ran are of tiny models with random weights, 1 of smollm2, as"
        " published."
    )
    assert on_cuda == "1 of the 1 cells that ran are of tiny models with random weights."


def test_families_work_and_one_needs_another_backend(three_releases):
    assert said(three_releases) == [
        (
            "On cpu, all 3 families work on transformers 5.0.0 to 5.23.0 (3 releases),"
            " with eager and sdpa.",
            ["gemma2 needs eager on 5.23.0 (known failure)."],
        )
    ]


def test_a_family_that_no_backend_runs_does_not_work(record):
    releases = ("5.0.0", "5.1.0", "5.2.0")
    records = [record(release=release) for release in releases]
    records += [
        record(
            architecture="chatglm2",
            family="ChatGLM",
            release=release,
            status="pass" if release == "5.2.0" else "fail",
        )
        for release in releases
    ]
    ((sentence, exceptions),) = said(records)
    assert sentence == (
        "On cpu, all 2 families work on transformers 5.2.0, the newest measured,"
        " and 1 on every release from 5.0.0 (3 releases), with sdpa."
    )
    assert exceptions == ["chatglm2 does not work up to 5.1.0 (fail)."]


def test_what_broke_on_the_newest_release_is_not_counted_as_working(record):
    records = [record(release="5.0.0"), record(release="5.1.0", status="crash")]
    ((sentence, exceptions),) = said(records)
    assert sentence.startswith("On cpu, 0 of 1 families work on transformers 5.1.0")
    assert exceptions == ["llama does not work on 5.1.0 (crash)."]


def test_architectures_with_one_fate_share_a_sentence(record):
    records = [record(architecture=name, status="fail") for name in ("a", "b")]
    ((_, exceptions),) = said([*records, record(architecture="c")])
    assert exceptions == ["a and b do not work on any release measured (fail)."]


def test_cells_that_were_not_measured_are_counted(three_releases):
    ((_, exceptions),) = said(three_releases[1:])
    assert "1 of 18 cells were not measured." in exceptions


def test_not_run_is_never_a_pass(record):
    assert said([record(status="not-run", checks={})]) == [("On cpu nothing ran.", [])]


def test_a_row_in_words():
    axis = ["5.0.0", "5.1.0", "5.2.0"]
    assert row_summary(["pass"] * 3, axis) == "pass on all"
    assert (
        row_summary(["pass", "xfail", "xfail"], axis) == "pass on 5.0.0; known failure from 5.1.0"
    )
    assert row_summary(["no-data", "pass", "pass"], axis) == "no data on 5.0.0; pass from 5.1.0"


def test_each_status_of_a_row_has_its_own_glyph():
    axis = ["5.0.0", "5.1.0", "5.2.0"]
    assert row_caption(["pass"] * 3, axis) == "✓ pass on all"
    assert row_caption(["reference-broken"] * 2 + ["pass"], axis) == (
        "△ stock fails up to 5.1.0; ✓ pass on 5.2.0"
    )
    assert row_caption(["no-data", "stock-wrong", "pass"], axis) == (
        "no data on 5.0.0; ≠ stock wrong on 5.1.0; ✓ pass on 5.2.0"
    )


def test_a_need_is_said_once_with_its_reasons(record):
    statuses = {"5.0.0": "stock-wrong", "5.1.0": "stock-wrong", "5.2.0": "reference-broken"}
    records = [record(release=release, status=status) for release, status in statuses.items()]
    records += [record(release=release, backend="eager") for release in statuses]
    assert said(records)[0][1] == [
        "llama needs eager on every release measured"
        " (stock wrong up to 5.1.0, stock fails on 5.2.0)."
    ]


def test_lists_in_words():
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_a_backend_that_cannot_run_an_architecture_is_no_failure_but_is_said(record):
    records = [record(backend=backend) for backend in ("eager", "sdpa")]
    records += [
        record(architecture="qwen2", backend="eager"),
        record(architecture="qwen2", backend="sdpa", status="unsupported", checks={}),
    ]
    assert said(records) == [
        (
            "On cpu, all 1 families work on transformers 5.0.0, with eager and sdpa.",
            ["qwen2 needs eager on every release measured (unsupported)."],
        )
    ]


def test_a_family_without_a_result_on_the_newest_release_is_not_counted(record):
    records = [record(release=release) for release in ("5.0.0", "5.1.0")]
    records.append(record(architecture="qwen", family="QWen v1", release="5.0.0"))
    ((sentence, exceptions),) = said(records)
    assert sentence == (
        "On cpu, 1 of 2 families work on transformers 5.1.0, the newest measured,"
        " and 1 on every release from 5.0.0 (2 releases), with sdpa."
    )
    assert exceptions == ["1 of 4 cells were not measured."]
