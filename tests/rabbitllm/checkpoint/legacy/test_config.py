"""Which row a config.json selects, what becomes of its fields, and what is refused."""

from __future__ import annotations

import json
import logging

import pytest

from harness.measuring.references import REFERENCES
from rabbitllm import CheckpointError
from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.config import load_config, read_fields
from rabbitllm.checkpoint.legacy import renamed

# The fields that tell them apart, as published at https://huggingface.co/baichuan-inc.
PUBLISHED = {
    "Baichuan-7B": {
        "hidden_size": 4096,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "vocab_size": 64000,
    },
    "Baichuan-13B": {
        "hidden_size": 5120,
        "model_max_length": 4096,
        "num_attention_heads": 40,
        "vocab_size": 64000,
    },
    "Baichuan2-7B": {
        "hidden_size": 4096,
        "max_position_embeddings": 4096,
        "model_max_length": 4096,
        "num_attention_heads": 32,
        "vocab_size": 125696,
        "z_loss_weight": 0,
    },
    "Baichuan2-13B": {
        "hidden_size": 5120,
        "model_max_length": 4096,
        "num_attention_heads": 40,
        "vocab_size": 125696,
    },
}
ROW = {"InternLM": "internlm", "InternLM2": "internlm2", "InternLM3": "internlm3"} | {
    "Baichuan-7B": "baichuan-7b",
    "Baichuan2-7B": "baichuan2-7b",
    "Baichuan-13B": "baichuan-13b",
    "Baichuan2-13B": "baichuan2-13b",
    "QWen": "qwen",
    "ChatGLM": "chatglm3",
}
OWN = [row for row in legacy.LEGACY if row.config is not renamed.config]
"""Rows of families whose fields or keys are their own; of the others see test_renamed.py."""
OTHER = {"pre_seq_len": 128, "quantization_bit": 4, "rotary_pct": 0.25}
"""Values that are not provided for, of fields that are no switches."""


@pytest.fixture
def write(tmp_path):
    """`write(id, field=value)`: a checkpoint whose config.json has these fields too."""

    def make(architecture, **fields):
        REFERENCES[architecture].write(tmp_path, 0)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return tmp_path

    return make


def test_every_row_is_tested():
    assert list(ROW) == [row.name for row in OWN]


@pytest.mark.parametrize("name", ROW)
def test_a_checkpoint_selects_its_row(name, write):
    assert legacy.row_of(read_fields(write(ROW[name]))).name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_baichuan_configs_are_told_apart(name):
    assert legacy.row_of({"model_type": "baichuan"} | PUBLISHED[name]).name == name


@pytest.mark.parametrize(("stated", "name"), [("ALIBI", "Baichuan-13B"), ("ROPE", "Baichuan-7B")])
@pytest.mark.parametrize("published", ["Baichuan-7B", "Baichuan-13B"])
def test_a_stated_position_embedding_decides(stated, name, published):
    fields = {"model_type": "baichuan", "position_embedding": stated} | PUBLISHED[published]
    assert legacy.row_of(fields).name == name


def test_a_native_class_is_preferred_to_a_row():
    assert legacy.find({"model_type": "llama"}) is None
    assert legacy.find({"model_type": "no-such-model"}) is None


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ROW)
def test_no_code_of_the_checkpoint_runs(name, trust, write):
    folder = write(ROW[name])
    for module in json.loads((folder / "config.json").read_text())["auto_map"].values():
        (folder / f"{module.split('.')[0]}.py").write_text("raise SystemExit('ran')")
    config = load_config(folder, trust_remote_code=trust)
    assert type(config).__module__.startswith("transformers.models.")
    assert config.name_or_path == str(folder)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("name", ROW)
def test_the_tokens_that_end_a_text_stay(name, write):
    folder = write(ROW[name], bos_token_id=11, eos_token_id=12, pad_token_id=13)
    config = load_config(folder, trust_remote_code=False)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (11, 12, 13)


@pytest.mark.parametrize(
    ("name", "requirement"),
    [
        pytest.param(row.name, requirement, id=f"{row.name}: {requirement.field}")
        for row in OWN
        for requirement in row.requires
    ],
)
def test_what_the_native_class_cannot_express_is_refused(name, requirement, write):
    other = OTHER.get(requirement.field, not requirement.value)
    folder = write(ROW[name], **{requirement.field: other})
    wanted = f"{name} with {requirement.field}=.*{requirement.why}.*{requirement.value!r}"
    with pytest.raises(CheckpointError, match=wanted):
        load_config(folder, trust_remote_code=True)


