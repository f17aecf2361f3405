from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from harness.matrix import load_matrix
from harness.measuring.golden.generator import weight
from harness.measuring.golden.manifest import (
    architectures,
    digest,
    read_manifest,
    write_checkpoint,
)
from harness.measuring.golden.values import read_values

ROWS = {row.id: row for row in load_matrix().architectures}


def test_every_row_with_a_stock_class_and_random_weights_has_a_checkpoint():
    # In a format they have the values of another row; with one backend only they are there for
    # their experts, and no reference is written of the rest.
    rows = {row.id for row in ROWS.values() if row.config and not row.format and not row.asked}
    # As llama, of more words; as deepseek_v3, by another name; its linear attention has no
    # reference yet.
    assert architectures() == sorted(rows - {"llama-wide", "kimi_k2", "qwen3_5"})


@pytest.mark.parametrize("name", architectures())
def test_the_bits_are_fixed(name):
    assert digest(name) == read_values(name).sha256


@pytest.mark.parametrize("name", architectures())
def test_stock_reads_every_key_and_lacks_none(name, tmp_path):
    write_checkpoint(name, tmp_path)
    stock = getattr(transformers, ROWS[name].model_class)
    model, info = stock.from_pretrained(tmp_path, output_loading_info=True)
    assert {what: keys for what, keys in info.items() if keys} == {}
    assert model.config.model_type == ROWS[name].model_type
    assert [type(model).__name__] == read_manifest(name).config["architectures"]


def test_values_arrive_in_their_dtype(tmp_path):
    write_checkpoint("deepseek_v3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norm, bias = "model.norm.weight", "model.layers.2.mlp.gate.e_score_correction_bias"
    assert (tensors[norm].dtype, tensors[bias].dtype) == (torch.bfloat16, torch.float32)
    for key in (norm, bias):
        due = torch.from_numpy(
            weight(f"deepseek_v3/{read_manifest('deepseek_v3').seed}", key, tensors[key].shape)
        )
        assert torch.equal(tensors[key].float(), due)


def test_the_file_is_as_the_format_says(tmp_path):
    write_checkpoint("llama2", tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header.keys() == read_manifest("llama2").tensors.keys()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == header.keys()


# What makes the answers of each family its own: see that no manifest loses it.
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama3.2", "tie_word_embeddings", True),
        ("mistral", "sliding_window", 8),
        ("gemma2", "attn_logit_softcapping", 2.0),
        ("phi3-longrope", "original_max_position_embeddings", 8),
        ("deepseek_v3", "n_group", 4),
        ("qwen3_moe", "mlp_only_layers", [1]),
    ],
)
def test_a_feature_is_on(name, field, value):
    assert read_manifest(name).config[field] == value


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.7.gate_proj.weight"),
        ("deepseek_v2", "model.layers.1.mlp.shared_experts.up_proj.weight"),
        ("deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias"),
        ("gemma3-multimodal", "language_model.model.layers.0.self_attn.q_norm.weight"),
        ("gemma3-multimodal", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
    ],
)
def test_keys_are_the_published_ones(name, key):
    assert key in read_manifest(name).tensors
