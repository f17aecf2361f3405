from __future__ import annotations

import json

import pytest

from rabbitllm.releases.shrink import shrunk, write

LARGE = {
    "model_type": "large",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


def test_layers_are_few_and_narrow_and_heads_as_wide_as_they_were():
    assert shrunk(LARGE) == LARGE | {
        "hidden_size": 512,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    }


def test_a_layer_of_each_kind_stays_and_lists_are_as_long_as_layers():
    kinds = ["sliding"] * 5 + ["full"]
    found = shrunk({**LARGE, "num_hidden_layers": 12, "layer_types": kinds * 2, "x": [1, 2]})
    assert found["num_hidden_layers"] == 6
    assert found["layer_types"] == kinds
    assert found["x"] == [1, 2]


def test_configs_inside_are_made_small_and_what_is_small_stays():
    tiny = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "n_group": True}
    assert shrunk(tiny) == tiny
    assert shrunk({"text_config": LARGE, "rope": LARGE})["text_config"]["hidden_size"] == 512


@pytest.mark.parametrize("kv", [64, 1])
def test_groups_of_heads_keep_their_proportion(kv):
    assert shrunk({**LARGE, "num_key_value_heads": kv})["num_key_value_heads"] == max(1, kv // 16)


def test_how_weights_were_quantized_is_left_out():
    assert shrunk({"quantization_config": {}, "x": 1}) == {"x": 1}


def test_code_and_tokenizer_come_along_and_weights_do_not(sharp, tmp_path):
    for name in ("a.tiktoken", "chat_template.json", "model.safetensors.index.json"):
        (sharp / name).touch()
    write(sharp, tmp_path / "tiny")
    found = {file.name for file in (tmp_path / "tiny").iterdir()}
    assert found == {
        "a.tiktoken",
        "chat_template.json",
        "config.json",
        "modeling_sharp.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["model_type"] == "sharp"
