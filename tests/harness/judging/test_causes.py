from __future__ import annotations

import pytest
import torch

from harness.judging.causes import explanation, load_causes
from harness.records.failure import describe
from harness.tables import TableError


def test_the_14_against_64_error_is_explained():
    lost, cosine = torch.zeros(1, 3, 64, 14), torch.zeros(1, 1, 3, 64)
    with pytest.raises(RuntimeError) as raised:
        lost * cosine
    failure = describe(raised.value)
    assert "batch dimension was lost" in explanation(failure.exception, failure.message)
    assert failure.message.startswith("The size of tensor a (14)")


def test_what_is_not_known_is_not_explained():
    assert explanation("KeyError", "nothing known") == ""


def test_what_a_diagnosis_says_comes_before_what_a_message_suggests():
    suggests = "tensors are missing from the checkpoint: lm_head.weight"
    diagnosed = f"{suggests}\nDiagnosis: a ran with the weights of b."
    assert explanation("E", suggests).startswith("The checkpoint holds no head")
    assert explanation("E", diagnosed).startswith("A layer computes with another layer's weights")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "patterns = ['(']\nsentence = 'It is so.'",
            r"toml:1, cause 1: patterns: '\('",
        ),
        (
            "patterns = ['x']\nsentence = 'so'",
            r"toml:1, cause 1: sentence: 'so' is none",
        ),
        ("sentence = 'It is so.'", r"known_causes.toml:1, cause 1: missing 'patterns'"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_its_line(tmp_path, row, message):
    (tmp_path / "known_causes.toml").write_text(f"[[cause]]\n{row}\n")
    with pytest.raises(TableError, match=message):
        load_causes(tmp_path)
