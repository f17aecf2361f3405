"""Families without a class in transformers, as maps to a native class with the same arithmetic.

No code of a checkpoint's authors runs: config.json is read as data, its fields become a native
config, its keys native parameters. `LEGACY` says which family maps to what; the modules beside it
say how. A release that has a class of its own for a model type uses that instead.

After a change to a row's `weights`, raise `rabbitllm.checkpoint.store.FORMAT`: layer stores hold
what the old map made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rabbitllm.checkpoint.legacy import (
    alibi,
    baichuan,
    chatglm,
    internlm,
    qwen,
    renamed,
    tokenizers,
)
from rabbitllm.errors import CheckpointError

Fields = Mapping[str, Any]
"""The fields of a config.json, as `rabbitllm.checkpoint.config.read_fields` returns them: indexing
one that is absent raises a CheckpointError that names it."""

SHARED = (
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
)
"""Fields that every config class has under the same name."""


@dataclass(frozen=True)
class Inputs:
    """A change of a model's inputs, where its weights and config cannot express a family.

    Attributes:
        hook: a forward pre-hook with kwargs, for the base model.
        backends: the attention backends that compute with such inputs.
        why: why the others do not.
    """

    hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[()], dict[str, Any]]]
    backends: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Requirement:
    """The one value of a field that the native class has an equivalent of.

    Attributes:
        field: of config.json; absent counts as `value`.
        value: what it must be.
        why: what another value would mean.
    """

    field: str
    value: object
    why: str


def _always(fields: Fields) -> bool:
    return True


@dataclass(frozen=True)
class Legacy:
    """How one architecture becomes another.

    Attributes:
        name: as people know the checkpoints.
        model_type: in their config.json.
        native: the model type in transformers that has the same arithmetic.
        config: fields of config.json -> arguments of the native config class, `SHARED` ones aside.
        tokenizer: makes the tokenizer from the checkpoint's folder.
        weights: checkpoint keys -> parameters of the native class; empty if the names are the same.
        applies: tells the row from others of the same model type.
        requires: what the native class cannot express.
        inputs: what the stock forward must be given instead, if anything.
    """

    name: str
    model_type: str
    native: str
    config: Callable[[Fields], dict[str, Any]]
    tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    weights: tuple[WeightRenaming | WeightConverter, ...] = ()
    applies: Callable[[Fields], bool] = _always
    requires: tuple[Requirement, ...] = ()
    inputs: Inputs | None = None

    def native_config(self, fields: Fields) -> PretrainedConfig:
        """The config of the native class.

        Raises:
            CheckpointError: a field is missing, or has a value without equivalent.
        """
        for requirement in self.requires:
            value = fields.get(requirement.field, requirement.value)
            if value != requirement.value:
                raise CheckpointError(
                    f"{self.name} with {requirement.field}={value!r} cannot be run: transformers "
                    f"has no class with that arithmetic ({requirement.why}). Only checkpoints "
                    f"with {requirement.field}={requirement.value!r} load."
                )
        shared = {name: fields[name] for name in SHARED if name in fields}
        config: PretrainedConfig = CONFIG_MAPPING[self.native](**(shared | self.config(fields)))
        return config


def row_of(fields: Fields) -> Legacy | None:
    """The row for a config.json; None if it is of no legacy family."""
    model_type = fields.get("model_type")
    rows = (row for row in LEGACY if row.model_type == model_type and row.applies(fields))
    return next(rows, None)


def find(fields: Fields) -> Legacy | None:
    """The row to load a checkpoint by; None if this transformers needs none for its model type."""
    return None if fields.get("model_type") in CONFIG_MAPPING else row_of(fields)


ALIBI = Inputs(hook=alibi.inputs, backends=alibi.BACKENDS, why=alibi.WHY)
UNTIED = Requirement("tie_word_embeddings", False, "the head is normalised, the embedding is not")

LEGACY = (
    Legacy(
        name="InternLM",
        model_type="internlm",
        native="llama",
        config=internlm.config_1,
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="InternLM2",
        model_type="internlm2",
        native="llama",
        config=internlm.config_2,
        weights=internlm.WEIGHTS_2,
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="InternLM3",
        model_type="internlm3",
        native="llama",
        config=internlm.config_3,
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="Baichuan-7B",
        model_type="baichuan",
        native="llama",
        config=baichuan.config,
        weights=baichuan.WEIGHTS,
        applies=partial(baichuan.is_variant, alibi=False, second=False),
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="Baichuan2-7B",
        model_type="baichuan",
        native="llama",
        config=baichuan.config,
        weights=baichuan.WEIGHTS_2,
        applies=partial(baichuan.is_variant, alibi=False, second=True),
        requires=(UNTIED,),
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="Baichuan-13B",
        model_type="baichuan",
        native="llama",
        config=baichuan.config,
        weights=baichuan.WEIGHTS,
        applies=partial(baichuan.is_variant, alibi=True, second=False),
        inputs=ALIBI,
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="Baichuan2-13B",
        model_type="baichuan",
        native="llama",
        config=baichuan.config,
        weights=baichuan.WEIGHTS_2,
        applies=partial(baichuan.is_variant, alibi=True, second=True),
        requires=(UNTIED,),
        inputs=ALIBI,
        tokenizer=tokenizers.sentencepiece,
    ),
    Legacy(
        name="QWen",
        model_type="qwen",
        native="qwen2",
        config=qwen.config,
        weights=qwen.WEIGHTS,
        requires=(
            Requirement("no_bias", True, "biases in the output projection and feed-forward"),
            Requirement("rotary_pct", 1.0, "RoPE on part of each head"),
            Requirement("scale_attn_weights", True, "scores that are not scaled"),
        ),
        tokenizer=tokenizers.tiktoken,
    ),
    Legacy(
        name="ChatGLM",
        model_type="chatglm",
        native="glm",
        config=chatglm.config,
        weights=chatglm.WEIGHTS,
        tokenizer=tokenizers.chatglm,
        requires=(
            Requirement("position_encoding_2d", False, "ChatGLM-6B's two-dimensional positions"),
            Requirement("multi_query_attention", True, "heads interleaved with their q, k and v"),
            Requirement("add_bias_linear", False, "biases in the feed-forward"),
            Requirement("apply_residual_connection_post_layernorm", False, "another residual"),
            Requirement("original_rope", True, "another rotation"),
            Requirement("post_layer_norm", True, "no norm behind the last layer"),
            Requirement("pre_seq_len", None, "a trained prefix, P-tuning"),
            Requirement("quantization_bit", 0, "quantised weights"),
            Requirement("rmsnorm", True, "layer norms with a bias"),
        ),
    ),
    Legacy(
        name="Kimi K2",
        model_type="kimi_k2",
        native="deepseek_v3",
        config=renamed.config,
        tokenizer=tokenizers.kimi,
        requires=(
            Requirement("moe_layer_freq", 1, "mixtures in some of the layers alone"),
            Requirement("scoring_func", "sigmoid", "another score of experts"),
            Requirement("topk_method", "noaux_tc", "another choice of experts"),
        ),
    ),
    Legacy(
        name="Aquila",
        model_type="aquila",
        native="llama",
        config=renamed.config,
        tokenizer=tokenizers.gpt2,
    ),
    Legacy(
        name="XVERSE",
        model_type="xverse",
        native="llama",
        config=renamed.config,
        tokenizer=tokenizers.none,
    ),
)
