from __future__ import annotations

import pytest

from harness.judging.cell_name import CellName, again, find, parse_cell


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen2@5.24.0/sdpa/cuda", ("qwen2", "5.24.0", "sdpa", "cuda")),
        ("deepseek_v2-grouped/eager", ("deepseek_v2-grouped", "", "eager", "cpu")),
        (" llama@5.0.0rc1/sdpa ", ("llama", "5.0.0rc1", "sdpa", "cpu")),
    ],
)
def test_names_are_read(text, expected):
    assert parse_cell(text) == CellName(*expected)


@pytest.mark.parametrize("text", ["qwen2", "", "a/b/gpu", "a@/sdpa", "a b/sdpa", "a@1/sdpa/cpu/x"])
def test_what_is_no_name_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"such as qwen2@5\.24\.0/sdpa/cpu"):
        parse_cell(text)


def test_a_name_without_release_finds_all_of_them(cell_record):
    records = [cell_record(release=release) for release in ("5.0.0", "5.1.0")]
    assert find(parse_cell("llama/sdpa"), records, "here") == records
    assert find(parse_cell("llama@5.1.0/sdpa"), records, "here") == records[1:]


def test_a_name_that_has_no_record_gets_near_ones(cell_record):
    with pytest.raises(
        ValueError, match=r"here has no record of lama/sdpa/cpu\. Near: llama/sdpa/cpu"
    ):
        find(parse_cell("lama/sdpa"), [cell_record()], "here")
    with pytest.raises(ValueError, match=r"Near: llama@5\.0\.0/sdpa/cpu.*--releases 5\.1\.0 "):
        find(parse_cell("llama@5.1.0/sdpa"), [cell_record()], "here")


def test_the_line_to_run_names_the_cell():
    assert again("qwen3_moe@5.0.0/sdpa/cuda") == (
        "tox -e matrix -- --releases 5.0.0 --arch qwen3_moe --attn sdpa --device cuda --force"
    )
