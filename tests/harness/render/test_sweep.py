from __future__ import annotations

import pytest

from harness.render.sweep import known, render
from harness.sweep.results import Result


def made(model_type, release="5.10.0", outcome="bit-equal", **found):
    return Result(model_type=model_type, release=release, outcome=outcome, **found)


def failed(model_type, outcome, message, exception):
    return made(model_type, outcome=outcome, message=message, exception=exception)


RESULTS = [
    made("llama", "5.9.0", streamed=4),
    made("bloom", streamed=2, embedding_streams=True, head_streams=True),
    made("llama", streamed=4, embedding_streams=True),
    failed("blt", "reference-broken", "no layers", "AttributeError"),
    failed("big", "not-buildable", "has 9 parameters", "SweepError"),
    failed("jamba", "fails", "a | b\n<b>", "RuntimeError"),
]


@pytest.fixture
def page(tmp_path):
    return render(RESULTS, tmp_path).read_text("utf-8")


def test_outcomes_are_counted_by_release_the_newest_first(page):
    lines = [line for line in page.splitlines() if line.startswith("| 5.")]
    assert lines == ["| 5.10.0 | 5 | 2 | 0 | 1 | 1 | 1 |", "| 5.9.0 | 1 | 1 | 0 | 0 | 0 | 0 |"]


def test_what_is_not_bit_equal_has_its_reason_the_worst_first(page):
    lines = [line for line in page.splitlines() if line.startswith(("| jamba", "| bl", "| big"))]
    assert lines == [
        "| jamba | fails | RuntimeError: a \\| b |",
        "| blt | reference-broken | AttributeError: no layers |",
        "| big | not-buildable | has 9 parameters |",
    ]


def test_what_is_bit_equal_is_listed_for_the_newest_release(page):
    assert "2 types, 6 streamed blocks: bloom, llama." in page


def test_embeddings_and_heads_that_stream_are_counted(page):
    assert "The embedding streams in 2 of them, and the head in 1.\n" in page
    assert "composite" not in page


def test_composite_types_are_listed(tmp_path):
    whole = made("llama4", written_by="Whole", model_class="TextPart")
    text = made("llama", written_by="Llama", model_class="Llama")
    page = render([whole, text], tmp_path).read_text("utf-8")
    assert "the text part is read: llama4.\n" in page


def test_a_page_without_anything_to_explain(tmp_path):
    assert "\nNone.\n" in render(RESULTS[:1], tmp_path).read_text("utf-8")


def test_the_page_of_the_matrix_gets_the_newest_release_with_reasons():
    found = known(RESULTS)
    assert found["release"] == "5.10.0"
    assert found["types"]["bloom"] == ["bit-equal", ""]
    assert found["types"]["jamba"] == ["fails", "RuntimeError: a | b"]
    assert known([]) == {}
