"""The engine is broken on purpose: each time the checks go red that must, and name the cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from harness.judging.causes import explanation, load_causes
from harness.matrix import CHECKS
from harness.measuring.cell import Measurement, measure
from harness.measuring.contract import text_blocks
from harness.records import FAILED
from rabbitllm import prepare
from rabbitllm.streaming import engine, pipeline
from rabbitllm.streaming.devices import CudaTransfer, Transfer
from rabbitllm.streaming.pipeline import Pipeline

Patch = pytest.MonkeyPatch
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

PARITY = {"prefill_parity", "incremental_decoding", "cache_fill", "left_padded", "golden"}
RUNNING = set(CHECKS) - {"split_and_load", "speed"}
"""What runs the model."""


def change_model(patch: Patch, change: Callable[[Any], None]) -> None:
    """Have the engine change every model that it builds."""
    original = prepare._skeleton

    def changed(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        change(model)
        return model

    patch.setattr(prepare, "_skeleton", changed)


def change_recipes(patch: Patch, change: Callable[[dict[str, Any]], None]) -> None:
    """Have the engine change how checkpoint keys become parameters."""
    original = prepare.recipes_for

    def changed(*args: Any, **kwargs: Any) -> Any:
        recipes = original(*args, **kwargs)
        change({recipe.targets[0]: recipe for recipe in recipes})
        return recipes

    patch.setattr(prepare, "recipes_for", changed)


def change_reading(patch: Patch, change: Callable[..., None]) -> None:
    """Have the engine read stages by `change(original, transfer, stage, buffer)`."""
    original = Transfer.read
    patch.setattr(Transfer, "read", lambda *given: change(original, *given))


def batch_stripped(patch: Patch) -> None:
    def change(model: Any) -> None:
        for block in text_blocks(model).values():
            block.register_forward_hook(lambda _block, _args, output: output[0])

    change_model(patch, change)


def wrong_cache_keyword(patch: Patch) -> None:
    def rename(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keyword = cache_keyword(kwargs)
        if keyword is None:
            return None
        return args, kwargs | {"past_key_value": kwargs[keyword], keyword: None}

    def change(model: Any) -> None:
        for block in text_blocks(model).values():
            block.register_forward_pre_hook(rename, with_kwargs=True)

    change_model(patch, change)


def cache_keyword(kwargs: dict[str, Any]) -> str | None:
    """Up to 5.23 it is past_key_values, from 5.24 cache."""
    return next((n for n, value in kwargs.items() if isinstance(value, transformers.Cache)), None)


def stale_weights(patch: Patch) -> None:
    def change(original: Any, transfer: Transfer, stage: Any, buffer: torch.Tensor) -> None:
        if stage.name != "model.layers.2":  # its slot still holds an earlier layer
            original(transfer, stage, buffer)

    change_reading(patch, change)


def layers_swapped(patch: Patch) -> None:
    def change(recipes: dict[str, Any]) -> None:
        for name, one in recipes.items():
            if ".layers.1." in name:
                other = recipes[name.replace(".layers.1.", ".layers.2.")]
                one.sources, other.sources = other.sources, one.sources

    change_recipes(patch, change)


def positions_shifted(patch: Patch) -> None:
    def shift(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        if ids.shape[1] > 1:
            return None
        keyword = cache_keyword(kwargs)
        assert keyword is not None
        past = kwargs[keyword].get_seq_length()
        return args, kwargs | {"position_ids": torch.full_like(ids, past + 1)}

    change_model(
        patch, lambda m: m.base_model.register_forward_pre_hook(shift, with_kwargs=True) and None
    )


def head_dim_from_hidden_size(patch: Patch) -> None:
    def repair(config: Any, *_: object) -> bool:
        config.head_dim = config.hidden_size // config.num_attention_heads
        return True

    patch.setattr(prepare, "repair_head_dim", repair)


def head_dim_of_the_modules(patch: Patch) -> None:
    def change(model: Any) -> None:
        for block in text_blocks(model).values():
            block.self_attn.head_dim = 16

    change_model(patch, change)


def rounded_frequencies(patch: Patch) -> None:
    original = engine._place_buffers

    def changed(model: nn.Module, *rest: Any) -> None:
        original(model, *rest)
        for name, buffer in model.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.bfloat16())

    patch.setattr(engine, "_place_buffers", changed)


def tie_lost(patch: Patch) -> None:
    def change(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.all_tied_weights_keys = {}

    change_model(patch, change)


def head_not_loaded(patch: Patch) -> None:
    def change(original: Any, transfer: Transfer, stage: Any, buffer: torch.Tensor) -> None:
        original(transfer, stage, buffer)
        if stage.name == "lm_head":
            buffer.zero_()

    change_reading(patch, change)


def experts_swapped(patch: Patch) -> None:
    def change(recipes: dict[str, Any]) -> None:
        recipe = next(r for n, r in recipes.items() if n.endswith("layers.2.mlp.experts.down_proj"))
        first, second = (
            next(i for i, (key, _) in enumerate(recipe.sources) if f".experts.{n}." in key)
            for n in (3, 5)
        )
        sources = recipe.sources
        sources[first], sources[second] = sources[second], sources[first]

    change_recipes(patch, change)


def prefetch_one_off(patch: Patch) -> None:
    following: dict[int, Any] = {}
    original = Pipeline.__init__

    def init(self: Pipeline, *given: Any) -> None:
        original(self, *given)
        order = self._lanes[0].ring
        ring = order.ahead(len(order))
        following.update(zip(map(id, ring), ring[1:] + ring[:1], strict=True))

    def change(original: Any, transfer: Transfer, stage: Any, buffer: torch.Tensor) -> None:
        original(transfer, following.get(id(stage), stage), buffer)

    patch.setattr(Pipeline, "__init__", init)
    change_reading(patch, change)


def weights_kept(patch: Patch) -> None:
    original = pipeline.bind

    def bind(stage: Any, parameters: Any) -> Any:
        idle = any(parameter.is_meta for parameter in parameters)
        return list(parameters) if idle else original(stage, parameters)

    patch.setattr(pipeline, "bind", bind)


def weights_not_bound(patch: Patch) -> None:
    patch.setattr(pipeline, "bind", lambda _stage, parameters: list(parameters))


def backend_ignored(patch: Patch) -> None:
    original = prepare.build_with_attention
    patch.setattr(
        prepare, "build_with_attention", lambda build, _, *rest: original(build, "eager", *rest)
    )


def mask_lost(patch: Patch) -> None:
    def lose(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"attention_mask": None}

    change_model(
        patch, lambda m: m.base_model.register_forward_pre_hook(lose, with_kwargs=True) and None
    )


@dataclass(frozen=True)
class Mutation:
    """One way to break the engine.

    Attributes:
        engine: breaks it.
        architecture: where it shows.
        red: the checks that must fail, and no others but greedy generation: small differences may
            or may not choose another token.
        message: regular expression in what the cell says.
        cause: beginning of the sentence that explains it.
    """

    engine: Callable[[Patch], None]
    architecture: str
    red: set[str]
    message: str
    cause: str


MUTATIONS = (
    Mutation(
        batch_stripped,
        "qwen2",
        RUNNING,
        r"tensor a \(14\) must match the size of tensor b \(64\)",
        "The batch dimension was lost",
    ),
    Mutation(
        wrong_cache_keyword,
        "llama",
        {"incremental_decoding", "cache_fill", "left_padded"},
        r"model\.layers\.0 was called without (past_key_values|cache)",
        "The cache did not reach a layer",
    ),
    Mutation(
        stale_weights,
        "llama",
        PARITY,
        r"Diagnosis: model\.layers\.2 ran with the weights of model\.layers\.0\.",
        "A layer computes with another layer's weights",
    ),
    Mutation(
        layers_swapped,
        "llama",
        PARITY,
        r"model\.layers\.1 and model\.layers\.2 ran with each other's weights",
        "Two layers are swapped",
    ),
    Mutation(
        positions_shifted,
        "llama",
        {"incremental_decoding", "cache_fill", "left_padded"},
        r"model\.layers\.0 was called with other .*position_ids",
        "A layer gets other positions",
    ),
    Mutation(
        head_dim_from_hidden_size,
        "qwen3",
        {"split_and_load"},
        r"[qk]_(proj|norm)\.weight has shape .* in the checkpoint, but the config",
        "head_dim is wrong",
    ),
    Mutation(
        head_dim_of_the_modules,
        "qwen3",
        RUNNING,
        r"self_attn\.head_dim is 16, stock's is 32",
        "head_dim is wrong",
    ),
    Mutation(
        rounded_frequencies,
        "llama",
        PARITY,
        r"inv_freq differs from stock's, rounded to bfloat16",
        "The rotary frequencies were rounded",
    ),
    Mutation(
        tie_lost,
        "llama-tied",
        {"split_and_load"},
        r"tensors are missing from the checkpoint",
        "The checkpoint holds no head",
    ),
    Mutation(
        head_not_loaded,
        "llama",
        {"prefill_parity", "incremental_decoding", "left_padded", "tied_head"},
        "what follows them does not",
        "Head and embedding are not what",
    ),
    Mutation(
        experts_swapped,
        "qwen3_moe",
        PARITY,
        r"model\.layers\.2\.mlp\.experts\.down_proj has experts 3 and 5 exchanged",
        "Experts of a mixture are in the wrong order",
    ),
    Mutation(
        prefetch_one_off,
        "llama",
        PARITY | {"tied_head"},
        r"each of 3 blocks ran with the weights of the one 1 behind it",
        "Every layer computes with its neighbour's weights",
    ),
    Mutation(
        weights_kept,
        "llama",
        {"residency"},
        r"after the forward model\.layers\.0, .* still hold weights",
        "Weights stay in memory",
    ),
    Mutation(
        weights_not_bound,
        "llama",
        RUNNING,
        "is used while it is not in memory",
        "A module ran",
    ),
    Mutation(
        backend_ignored,
        "llama",
        {"split_and_load"} | PARITY,
        "it runs eager, asked for sdpa",
        "The model fell back",
    ),
    Mutation(
        mask_lost,
        "llama",
        {"left_padded"},
        "without attention_mask",
        "A layer gets another attention mask",
    ),
)


def red(found: Measurement) -> set[str]:
    return {name for name, result in found.checks.items() if result.status in FAILED}


@pytest.fixture(scope="session")
def sound(cell, tmp_path_factory):
    """Measure an architecture with the engine as it is, once."""
    made: dict[str, Measurement] = {}

    def measured(architecture: str) -> Measurement:
        if architecture not in made:
            made[architecture] = measure(
                small(cell(architecture)), tmp_path_factory.mktemp("sound")
            )
        return made[architecture]

    return measured


def small(cell: Any, checks: tuple[str, ...] = CHECKS) -> Any:
    """Return the cell without what only times."""
    row = replace(cell.architecture, checks=tuple(c for c in checks if c != "speed"))
    return replace(cell, release=transformers.__version__, architecture=row)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.engine.__name__)
def test_a_broken_engine_is_seen_and_named(
    mutation: Mutation, sound, cell, tmp_path: Path, monkeypatch
):
    before = sound(mutation.architecture)
    assert (before.status, before.message) == ("pass", "")
    mutation.engine(monkeypatch)
    found = measure(small(cell(mutation.architecture)), tmp_path)
    assert mutation.red <= red(found) <= mutation.red | {"greedy_generation"}
    assert re.search(mutation.message, found.message), found.message
    assert explanation(found.exception, found.message).startswith(mutation.cause)


def test_each_cause_is_one_that_is_known():
    starts = {mutation.cause for mutation in MUTATIONS}
    assert all(any(cause.sentence.startswith(start) for cause in load_causes()) for start in starts)
    assert len(MUTATIONS) >= 10


def test_a_cause_has_one_fingerprint_wherever_it_shows(cell, tmp_path, monkeypatch):
    layers_swapped(monkeypatch)
    prefill = ("split_and_load", "prefill_parity")
    swapped = [
        measure(small(cell(architecture, backend), prefill), tmp_path).fingerprint
        for architecture, backend in (("llama", "eager"), ("mistral", "sdpa"))
    ]
    assert swapped[0] == swapped[1] != ""
    monkeypatch.undo()
    stale_weights(monkeypatch)
    assert measure(small(cell("llama"), prefill), tmp_path).fingerprint not in (swapped[0], "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_missing_wait_on_the_copy_event_is_seen(cell, tmp_path, monkeypatch):
    copy = CudaTransfer._copy

    def late(self: CudaTransfer, *args: Any) -> None:
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(20_000_000)  # copies of tiny layers are too quick to be missed
        copy(self, *args)

    def wait(self: CudaTransfer, slot: Any) -> None:
        slot.load.arrival.result()

    monkeypatch.setattr(CudaTransfer, "_copy", late)
    here = replace(small(cell("llama")), device="cuda")
    before = measure(here, tmp_path)
    assert (before.status, before.message) == ("pass", "")
    monkeypatch.setattr(CudaTransfer, "wait", wait)
    found = measure(here, tmp_path)
    assert "prefill_parity" in red(found)
    assert "arrived" in explanation(found.exception, found.message), found.message
