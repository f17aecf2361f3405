from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.matrix import CHECKS, DEALT, MATRIX, ROOT, load_matrix
from harness.measuring.references import REFERENCES
from harness.render.frames import load_rows

ISSUE = {
    "llama2", "llama", "llama3.2", "llama-tied", "qwen2", "qwen2.5-yarn", "qwen3", "qwen3_moe",
    "mistral", "mixtral", "internlm", "internlm2", "internlm3", "baichuan-7b", "baichuan2-7b",
    "baichuan-13b", "baichuan2-13b", "gemma2", "gemma3", "gemma3-multimodal", "deepseek_v2",
    "deepseek_v3", "phi", "phi3", "phi3-longrope", "phi4", "phi4-mini", "qwen", "chatglm2",
    "chatglm2-32k", "chatglm3", "smollm2-135m",
}  # fmt: skip


def test_the_matrix_holds_what_it_promises():
    matrix = load_matrix()
    assert {row.id for row in matrix.architectures} >= ISSUE
    assert {row.id for row in matrix.backends} >= {
        "eager", "sdpa", "flex_attention", "flash_attention_2",
    }  # fmt: skip
    for row in matrix.architectures:
        assert [row.gguf is not None, bool(row.reference), bool(row.config)].count(True) == 1
        text = row.config.get("text_config", row.config)
        assert not text or text["num_hidden_layers"] >= 4, row.id


def test_a_row_without_a_stock_class_has_a_reference_and_a_tolerance():
    rows = [row for row in load_matrix().architectures if row.reference or row.tolerance]
    assert {row.reference for row in rows} == REFERENCES.keys()
    for row in rows:
        assert 0 < row.tolerance < 1e-4
        assert row.original_cache


def test_a_backend_that_cannot_run_an_architecture_is_told(cell):
    assert cell("baichuan-13b", "sdpa").unsupported == ""
    why = cell("baichuan-13b", "flex_attention").unsupported
    assert why.startswith("baichuan-13b runs on eager and sdpa only: ALiBi")


def test_a_backend_may_add_a_check(cell):
    more, none = cell("llama", "flex_attention"), cell("llama2", "flex_attention")
    assert more.checks == (*CHECKS, *more.dealt, "compiled")
    assert none.checks == (*CHECKS, *none.dealt)


def test_every_row_and_every_backend_meets_every_check_that_is_dealt(monkeypatch):
    dealt = ("one", "two", "three")
    monkeypatch.setattr("harness.matrix.DEALT", dealt)
    every = [cell for cell in load_matrix().cells(["5.0.0"]) if not cell.architecture.checks]
    cells = [cell for cell in every if not cell.architecture.asked]
    of = {cell.key[:2]: cell.dealt for cell in cells}
    assert of["llama", "sdpa"] == dealt
    assert {len(names) for (_, backend), names in of.items() if backend != "sdpa"} == {1}
    for name in ("eager", "flex_attention", "flash_attention_2"):
        assert {of[cell.architecture.id, name][0] for cell in cells} == set(dealt)
    few = replace(load_matrix().architectures[0], backends=("eager",))
    assert replace(load_matrix(), architectures=(few,)).cells(["5.0.0"])[0].dealt == dealt


def test_a_cell_runs_what_it_is_dealt_after_what_all_run(cell):
    assert replace(cell("llama2", "eager"), dealt=("one",)).checks == (*CHECKS, "one")
    own = cell("smollm2-135m")
    assert own.checks == own.architecture.checks + own.architecture.dealt
    assert own.checks[-1] == "speed"
    other = cell("smollm2-135m", "eager")
    assert other.checks[:-1] == own.architecture.checks
    assert other.checks[-1] in own.architecture.dealt


def test_qwen2_has_the_geometry_of_14_heads_of_64():
    row = next(row for row in load_matrix().architectures if row.id == "qwen2")
    assert (row.config["hidden_size"], row.config["num_attention_heads"]) == (896, 14)


def test_a_selection_keeps_the_order_of_the_matrix():
    cells = load_matrix().cells(["5.0.0"], ["qwen2", "llama"], ["sdpa", "eager"])
    assert [cell.id for cell in cells] == [
        "llama@5.0.0/eager/cpu",
        "llama@5.0.0/sdpa/cpu",
        "qwen2@5.0.0/eager/cpu",
        "qwen2@5.0.0/sdpa/cpu",
    ]


def test_all_rows_and_releases_unless_selected():
    matrix = load_matrix()
    cells = matrix.cells()
    assert len({cell.id for cell in cells}) == len(cells)
    assert len(cells) == len(matrix.architectures) * len(matrix.releases) * len(matrix.backends)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"Unknown architecture 'lama'. Available: llama2, llama, llama3.2"
    ):
        load_matrix().cells(architectures=["lama"])
    with pytest.raises(
        ValueError, match=r"Unknown attention backend 'spda'. Available: eager, sdpa"
    ):
        load_matrix().cells(backends=["spda"])


def test_a_backend_may_override_the_dtype(cell):
    assert cell(backend="flash_attention_2").dtype == "bfloat16"
    assert cell(backend="sdpa").dtype == "float32"


def test_planning_needs_no_torch():
    code = (
        "import sys; import harness.__main__, harness.matrix, harness.running.run;"
        "import harness.judging.expected_failures, harness.commands.run;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_matrix_is_where_the_checkout_has_it():
    assert MATRIX == ROOT / "matrix"


def test_every_architecture_has_checkpoints_that_are_like_it_and_no_other_has():
    rows = load_rows()
    assert set(rows.examples) == set(rows.architectures)
    for names in rows.examples.values():
        assert names
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in names)


def test_a_row_asked_with_one_backend_runs_there_all_that_is_dealt(cell):
    assert cell("gpt_oss", "eager").dealt == DEALT
    assert cell("gpt_oss", "sdpa").unasked == "gpt_oss is measured with eager only"


def test_mixtures_of_a_dozen_kinds_have_rows():
    mixtures = {
        "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3", "gpt_oss",
        "phimoe", "glm4_moe", "minimax_m2", "ernie4_5_moe", "olmoe", "granitemoe",
    }  # fmt: skip
    assert {row.id for row in load_matrix().architectures} >= mixtures
