"""Releases that compute something else: transformers itself is changed, for both sides alike."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, masking_utils
from transformers.generation import LogitsProcessorList
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.phi import modeling_phi as phi
from transformers.models.phi3 import modeling_phi3 as phi3
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from harness.records import Status
from tests.harness.measuring.mutations.breaking import (
    RUNNING,
    Break,
    Mutation,
    around,
    around_entry,
    when_made,
    with_values,
)

ATTENTION = type(ALL_ATTENTION_FUNCTIONS)._global_mapping
WRONG = r"stock's are not the reference's: \d+ positions are off by up to"
WRONG_TOKENS = r"stock's are not the reference's: generated token \d+ is the first other one"
"""The text is read as it should be, and still other tokens are generated from a batch."""
CONTRACT = "The contract that streaming rests on is gone"
UNREAD = "The release looks for weights under other names"
DEFINITION = "From one and the same checkpoint this release computes something else"


def wrong(name: str, breaks: Break, architecture: str, message: str = WRONG) -> Mutation:
    """A release that the golden values alone show to be wrong."""
    backend = "eager" if architecture == "gemma2" else "sdpa"  # which does without softcap
    return Mutation(
        name,
        breaks,
        architecture,
        frozenset({"golden"}),
        message,
        DEFINITION,
        "stock-wrong",
        backend,
    )


def broken(
    name: str, breaks: Break, architecture: str, red: set[str], message: str, cause: str = ""
) -> Mutation:
    """A release that contradicts itself."""
    status: Status = "reference-broken"
    return Mutation(name, breaks, architecture, frozenset(red), message, cause, status)


def estranged(name: str, breaks: Break, message: str, red: frozenset[str]) -> Mutation:
    """A release that runs, but not as streaming needs it."""
    said = f"contract: Stock runs, but .*{message}"
    return Mutation(name, breaks, "llama", red | {"contract"}, said, CONTRACT)


def past_hooks(_: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.forward(*args, **kwargs)


def past_hooks_of_third(original: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    run = layer.forward if layer.self_attn.layer_idx == 2 else partial(original, layer)
    return run(*args, **kwargs)


def head_by_its_weight(model: Any) -> None:
    class Weight(nn.Linear):
        def __call__(self, hidden: Tensor) -> Tensor:
            return nn.functional.linear(hidden, self.weight)

    model.lm_head.__class__ = Weight


class PlainLayer(nn.Module):
    """What a release's decoder layers may be instead of a GradientCheckpointingLayer."""

    gradient_checkpointing = False
    forward = llama.LlamaDecoderLayer.forward


