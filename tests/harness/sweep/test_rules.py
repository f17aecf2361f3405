from __future__ import annotations

import pytest
import transformers
from transformers import CONFIG_MAPPING, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.matrix import load_matrix
from harness.sweep.rules import Field, Rules, Type, load_rules, merged, shrunk
from harness.tables import TableError

VALUES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "is_decoder": True}


def test_numbers_do_not_stay_above_their_value():
    small = shrunk(LlamaConfig(hidden_size=4096, num_hidden_layers=2), VALUES)
    assert small == {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_switches_are_set_and_numbers_are_no_switches():
    config = CONFIG_MAPPING["bert"](hidden_size=64)
    assert shrunk(config, {"is_decoder": True}) == {"is_decoder": True}
    assert shrunk(config, {"is_decoder": 1, "hidden_size": True}) == {}


def test_configs_inside_a_config_are_made_small_too():
    small = shrunk(CONFIG_MAPPING["gemma3"](), {"hidden_size": 64})
    assert small["text_config"] == {"model_type": "gemma3_text", "hidden_size": 64}
    assert small["vision_config"]["hidden_size"] == 64


def test_what_is_derived_is_derived_again():
    config = load_rules().config("qwen3_next")
    assert config.num_hidden_layers == len(config.layer_types) == 4
    assert set(config.layer_types) == {"linear_attention", "full_attention"}


def test_a_types_own_row_wins_field_by_field():
    rows = Type(("llama",), {"num_hidden_layers": 7}, "why")
    rules = Rules((Field(("vocab_size", "num_hidden_layers"), 4),), (rows,))
    config = rules.config("llama")
    assert (config.vocab_size, config.num_hidden_layers) == (4, 7)
    assert rules.config("mistral").num_hidden_layers == 4
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
    }


def test_every_row_names_types_and_says_why():
    newest = load_matrix().releases[-1].version
    for row in [*load_rules().type, *load_rules().known]:
        assert row.names
        assert row.why
        if transformers.__version__ == newest:
            assert set(row.names) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[field]]\nnames = ['a']\nvalue = 'x'", "value: expected int"),
        ("[[field]]\nnames = ['a']\nvalue = 1\nwhy = ''", "Unknown key 'why'"),
        ("[[fields]]", "Unknown key 'fields'"),
        ("[[type]]\nnames = ['a']\nconfig = {}", "missing 'why'"),
        ("[[field]]\nnames = ['a', 'a']\nvalue = 1", "'a' is stated twice"),
        ("[[type]]\nnames = ['b', 'b']\nconfig = {}\nwhy = ''", "'b' is stated twice"),
        ("[[field", "sweep.toml"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_place(tmp_path, text, message):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(TableError, match=message):
        load_rules(path)
