"""Engines that build, call or answer for a model otherwise than stock does."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn

from rabbitllm import prepare
from rabbitllm.model import StreamedModel
from tests.harness.measuring.mutations.breaking import (
    LOGITS,
    PARITY,
    RUNNING,
    Mutation,
    around,
    attention_with,
    built,
    called_with,
    each_block,
    gives,
)

CACHED = frozenset({"incremental_decoding", "cache_fill", "left_padded"})
MASK = "A layer gets another attention mask"
NO_CACHE = "The cache did not reach a layer"
HEAD = "Head and embedding are not what"
HEAD_DIM = "head_dim is wrong"
OTHER_RESULT = r"model\.layers\.0 gives another result from the same weights and inputs"


def cache_of(kwargs: dict[str, Any]) -> str | None:
    """The keyword of the cache: up to 5.23 past_key_values, from 5.24 cache."""
    return next((n for n, value in kwargs.items() if isinstance(value, transformers.Cache)), None)


def batch_stripped(block: nn.Module) -> None:
    block.register_forward_hook(lambda _block, _args, output: output[0])


def cache_keyword_wrong(block: nn.Module) -> None:
    def rename(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keyword = cache_of(kwargs)
        if keyword is None:
            return None
        return args, kwargs | {"past_key_value": kwargs[keyword], keyword: None}

    block.register_forward_pre_hook(rename, with_kwargs=True)


def cache_lost(kwargs: dict[str, Any]) -> dict[str, Any]:
    keyword = cache_of(kwargs)
    return {} if keyword is None else {keyword: None, "use_cache": False}


def positions_shifted(kwargs: dict[str, Any]) -> dict[str, Any]:
    keyword, ids = cache_of(kwargs), kwargs["input_ids"]
    if keyword is None or ids.shape[1] > 1:
        return {}
    return {"position_ids": torch.full_like(ids, kwargs[keyword].get_seq_length() + 1)}


def mask_changed(change: Any) -> Any:
    def changed(kwargs: dict[str, Any]) -> dict[str, Any]:
        mask = kwargs.get("attention_mask")
        return {} if mask is None else {"attention_mask": change(mask)}

    return called_with(changed)


def head_dim_from_hidden_size(_: Any, config: Any, *__: object) -> bool:
    config.head_dim = config.hidden_size // config.num_attention_heads
    return True


def eager_in_secret(block: Any) -> None:
    block.self_attn.config = copy.deepcopy(block.self_attn.config)
    block.self_attn.config._attn_implementation = "eager"


def called_twice(block: Any) -> None:
    block.register_forward_pre_hook(
        lambda block, args, kwargs: block.forward(*args, **kwargs) and None, with_kwargs=True
    )


def fewer_routes(block: Any) -> None:
    if hasattr(block.mlp, "gate"):
        block.mlp.gate.top_k = 1


def rounded(block: Any) -> None:
    block.register_forward_hook(lambda _block, _args, output: output.bfloat16().float())


def logits_as(change: Any) -> Any:
    def changed(output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    return gives(changed)


def endless(original: Any, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs | {"max_new_tokens": None})


CALLS = (
    Mutation(
        "batch stripped",
        each_block(batch_stripped),
        "qwen2",
        RUNNING,
        r"tensor a \(14\) must match the size of tensor b \(64\)",
        "The batch dimension was lost",
    ),
    Mutation(
        "batch in another order",
        called_with(lambda kwargs: {"input_ids": kwargs["input_ids"].flip(0)}),
        "llama",
        frozenset({"left_padded"}),
        r"model\.layers\.0 was called with other 0 than stock's",
        "The first layer gets other hidden states",
    ),
    Mutation(
        "cache keyword wrong",
        each_block(cache_keyword_wrong),
        "llama",
        CACHED,
        r"model\.layers\.0 was called without (past_key_values|cache)",
        NO_CACHE,
    ),
    Mutation(
        "cache lost",
        called_with(cache_lost),
        "llama",
        CACHED,
        r"model\.layers\.0 was called without (past_key_values|cache)",
        NO_CACHE,
    ),
    Mutation(
        "positions shifted",
        called_with(positions_shifted),
        "llama",
        CACHED,
        r"model\.layers\.0 was called with other .*position_ids",
        "A layer gets other positions",
    ),
    Mutation(
        "mask lost",
        mask_changed(lambda _: None),
        "llama",
        frozenset({"left_padded"}),
        "without attention_mask",
        MASK,
    ),
    Mutation(
        "mask of ones",
        mask_changed(torch.ones_like),
        "llama",
        frozenset({"left_padded"}),
        "without attention_mask",
        MASK,
    ),
    Mutation(
        "mask shifted",
        mask_changed(lambda mask: mask.roll(1, -1)),
        "llama",
        frozenset({"left_padded"}),
        "called with other attention_mask",
        MASK,
    ),
    Mutation(
        "window one longer",
        built(lambda model: setattr(model.config, "sliding_window", 9)),
        "mistral",
        PARITY | {"split_and_load"},
        "called with other attention_mask",
        MASK,
    ),
    Mutation(
        "head_dim from hidden size",
        around(prepare, "repair_head_dim", head_dim_from_hidden_size),
        "qwen3",
        frozenset({"split_and_load"}),
        r"[qk]_(proj|norm)\.weight has shape .* in the checkpoint, but the config",
        HEAD_DIM,
    ),
    Mutation(
        "head_dim of the modules",
        attention_with(head_dim=16),
        "qwen3",
        RUNNING,
        r"self_attn\.head_dim is 16, stock's is 32",
        HEAD_DIM,
    ),
    Mutation(
        "backend ignored",
        around(
            prepare,
            "build_with_attention",
            lambda original, build, _, *rest: original(build, "eager", *rest),
        ),
        "llama",
        PARITY | {"split_and_load"},
        "it runs eager, asked for sdpa",
        "The model fell back",
    ),
    Mutation(
        "another backend in secret",
        each_block(eager_in_secret),
        "llama",
        PARITY,
        OTHER_RESULT,
        "A layer computes otherwise",
    ),
    Mutation(
        "not causal",
        attention_with(is_causal=False),
        "llama",
        PARITY - {"left_padded"},
        r"self_attn\.is_causal is False, stock's is True",
        "A module keeps another setting",
    ),
    Mutation(
        "scaling rounded",
        attention_with(scaling=0.2501),
        "llama",
        PARITY,
        r"self_attn\.scaling is 0\.2501, stock's is 0\.25",
        "A module keeps another setting",
    ),
    Mutation(
        "softcap left out",
        attention_with(attn_logit_softcapping=None),
        "gemma2",
        PARITY,
        OTHER_RESULT,
        "A layer computes otherwise",
        backend="eager",
    ),
    Mutation(
        "final softcap left out",
        built(lambda model: setattr(model.config, "final_logit_softcapping", None)),
        "gemma2",
        LOGITS | {"split_and_load"},
        "what follows them does not",
        HEAD,
        backend="eager",
    ),
    Mutation(
        "fewer experts",
        each_block(fewer_routes),
        "qwen3_moe",
        PARITY,
        r"mlp\.gate\.top_k is 1, stock's is 2",
        "A module keeps another setting",
    ),
    Mutation(
        "dropout active",
        built(nn.Module.train),
        "phi",
        frozenset({"golden", "split_and_load"}),
        r"\.training is True, stock's is False",
        "The model is in training mode",
    ),
    Mutation(
        "hidden states rounded",
        each_block(rounded),
        "llama",
        PARITY,
        OTHER_RESULT,
        "A layer computes otherwise",
    ),
    Mutation(
        "block called twice",
        each_block(called_twice),
        "llama",
        RUNNING,
        "is used while it is not in memory",
        "A module ran",
    ),
    Mutation(
        "logits rounded",
        logits_as(torch.Tensor.bfloat16),
        "llama",
        LOGITS,
        "what follows them does not",
        HEAD,
    ),
    Mutation(
        "logits of the last position only",
        logits_as(lambda logits: logits[:, -1:]),
        "llama",
        frozenset({"prefill_parity", "incremental_decoding", "golden"}),
        r"logits have shape \[1, 1, 256\], stock's \[1, 16, 256\]",
        HEAD,
    ),
    Mutation(
        "a tuple for an answer",
        gives(lambda output: output.to_tuple()),
        "llama",
        PARITY,
        "'tuple' object has no attribute 'logits'",
        "The model answers with something else",
    ),
    Mutation(
        "tokens without limit",
        around(StreamedModel, "generate", endless),
        "llama",
        frozenset({"left_padded"}),
        "The shape of the mask",
        "Arguments of generate",
    ),
    Mutation(
        "family forgotten",
        around(prepare, "streamed_class", lambda make, _, stock: make(StreamedModel, stock)),
        "llama",
        frozenset({"split_and_load"}),
        "it is no RabbitLLMLlama2",
        "The model has not the class",
    ),
    Mutation(
        "config says tied",
        built(lambda model: setattr(model.config, "tie_word_embeddings", True)),
        "llama",
        frozenset({"split_and_load", "tied_head"}),
        "config.tie_word_embeddings is True, stock's is False",
        "The config, or the generation config",
    ),
)
