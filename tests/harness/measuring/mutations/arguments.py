"""Engines and releases that do not heed what they are asked: by arguments, settings or masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.generation import logits_process, stopping_criteria
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.llama import modeling_llama as llama
from transformers.models.mixtral import modeling_mixtral as mixtral

from rabbitllm import auto
from rabbitllm.model import StreamedModel
from tests.harness.measuring.mutations.breaking import (
    LOGITS,
    PARITY,
    Break,
    Mutation,
    around,
    built,
    called_with,
    gives,
    when_made,
)
from tests.harness.measuring.mutations.calls import CACHED, HEAD, MASK, cache_of, mask_changed
from tests.harness.measuring.mutations.dimensions import seen
from tests.harness.measuring.mutations.rules import SETTINGS, held
from tests.harness.measuring.mutations.stocks import wrong

FORWARD = "An argument of forward did not reach"
GENERATE = "An argument of generate did not reach"
GIVEN = "Hidden states or attentions that were asked for"
OTHER_SETTING = "The config, or the generation config, says"
PROBABILITIES = "probabilities of sampling: off by"

Change = Callable[[dict[str, Any]], dict[str, Any]]
MODEL = llama.LlamaForCausalLM


def configured(**values: Any) -> Break:
    """Have the engine's config say something else."""
    return built(lambda model: vars(model.config).update(values))