def test_the_first_chatglm_is_refused(tmp_path):
    fields = {
        "architectures": ["ChatGLMModel"],
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": 32,
        "num_layers": 28,
        "position_encoding_2d": True,
        "vocab_size": 130528,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="ChatGLM-6B's two-dimensional positions"):
        load_config(tmp_path, trust_remote_code=False)


@pytest.mark.usefixtures("without_native")
def test_internlm3_with_two_bias_switches_is_refused(write):
    with pytest.raises(CheckpointError, match="bias=False and qkv_bias=True"):
        load_config(write("internlm3", bias=False), trust_remote_code=False)


def test_an_unknown_rotary_type_is_refused(write):
    folder = write("internlm", rotary={"base": 10000, "type": "spiral"})
    with pytest.raises(CheckpointError, match="'spiral'"):
        load_config(folder, trust_remote_code=False)


def test_qwen_with_heads_that_do_not_fill_its_width_is_refused(write):
    with pytest.raises(CheckpointError, match=r"kv_channels=32 times 4 heads.*hidden_size=64"):
        load_config(write("qwen", kv_channels=32), trust_remote_code=False)


def test_a_rope_ratio_of_unknown_meaning_is_refused(write):
    folder = write("chatglm3", _name_or_path="/models/mine", rope_ratio=50)
    with pytest.raises(CheckpointError, match=r"rope_ratio=50.*'/models/mine'.*\"chatglm3\""):
        load_config(folder, trust_remote_code=False)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("THUDM/chatglm2-6b-32k", {"rope_type": "linear", "rope_theta": 10000, "factor": 8}),
        ("THUDM/chatglm3-6b-128k", {"rope_type": "default", "rope_theta": 80000}),
        ("/models/GLM-4-9b-chat", {"rope_type": "default", "rope_theta": 80000}),
    ],
)
def test_the_published_name_says_what_a_rope_ratio_means(name, rope, write):
    config = load_config(write("chatglm3", _name_or_path=name, rope_ratio=8), False)
    assert config.rope_parameters == rope | {"partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("fields", "context", "warns"),
    [
        ({}, 128, True),
        ({"use_logn_attn": False}, 128, True),
        ({"use_logn_attn": False, "use_dynamic_ntk": False}, 512, False),
        ({"max_position_embeddings": 128}, 128, False),
    ],
)
def test_qwens_context_is_what_its_map_is_exact_for(fields, context, warns, write, caplog):
    folder = write("qwen", **fields)
    with caplog.at_level(logging.WARNING, logger="rabbitllm"):
        config = load_config(folder, trust_remote_code=False)
    assert config.max_position_embeddings == context
    assert ["log-n" in record.message for record in caplog.records] == [True] * warns


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("InternLM", "intermediate_size"),
        ("InternLM2", "rope_theta"),
        ("InternLM3", "vocab_size"),
        ("Baichuan-13B", "model_max_length"),
        ("Baichuan2-7B", "rms_norm_eps"),
        ("QWen", "seq_length"),
        ("ChatGLM", "padded_vocab_size"),
    ],
)
def test_a_missing_field_is_named(name, field, write):
    folder = write(ROW[name])
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    del fields[field]
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=f"config.json has no '{field}'"):
        load_config(folder, trust_remote_code=False)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("InternLM", {"rotary": 3}),
        ("InternLM2", {"rope_scaling": "long"}),
        ("InternLM2", {"rope_theta": "many"}),
        ("Baichuan-7B", {"hidden_size": ["many"]}),
        ("QWen", {"num_attention_heads": 0}),
        ("QWen", {"intermediate_size": "many"}),
        ("ChatGLM", {"rope_ratio": "wide"}),
    ],
)
def test_a_field_of_the_wrong_type_names_the_file(name, fields, write):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_config(write(ROW[name], **fields), trust_remote_code=False)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("architecture", REFERENCES)
def test_weights_of_other_sizes_are_refused(architecture, copy, rewrite, streamed):
    folder, _ = copy(architecture)

    def narrow(tensors):
        name = next(k for k in tensors if "layers.0" in k or "h.0" in k if tensors[k].ndim == 2)
        tensors[name] = tensors[name][:-2].contiguous()

    rewrite(folder, narrow)
    with pytest.raises(CheckpointError, match="config"):
        streamed(folder)


@pytest.mark.parametrize("architecture", REFERENCES)
def test_a_missing_tensor_is_named(architecture, copy, rewrite, streamed):
    folder, _ = copy(architecture)
    rewrite(folder, lambda tensors: {k: t for k, t in tensors.items() if ".2." not in k})
    with pytest.raises(CheckpointError, match=r"tensors are missing.*layers\.2\."):
        streamed(folder)
