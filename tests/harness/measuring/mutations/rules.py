"""Releases that break one rule: of attention, of caches, of experts or of how text is generated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation import logits_process, stopping_criteria
from transformers.integrations import sdpa_attention
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.phi3 import modeling_phi3 as phi3

from harness.records import Status
from tests.harness.measuring.mutations.breaking import (
    Break,
    Mutation,
    around,
    around_entry,
    when_made,
)
from tests.harness.measuring.mutations.stocks import (
    ATTENTION,
    UNREAD,
    WRONG_TOKENS,
    broken,
    wrong,
)

CACHED = "Behind a filled cache this release reads otherwise"
SETTINGS = "Generation does something else than the checkpoint's generation_config.json says"


def held(
    name: str,
    breaks: Break,
    check: str,
    message: str,
    cause: str,
    status: Status = "reference-broken",
) -> Mutation:
    """A release that one check is there to see."""
    red = frozenset({check})
    checks = ("split_and_load", check)
    return Mutation(name, breaks, "llama", red, message, cause, status, checks=checks)


def all_positions(
    original: Any, model: Any, *args: Any, logits_to_keep: Any = 0, **kwargs: Any
) -> Any:
    return original(model, *args, **kwargs)


def unmasked_chunk(
    original: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **others: Any
) -> Any:
    if mask is not None and 1 < q.shape[2] < k.shape[2]:
        mask = torch.ones_like(mask)
    return original(module, q, k, v, mask, **others)


def causal_alone(
    original: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **others: Any
) -> Any:
    return original(module, q, k, v, None if q.shape[2] == k.shape[2] else mask, **others)


def keys_for_values(original: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    keys, _ = original(*args, **kwargs)
    return keys, keys


def heads_in_turn(_: Any, states: Tensor, count: int) -> Tensor:
    return states.repeat(1, count, 1, 1)


def prompt_spared(original: Any, processor: Any, ids: Tensor, scores: Tensor) -> Any:
    prompt = vars(processor).setdefault("prompt", ids.shape[1])
    return original(processor, ids[:, prompt:], scores)


def first_end(original: Any, criteria: Any, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    criteria.eos_token_id = criteria.eos_token_id[:1]
    return original(criteria, ids, *args, **kwargs)


def half_routes(_: Any, router: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = hidden.reshape(-1, router.hidden_dim).bfloat16() @ router.weight.bfloat16().T
    weights, experts = logits.softmax(-1).float().topk(router.top_k, -1)
    return logits, weights / weights.sum(-1, keepdim=True), experts


def raw_weights(_: Any, router: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = nn.functional.linear(hidden.reshape(-1, router.hidden_dim), router.weight)
    return logits, *logits.softmax(-1).topk(router.top_k, -1)


def factors_swapped(original: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
    rope = config.rope_parameters
    stated = dict(rope)
    rope.update(short_factor=stated["long_factor"], long_factor=stated["short_factor"])
    try:
        return original(config, *args, **kwargs)
    finally:
        rope.update(stated)


def types_shifted(model: Any) -> None:
    types = model.config.layer_types
    model.config.layer_types = types[-1:] + types[:-1]


def output_bias_lost(attention: Any) -> None:
    attention.o_proj.register_forward_hook(lambda linear, _, output: output - linear.bias)


def whole_head(original: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **others: Any) -> Any:
    def grown(angles: Tensor) -> Tensor:
        half = angles[..., : angles.shape[-1] // 2]
        return torch.cat([half] * (q.shape[-1] // half.shape[-1] + 1), -1)[..., : q.shape[-1]]

    return original(q, k, grown(cos), grown(sin), **others)


ROUTER = mixtral.MixtralTopKRouter

RULES = (
    held(
        "head over all positions",
        around(llama.LlamaForCausalLM, "forward", all_positions),
        "last_position",
        r"stock itself, logits_to_keep=1: shape \[1, 16, 256\], not \[1, 1, 256\]",
        "The head is given other positions",
    ),
    held(
        "mask lost in a chunk",
        around_entry(ATTENTION, "sdpa", unmasked_chunk),
        "chunked_prompt",
        "stock itself, chunks of 3, 6, 2, 5 tokens: off by",
        CACHED,
    ),
    held(
        "penalty spares the prompt",
        around(logits_process.RepetitionPenaltyLogitsProcessor, "__call__", prompt_spared),
        "generation_config",
        r"stock's generated token 3 is the first other one",
        SETTINGS,
        "stock-wrong",
    ),
    held(
        "first of the ends alone",
        around(stopping_criteria.EosTokenCriteria, "__call__", first_end),
        "generation_config",
        r"stock's generated token \d+ is the first other one",
        SETTINGS,
        "stock-wrong",
    ),
    broken(
        "keys for values in the cache",
        around(DynamicLayer, "update", keys_for_values),
        "llama",
        {"incremental_decoding", "golden"},
        "stock's own cached decoding is off by",
        CACHED,
    ),
    broken(
        "ties not made",
        around(PreTrainedModel, "tie_weights", lambda *_, **__: None),
        "llama-tied",
        set(),  # its own checkpoint's, too, so nothing is checked
        "stock loads the checkpoint with missing keys",
        UNREAD,
    ),
    wrong(
        "causal instead of a mask",
        around_entry(ATTENTION, "sdpa", causal_alone),
        "llama",
        WRONG_TOKENS,
    ),
    wrong(
        "keys repeated in turn",
        around(sdpa_attention, "repeat_kv", heads_in_turn),
        "llama",
        WRONG_TOKENS,
    ),
    wrong("router in bfloat16", around(ROUTER, "forward", half_routes), "mixtral"),
    wrong("expert weights as they come", around(ROUTER, "forward", raw_weights), "mixtral"),
    wrong(
        "longrope factors swapped",
        around_entry(ROPE_INIT_FUNCTIONS, "longrope", factors_swapped),
        "phi3-longrope",
    ),
    wrong(
        "scale of the embedding rounded",
        around(
            gemma3.Gemma3TextScaledWordEmbedding,
            "forward",
            lambda original, *given: original(*given) * 1.004,
        ),
        "gemma3",
    ),
    wrong(
        "layer types shifted by one",
        when_made(gemma3.Gemma3TextModel, types_shifted),
        "gemma3",
    ),
    wrong(
        "bias of the output lost",
        when_made(llama.LlamaAttention, output_bias_lost),
        "llama-tied",
    ),
    wrong("whole head rotated", around(phi3, "apply_rotary_pos_emb", whole_head), "phi4-mini"),
)