def asked(change: Change) -> Break:
    """Have it change the keywords that the model is called with."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | change(kwargs)

    return built(lambda model: model.register_forward_pre_hook(hook, with_kwargs=True) and None)


def generating(change: Change) -> Break:
    """Have it change the keywords that generate is called with."""

    def generate(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return original(model, *args, **kwargs | change(kwargs))

    return around(StreamedModel, "generate", generate)


def generation_without(name: str) -> Break:
    """Have it forget a setting of generation_config.json."""

    def load(original: Any, *args: Any) -> Any:
        settings = original(*args)
        if settings is not None:
            setattr(settings, name, None)
        return settings

    return around(auto, "load_generation_config", load)


def behind(change: Callable[[dict[str, Any], Any], Any]) -> Break:
    """Have it change what the model gives, knowing the keywords that it was called with."""

    def hook(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return change(kwargs, output)

    return built(lambda model: model.register_forward_hook(hook, with_kwargs=True) and None)


def without(*names: str) -> Change:
    return lambda kwargs: dict.fromkeys(kwargs.keys() & set(names))


def cache_unasked(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"use_cache": False} if kwargs.get("use_cache") is None else {}


def cache_refused(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"use_cache": True} if kwargs.get("use_cache") is False else {}


def cache_kept_back(kwargs: dict[str, Any], output: Any) -> Any:
    if not any(isinstance(value, Cache) for value in kwargs.values()):
        output.past_key_values = None
    return output


def grown(kwargs: dict[str, Any]) -> dict[str, Any]:
    embedded = kwargs.get("inputs_embeds")
    return {} if embedded is None else {"inputs_embeds": embedded * 1.01}


def padding_zeroed(kwargs: dict[str, Any], output: Any) -> Any:
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape == output.logits.shape[:2]:
        output.logits = output.logits * mask[..., None]
    return output


def padded_rows_exchanged(kwargs: dict[str, Any], output: Any) -> Any:
    mask = kwargs.get("attention_mask")
    if mask is not None and not mask.all():
        output.logits = output.logits.roll(1, 0)
    return output


def states(name: str, change: Callable[[tuple[Tensor, ...]], Any]) -> Callable[[Any], Any]:
    def changed(output: Any) -> Any:
        if getattr(output, name, None) is not None:
            setattr(output, name, change(getattr(output, name)))
        return output

    return changed


def cache_shortened(kwargs: dict[str, Any]) -> dict[str, Any]:
    cache = kwargs.get(cache_of(kwargs) or "")
    for layer in () if cache is None else cache.layers:
        if not layer.is_initialized:
            layer.sliding_window -= 2
    return {}


def norm_skipped(model: Any) -> None:
    """Skips the last norm where a single token is decoded."""
    model.model.norm.register_forward_hook(
        lambda _, args, output: args[0] if args[0].shape[1] == 1 else output
    )


def luck_used_up(model: Any) -> None:
    model.register_forward_pre_hook(lambda *_: torch.rand(1) is None or None)


def head_through_half(model: Any) -> None:
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].half().float(),))


ARGUMENTS = (
    seen(
        "another dtype in the config",
        configured(dtype=torch.float16),
        "split_and_load",
        "config.dtype is float16, stock's is float32",
        cause=OTHER_SETTING,
    ),
    seen(
        "other ends in the config",
        configured(eos_token_id=7),
        "split_and_load",
        "config.eos_token_id is 7, stock's is 2",
        cause=OTHER_SETTING,
    ),
    replace(
        seen(
            "use_cache off in the config",
            configured(use_cache=False),
            "arguments",
            "config.use_cache is False, stock's is True",
            cause=OTHER_SETTING,
        ),
        red=frozenset({"split_and_load", "arguments"}),
    ),
    seen(
        "padding token forgotten",
        generation_without("pad_token_id"),
        "split_and_load",
        "generation_config.pad_token_id is None, stock's is 0",
        cause=OTHER_SETTING,
    ),
    seen(
        "temperature of the settings forgotten",
        generation_without("temperature"),
        "generation_settings",
        r"generation_config.temperature is None, stock's is 0\.7",
        cause=OTHER_SETTING,
    ),
    seen(
        "no cache unless asked for",
        asked(cache_unasked),
        "arguments",
        "tokens in the cache where nothing is said",
        cause=FORWARD,
    ),
    seen(
        "a cache although none is asked for",
        asked(cache_refused),
        "arguments",
        "tokens in the cache with use_cache=False",
        cause=FORWARD,
    ),
    seen(
        "cache kept back",
        behind(cache_kept_back),
        "arguments",
        "tokens in the cache where nothing is said",
        cause=FORWARD,
    ),
    seen(
        "labels dropped",
        asked(without("labels")),
        "arguments",
        r"the loss of labels: shape \[0\]",
        cause=FORWARD,
    ),
    seen(
        "embedded tokens scaled",
        asked(grown),
        "arguments",
        "logits of inputs_embeds: off by",
        cause=FORWARD,
    ),
    seen(
        "logits at the padding lost",
        behind(padding_zeroed),
        "padded_row",
        "logits at the padding are not stock's",
        cause="Logits of a padded batch",
    ),
    seen(
        "logits of padded rows exchanged",
        behind(padded_rows_exchanged),
        "padded_row",
        r"row of \d+ tokens: off by",
        cause=HEAD,
    ),
    seen(
        "hidden states one off",
        gives(states("hidden_states", lambda given: (given[0], *given[:-1]))),
        "hidden_states",
        "the hidden state behind model.layers.0|the last hidden state",
        cause=GIVEN,
    ),
    replace(
        seen(
            "attentions in another order",
            gives(states("attentions", lambda given: given[::-1])),
            "hidden_states",
            "number 5 of them is not stock's",
            cause=GIVEN,
        ),
        backend="eager",
    ),
    seen(
        "beams dropped",
        generating(lambda kwargs: {"num_beams": 1}),
        "beams",
        "num_return_sequences",
    ),
    seen(
        "streamer and criteria dropped",
        generating(without("streamer", "stopping_criteria")),
        "sampling",
        r"what a streamer hears: shape \[0\]",
        cause=GENERATE,
    ),
    seen(
        "greedy although sampling is asked for",
        generating(lambda _: {"do_sample": False}),
        "sampling",
        PROBABILITIES,
        cause=GENERATE,
    ),
    seen(
        "fewest tokens dropped",
        generating(without("min_new_tokens")),
        "sampling",
        PROBABILITIES,
        cause=GENERATE,
    ),
    seen(
        "random numbers used up",
        built(luck_used_up),
        "sampling",
        "the same seed gives",
        cause=GENERATE,
    ),
    Mutation(
        "cache shorter than the window",
        called_with(cache_shortened),
        "mistral",
        CACHED,
        "called (without|with other) attention_mask",
        MASK,
    ),
    Mutation(
        "last norm skipped in decoding",
        built(norm_skipped),
        "llama",
        frozenset({"incremental_decoding", "left_padded"}),
        "what follows them does not",
        HEAD,
    ),
    Mutation(
        "mask turned round with flex_attention",
        mask_changed(lambda mask: 1 - mask),
        "llama",
        frozenset({"left_padded"}),
        "Diagnosis: ",
        "A layer",
        backend="flex_attention",
    ),
    Mutation(
        "head's input through float16",
        built(head_through_half),
        "llama",
        LOGITS,
        "what follows them does not",
        HEAD,
    ),
)


def unchanged(_: Any, __: Any, ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def never_ends(_: Any, __: Any, ids: Tensor, *___: Any, **____: Any) -> Tensor:
    return torch.zeros(len(ids), dtype=torch.bool)


def positions_one_more(original: Any, *args: Any, **kwargs: Any) -> Any:
    inputs = original(*args, **kwargs)
    if inputs["position_ids"].shape[1] == 1:
        inputs["position_ids"] = inputs["position_ids"] + 1
    return inputs


def called(change: Change) -> Break:
    """Have stock's forward be called with other keywords."""

    def forward(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return original(model, *args, **kwargs | change(kwargs))

    return around(MODEL, "forward", forward)


def answering(change: Callable[[Any], Any]) -> Break:
    """Have it answer otherwise."""
    return around(MODEL, "forward", lambda original, *args, **kw: change(original(*args, **kw)))


def unshifted(original: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
    output = original(*args, **kwargs)
    if labels is not None:
        output.loss = nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    return output


def next_experts(original: Any, router: Any, *args: Any) -> Any:
    *others, experts = original(router, *args)
    return (*others, (experts + 1) % len(router.weight))


def stale_tie(model: Any) -> None:
    class Stale(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return nn.functional.linear(hidden, self.weight.roll(1, 0))

    model.lm_head.__class__ = Stale


def mask_inverted(original: Any, *args: Any, **kwargs: Any) -> Any:
    module, q, k, v, mask = args
    lowest = torch.finfo(mask.dtype).min
    return original(module, q, k, v, torch.where(mask < 0, 0.0, lowest), **kwargs)


HEEDLESS = "This release's forward does not heed"
CARELESS = "This release's generate does not heed"

ARGUMENTS_OF_STOCK = (
    *(
        held(
            f"{name} ignored",
            around(getattr(logits_process, processor), "__call__", unchanged),
            "sampling",
            PROBABILITIES,
            CARELESS,
        )
        for name, processor in (
            ("temperature", "TemperatureLogitsWarper"),
            ("top_k", "TopKLogitsWarper"),
            ("top_p", "TopPLogitsWarper"),
        )
    ),
    held(
        "a row that has ended goes on",
        around(stopping_criteria.EosTokenCriteria, "__call__", never_ends),
        "sampling",
        "a row that ends with",
        CARELESS,
    ),
    held(
        "penalty of repetition ignored",
        around(logits_process.RepetitionPenaltyLogitsProcessor, "__call__", unchanged),
        "generation_config",
        r"stock's generated token \d+ is the first other one",
        SETTINGS,
        "stock-wrong",
    ),
    held(
        "beams not reordered",
        around(DynamicCache, "reorder_cache", lambda *_: None),
        "beams",
        "stock itself, log probabilities",
        "The search with beams goes astray",
    ),
    held(
        "inner hidden states exchanged",
        answering(states("hidden_states", lambda given: (given[0], *given[2:0:-1], *given[3:]))),
        "hidden_states",
        "stock itself, the hidden state behind model.layers.0",
        "Hidden states, or attentions",
        "stock-wrong",
    ),
    held(
        "loss of the same position",
        around(MODEL, "forward", unshifted),
        "arguments",
        "stock itself, the loss of labels",
        HEEDLESS,
    ),
    held(
        "use_cache=False ignored",
        called(cache_refused),
        "arguments",
        "stock itself, tokens in the cache with use_cache=False",
        HEEDLESS,
    ),
    held(
        "inputs_embeds scaled",
        called(grown),
        "arguments",
        "stock itself, logits of inputs_embeds",
        HEEDLESS,
    ),
    wrong(
        "decoding one position further",
        around(GenerationMixin, "prepare_inputs_for_generation", positions_one_more),
        "llama",
        r"generated token \d+ is the first other one",
    ),
    wrong(
        "experts one further", around(mixtral.MixtralTopKRouter, "forward", next_experts), "mixtral"
    ),
    wrong("tied head stale", when_made(MODEL, stale_tie), "llama-tied"),
    wrong(
        "softcap doubled",
        when_made(
            gemma2.Gemma2Attention, lambda attn: setattr(attn, "attn_logit_softcapping", 100.0)
        ),
        "gemma2",
    ),
    replace(
        wrong(
            "mask turned round in eager",
            around(llama, "eager_attention_forward", mask_inverted),
            "llama",
            "stock's own cached decoding is off by",
        ),
        backend="eager",
        status="reference-broken",
        red=PARITY & {"incremental_decoding", "golden"},
    ),
)
