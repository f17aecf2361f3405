from __future__ import annotations

import pytest

from harness.tables import TableError
from harness.upstream.rules import Apart, Refused, Rules, load_rules

RULES = Rules(
    models=("llama",),
    apart=(Apart(("test_training*", "*compil*"), "not here"),),
    refused=(
        Refused(("test_a", "test_b*"), "ValueError: no * here", "by design"),
        Refused(("test_c",), "TypeError", "one model's", models=("gemma*",), budgets=("half",)),
    ),
)


def test_the_list_of_the_project_is_whole():
    rules = load_rules()
    assert {"llama", "qwen2", "mixtral", "gemma3", "deepseek_v3", "phi3"} <= set(rules.models)
    assert all(row.why for row in (*rules.apart, *rules.refused))


def test_what_is_apart_does_not_run():
    assert not RULES.runs("test_training_overfit")
    assert not RULES.runs("test_generate_compilation")
    assert RULES.runs("test_a")


def test_a_failure_is_explained_by_model_test_and_message():
    assert RULES.explanation("llama", "min", "test_b_1", "ValueError: no place here") == "by design"
    assert RULES.explanation("llama", "min", "test_b_1", "ValueError: else") == ""
    assert RULES.explanation("llama", "min", "test_d", "ValueError: no place here") == ""
    assert RULES.explanation("gemma2", "half", "test_c", "TypeError: a") == "one model's"
    assert RULES.explanation("gemma2", "min", "test_c", "TypeError: a") == ""
    assert RULES.explanation("llama", "half", "test_c", "TypeError: a") == ""
    assert RULES.listed("gemma2", "half", "test_c")
    assert not RULES.listed("gemma2", "min", "test_c")
    assert not RULES.listed("llama", "half", "test_c")


def test_a_row_that_would_explain_everything_is_refused(tmp_path):
    path = tmp_path / "upstream.toml"
    path.write_text('models = []\n[[refused]]\ntests = ["a"]\nmessage = " * "\nwhy = "b"\n')
    with pytest.raises(TableError, match="would be found in every message"):
        load_rules(path)