def layer_in_vain(original: Any, layer: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    after: Tensor = original(layer, hidden, *args, **kwargs)  # which fills the cache
    return hidden if layer.self_attn.layer_idx == 2 else after


def layer_left_out(original: Any, layer: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    if layer.self_attn.layer_idx == 2:
        return hidden
    return original(layer, hidden, *args, **kwargs)


def padding_of_first_row(original: Any, *args: Any) -> Any:
    mask = original(*args)
    return None if mask is None else mask[:1].expand_as(mask)


def without_mask(original: Any, module: Any, q: Any, k: Any, v: Any, _: Any, **others: Any) -> Any:
    return original(module, q, k, v, None, **others)


def without_causality(original: Any, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs | {"is_causal": False})


def default_theta(original: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
    stated = config.rope_parameters["rope_theta"]
    config.rope_parameters["rope_theta"] = 10_000.0
    try:
        return original(config, *args, **kwargs)
    finally:
        config.rope_parameters["rope_theta"] = stated


def without_factor(original: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, float]:
    return original(*args, **kwargs)[0], 1.0


def pairs_turned(_: Any, states: Tensor) -> Tensor:
    return torch.stack((-states[..., 1::2], states[..., ::2]), -1).flatten(-2)


def second_best(original: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
    def without_best(_: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -torch.inf)

    return LogitsProcessorList([*original(*args, **kwargs), without_best])


def padding_counted(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Positions behind the prompt are those of the padded row."""
    inputs = original(*args, **kwargs)
    positions = inputs["position_ids"]
    positions[:, -1] = positions.shape[1] - 1
    return inputs


def halves_swapped(original: Any, experts: Any, gate_up: Tensor) -> Any:
    return original(experts, gate_up.roll(gate_up.shape[-1] // 2, -1))


def up_for_gate(_: Any, mlp: Any, hidden: Tensor) -> Any:
    up, gate = mlp.gate_up_proj(hidden).chunk(2, -1)
    return mlp.down_proj(mlp.activation_fn(gate) * up)


def without_correction(original: Any, router: Any, *args: Any) -> Any:
    corrected = router.e_score_correction_bias
    router.e_score_correction_bias = torch.zeros_like(corrected)
    try:
        return original(router, *args)
    finally:
        router.e_score_correction_bias = corrected


LAYER = llama.LlamaDecoderLayer
ROPE = llama.LlamaRotaryEmbedding
ROUTER = qwen3_moe.Qwen3MoeTopKRouter
V3_ROUTER = deepseek_v3.DeepseekV3TopkRouter

STOCKS = (
    estranged(
        "layers past their hooks",
        around(LAYER, "__call__", past_hooks),
        r"it calls model\.layers\.0, .* past their hooks",
        RUNNING,
    ),
    estranged(
        "one layer past its hooks",
        around(LAYER, "__call__", past_hooks_of_third),
        r"it calls model\.layers\.2 past their hooks",
        RUNNING,
    ),
    estranged(
        "head past its hooks",
        when_made(llama.LlamaForCausalLM, head_by_its_weight),
        r"it calls lm_head past their hooks",
        RUNNING - {"golden"},
    ),
    replace(
        estranged(
            "layers of another class",
            when_made(LAYER, lambda layer: setattr(layer, "__class__", PlainLayer)),
            "no layer of its decoder is",
            frozenset({"split_and_load"}),
        ),
        # Whole in memory it answers as stock does, but for rounding where weights lie elsewhere.
        unsure=RUNNING,
    ),
    wrong("default norm epsilon", with_values(llama.LlamaRMSNorm, variance_epsilon=1e-6), "llama"),
    wrong("layer in vain", around(LAYER, "forward", layer_in_vain), "llama"),
    broken(
        "layer left out",
        around(LAYER, "forward", layer_left_out),
        "llama",
        {"cache_fill", "golden"},
        r"stock's cache saw \[16, 16, 0, 16\] tokens(.|\n)*in layer 2, which does not run",
        DEFINITION,
    ),
    wrong(
        "padding ignored",
        around(masking_utils, "prepare_padding_mask", lambda *_: None),
        "llama",
        WRONG_TOKENS,
    ),
    wrong(
        "padding of the first row",
        around(masking_utils, "prepare_padding_mask", padding_of_first_row),
        "llama",
        WRONG_TOKENS,
    ),
    wrong(
        "padding counted by positions",
        around(GenerationMixin, "prepare_inputs_for_generation", padding_counted),
        "llama",
        WRONG_TOKENS,
    ),
    wrong("sdpa mask lost", around_entry(ATTENTION, "sdpa", without_mask), "llama", WRONG_TOKENS),
    broken(
        "sdpa sees what follows",
        around_entry(ATTENTION, "sdpa", without_causality),
        "llama",
        {"incremental_decoding", "golden"},
        "stock's own cached decoding is off by",
        DEFINITION,
    ),
    broken(
        "window one longer",
        around(masking_utils, "sliding_window_overlay", lambda make, window: make(window + 1)),
        "mistral",
        {"incremental_decoding", "golden"},
        "stock's own cached decoding is off by",
        DEFINITION,
    ),
    wrong(
        "window one shorter",
        around(masking_utils, "sliding_window_overlay", lambda make, window: make(window - 1)),
        "gemma3",
    ),
    wrong(
        "masks of other layer types",
        when_made(gemma2.Gemma2Model, lambda model: model.config.layer_types.reverse()),
        "gemma2",
    ),
    wrong(
        "rope theta ignored",
        around(ROPE, "compute_default_rope_parameters", default_theta),
        "llama",
    ),
    wrong("rope by pairs", around(llama, "rotate_half", pairs_turned), "llama"),
    wrong(
        "llama3 rope scaling ignored",
        around_entry(
            ROPE_INIT_FUNCTIONS,
            "llama3",
            lambda _, config, *__, **___: ROPE.compute_default_rope_parameters(config),
        ),
        "llama3.2",
    ),
    wrong(
        "longrope's short factors only",
        around_entry(
            ROPE_INIT_FUNCTIONS,
            "longrope",
            lambda make, config, *_, **__: make(config, seq_len=None),
        ),
        "phi3-longrope",
    ),
    wrong(
        "longrope unscaled",
        around_entry(ROPE_INIT_FUNCTIONS, "longrope", without_factor),
        "phi3-longrope",
    ),
    wrong(
        "yarn unscaled", around_entry(ROPE_INIT_FUNCTIONS, "yarn", without_factor), "qwen2.5-yarn"
    ),
    wrong("scores unscaled", with_values(llama.LlamaAttention, scaling=1.0), "llama"),
    wrong(
        "query_pre_attn_scalar ignored",
        with_values(gemma2.Gemma2Attention, scaling=32**-0.5),
        "gemma2",
    ),
    wrong(
        "yarn's mscale ignored",
        around(deepseek_v3, "yarn_apply_mscale", lambda _, __, scaling: scaling),
        "deepseek_v3",
    ),
    wrong(
        "softcap left out",
        with_values(gemma2.Gemma2Attention, attn_logit_softcapping=None),
        "gemma2",
    ),
    wrong(
        "final softcap left out",
        when_made(
            gemma2.Gemma2ForCausalLM,
            lambda model: setattr(model.config, "final_logit_softcapping", None),
        ),
        "gemma2",
    ),
    wrong(
        "exact gelu",
        when_made(gemma2.Gemma2MLP, lambda mlp: setattr(mlp, "act_fn", nn.GELU())),
        "gemma2",
    ),
    wrong(
        "norm weights not plus one",
        around(gemma3.Gemma3RMSNorm, "forward", lambda _, norm, x: norm._norm(x) * norm.weight),
        "gemma3",
    ),
    wrong(
        "embedding unscaled",
        around(
            gemma3.Gemma3TextScaledWordEmbedding,
            "forward",
            lambda _, embed, ids: nn.functional.embedding(ids, embed.weight),
        ),
        "gemma3",
    ),
    wrong("expert weights not normalised", with_values(ROUTER, norm_topk_prob=False), "qwen3_moe"),
    wrong("one expert only", with_values(ROUTER, top_k=1), "qwen3_moe"),
    wrong(
        "halves of experts swapped",
        around(mixtral.MixtralExperts, "_apply_gate", halves_swapped),
        "mixtral",
    ),
    wrong("routes uncorrected", around(V3_ROUTER, "forward", without_correction), "deepseek_v3"),
    wrong("routes unscaled", with_values(V3_ROUTER, routed_scaling_factor=1.0), "deepseek_v3"),
    wrong(
        "shared experts left out",
        around(
            deepseek_v2.DeepseekV2Moe,
            "forward",
            lambda original, moe, x: original(moe, x) - moe.shared_experts(x),
        ),
        "deepseek_v2",
    ),
    broken(
        "bias dropped",
        when_made(qwen2.Qwen2Attention, lambda attn: setattr(attn.q_proj, "bias", None)),
        "qwen2",
        set(),  # its own checkpoint's, too, so nothing is checked
        "stock loads the checkpoint with unexpected keys",
        UNREAD,
    ),
    broken(
        "head's bias dropped",
        when_made(phi.PhiForCausalLM, lambda model: setattr(model.lm_head, "bias", None)),
        "phi",
        set(),  # its own checkpoint's, too, so nothing is checked
        "stock loads the checkpoint with unexpected keys",
        UNREAD,
    ),
    broken(
        "norm of queries dropped",
        when_made(qwen3.Qwen3Attention, lambda attn: setattr(attn, "q_norm", nn.Identity())),
        "qwen3",
        set(),  # its own checkpoint's, too, so nothing is checked
        "stock loads the checkpoint with unexpected keys",
        UNREAD,
    ),
    wrong(
        "gate and up swapped",
        around(phi3.Phi3MLP, "forward", up_for_gate),
        "phi3",
    ),
    wrong(
        "second best token",
        around(GenerationMixin, "_get_logits_processor", second_best),
        "llama",
        WRONG_TOKENS,
    ),
)
