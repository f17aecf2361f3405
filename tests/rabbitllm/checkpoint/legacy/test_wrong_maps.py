"""Negative controls: every part of every map, gone or wrong, must show in the logits."""

from __future__ import annotations

import pytest
from transformers.core_model_loading import WeightConverter, WeightRenaming

from rabbitllm.checkpoint.legacy import Inputs, alibi, baichuan, ops

pytestmark = pytest.mark.usefixtures("without_native")


def exchanged(a, b):
    """Weights that belong to `a` go to `b`, and the other way round."""

    def swap(pattern):
        return pattern.replace(a, "*").replace(b, a).replace("*", b)

    def rebuilt(entry):
        targets = [swap(pattern) for pattern in entry.target_patterns]
        if isinstance(entry, WeightConverter):
            return WeightConverter(entry.source_patterns, targets, operations=entry.operations)
        return WeightRenaming(entry.source_patterns, targets)

    def change(row):
        return {"weights": tuple(rebuilt(entry) for entry in row.weights)}

    return change


def configured(**fields):
    """The native config with these arguments instead."""
    return lambda row: {"config": lambda given: row.config(given) | fields}


def rope(**fields):
    """The native config's rope parameters with these instead."""

    def change(row):
        def config(given):
            made = row.config(given)
            return made | {"rope_parameters": made["rope_parameters"] | fields}

        return {"config": config}

    return change


def split_by(operation):
    """Query, key and value split in another way."""
    target = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]

    def change(row):
        *renamings, converter = row.weights
        other = WeightConverter(converter.source_patterns, target, operations=[operation])
        return {"weights": (*renamings, other)}

    return change


def only_a_mask(model, args, kwargs):
    """ALiBi's mask, and positions that RoPE turns by."""
    _, named = alibi.inputs(model, args, kwargs)
    return (), named | {"position_ids": kwargs.get("position_ids")}


def only_zero_positions(model, args, kwargs):
    """Positions that RoPE leaves alone, and the stock mask."""
    _, named = alibi.inputs(model, args, kwargs)
    return (), named | {"attention_mask": kwargs["attention_mask"]}


def given(hook):
    return lambda row: {"inputs": Inputs(hook, alibi.BACKENDS, alibi.WHY)}


Q_AND_K = exchanged("self_attn.q_proj", "self_attn.k_proj")
K_AND_V = exchanged("self_attn.k_proj", "self_attn.v_proj")
GATE_AND_UP = exchanged("mlp.gate_proj", "mlp.up_proj")
NORMS = exchanged("input_layernorm", "post_attention_layernorm")
WRONG_BASE = rope(rope_theta=500.0)

WRONG = [
    ("internlm", "no biases", configured(attention_bias=False)),
    ("internlm", "rope base", WRONG_BASE),
    ("internlm2", "not interleaved", split_by(ops.SplitHeads())),
    ("internlm2", "keys as values", K_AND_V),
    ("internlm2", "gate as up", GATE_AND_UP),
    ("internlm2", "norms exchanged", NORMS),
    ("internlm2", "rope base", WRONG_BASE),
    ("internlm2", "epsilon", configured(rms_norm_eps=0.5)),
    ("internlm3", "no biases in the feed-forward", configured(mlp_bias=False)),
    ("internlm3", "no biases in attention", configured(attention_bias=False)),
    ("internlm3", "rope base", WRONG_BASE),
    ("baichuan-7b", "queries as keys", Q_AND_K),
    ("baichuan-7b", "keys as values", K_AND_V),
    ("baichuan-7b", "rope base", WRONG_BASE),
    ("baichuan-7b", "normalised head", lambda row: {"weights": baichuan.WEIGHTS_2}),
    ("baichuan-7b", "ALiBi", given(alibi.inputs)),
    ("baichuan2-7b", "head as it is", lambda row: {"weights": baichuan.WEIGHTS}),
    ("baichuan2-7b", "queries as keys", Q_AND_K),
    ("baichuan-13b", "no ALiBi", lambda row: {"inputs": None}),
    ("baichuan-13b", "rotated positions", given(only_a_mask)),
    ("baichuan-13b", "no positions", given(only_zero_positions)),
    ("baichuan-13b", "keys as values", K_AND_V),
    ("baichuan2-13b", "no ALiBi", lambda row: {"inputs": None}),
    ("baichuan2-13b", "head as it is", lambda row: {"weights": baichuan.WEIGHTS}),
    ("qwen", "queries as keys", Q_AND_K),
    ("qwen", "gate as up", GATE_AND_UP),
    ("qwen", "norms exchanged", NORMS),
    ("qwen", "rope base", WRONG_BASE),
    ("qwen", "epsilon", configured(rms_norm_eps=0.5)),
    ("chatglm2", "interleaved", split_by(ops.SplitGroups())),
    ("chatglm2", "keys as values", K_AND_V),
    ("chatglm2", "whole heads rotated", rope(partial_rotary_factor=1.0)),
    ("chatglm2", "no biases", configured(attention_bias=False)),
    ("chatglm2", "rope base", WRONG_BASE),
    ("chatglm2-32k", "positions not divided", rope(rope_type="default")),
    ("chatglm2-32k", "base multiplied", rope(rope_type="default", rope_theta=40000.0)),
    ("chatglm3", "base not multiplied", rope(rope_theta=10000.0)),
    ("chatglm3", "positions divided", rope(rope_type="linear", rope_theta=1e4, factor=50.0)),
]


@pytest.mark.parametrize(
    ("architecture", "change"),
    [pytest.param(name, change, id=f"{name}: {what}") for name, what, change in WRONG],
)
def test_a_wrong_map_shows(
    architecture, change, original, change_row, streamed, ids, run, distance, tmp_path
):
    folder, reference = original(architecture)
    change_row(folder, change)
    # A store of its own: the others have what the right map makes.
    model = streamed(folder, layer_shards_saving_path=tmp_path)
    assert distance(run(model, ids), reference(ids)) > 0.05
