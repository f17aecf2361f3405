from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rabbitllm import StreamedModel
from rabbitllm.attention import CHAIN, build_with_attention, candidates, check_backend

CPU = torch.device("cpu")
AVAILABLE, MISSING = (True, "NVIDIA H100"), (False, "the flash-attn package is not installed")
INITIALIZED = "Model initialized with attn_implementation='{}'"


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[bool, str]], None]:
    """`flash(result)`: what `is_flash_attention_available` says."""

    def say(result: tuple[bool, str]) -> None:
        monkeypatch.setattr("rabbitllm.attention.is_flash_attention_available", lambda _: result)

    return say


def build(refused: str = "", replaced: dict[str, str] | None = None) -> Callable[[str], Any]:
    """Builds a model that refuses some backends and silently replaces others."""

    def make(name: str) -> Any:
        if name in refused.split():
            raise ValueError(f"no {name} for this model\nand more lines")
        if name == "unheard_of":
            raise ImportError("")
        return SimpleNamespace(
            config=SimpleNamespace(_attn_implementation=(replaced or {}).get(name, name))
        )

    return make


def chosen(make: Callable[[str], Any], asked: str, dtype: torch.dtype = torch.bfloat16) -> str:
    return str(build_with_attention(make, asked, CPU, dtype).config._attn_implementation)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", ["flash_attention_2", "sdpa", "eager"]),
        ("flash_attention_2", ["flash_attention_2", "sdpa", "eager"]),
        ("sdpa", ["sdpa", "eager"]),
        ("eager", ["eager", "sdpa"]),
        ("flex_attention", ["flex_attention", "sdpa", "eager"]),
    ],
)
def test_the_asked_backend_comes_first_and_the_chain_behind(
    flash: Callable[..., None], asked: str, expected: list[str]
) -> None:
    flash(AVAILABLE)
    assert candidates(asked, CPU, torch.float16) == (expected, None)


@pytest.mark.parametrize("asked", ["auto", "flash_attention_2"])
def test_without_flash_attention_the_reason_is_kept(flash: Callable[..., None], asked: str) -> None:
    flash(MISSING)
    assert candidates(asked, CPU, torch.float16) == (["sdpa", "eager"], MISSING[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flash_attention_needs_half_precision(
    flash: Callable[..., None], dtype: torch.dtype
) -> None:
    flash(AVAILABLE)
    name = str(dtype).removeprefix("torch.")
    reason = f"it needs float16 or bfloat16, not {name}"
    assert candidates("auto", CPU, dtype) == (["sdpa", "eager"], reason)


def test_flash_attention_that_works_is_logged(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rabbitllm")
    flash(AVAILABLE)
    assert chosen(build(), "auto") == "flash_attention_2"
    assert caplog.messages == [
        "Attention: Flash Attention 2 available on NVIDIA H100",
        INITIALIZED.format("flash_attention_2"),
    ]


def test_without_it_auto_says_why_and_what_runs(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rabbitllm")
    flash(MISSING)
    assert chosen(build(), "auto") == "sdpa"
    assert caplog.messages == [
        f"Flash Attention not available: {MISSING[1]}. Using SDPA",
        INITIALIZED.format("sdpa"),
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_model_that_refuses_flash_attention_runs_sdpa(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rabbitllm")
    flash(AVAILABLE)
    assert chosen(build("flash_attention_2"), "auto") == "sdpa"
    why = "flash_attention_2: no flash_attention_2 for this model"
    assert f"Flash Attention not available: {why}. Using SDPA" in caplog.messages


def test_a_model_that_refuses_sdpa_too_runs_eager(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rabbitllm")
    flash(MISSING)
    assert chosen(build("sdpa"), "auto") == "eager"
    assert caplog.messages == [
        f"Flash Attention not available: {MISSING[1]}. Using eager",
        INITIALIZED.format("eager"),
    ]


@pytest.mark.parametrize(
    ("asked", "refused", "runs", "why"),
    [
        ("flash_attention_2", "", "sdpa", MISSING[1]),
        ("flash_attention_2", "sdpa", "eager", MISSING[1]),
        ("sdpa", "sdpa", "eager", "sdpa: no sdpa for this model"),
        ("flex_attention", "flex_attention", "sdpa", "flex_attention: no flex_attention for this"),
        ("eager", "eager", "sdpa", "eager: no eager for this model"),
        ("unheard_of", "", "sdpa", "unheard_of: "),
    ],
)
def test_a_forced_backend_that_is_unavailable_warns_with_the_reason(
    flash: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    asked: str,
    refused: str,
    runs: str,
    why: str,
) -> None:
    flash(MISSING)
    assert chosen(build(refused), asked) == runs
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"attn_implementation='{asked}' is not available ({why}" in record.getMessage()
    assert record.getMessage().endswith(f"Using '{runs}'.")


def test_a_forced_backend_that_works_is_silent(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    flash(MISSING)
    for name in ("sdpa", "eager", "flex_attention"):
        assert chosen(build(), name) == name
    assert caplog.messages == []


def test_a_backend_that_the_model_replaces_warns(
    flash: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    flash(MISSING)
    assert chosen(build(replaced={"sdpa": "eager"}), "sdpa") == "eager"
    assert caplog.messages == [
        "attn_implementation='sdpa' is not available (the model replaced it). Using 'eager'."
    ]


def test_a_model_that_accepts_nothing_is_an_error(flash: Callable[..., None]) -> None:
    flash(MISSING)
    with pytest.raises(ValueError, match="no eager for this model"):
        chosen(build("sdpa eager"), "auto")


# real models


@pytest.mark.parametrize("asked", ["sdpa", "eager", "auto"])
def test_the_active_backend_is_what_the_model_runs(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], asked: str
) -> None:
    model = streamed(checkpoint(), attn_implementation=asked)
    expected = "sdpa" if asked == "auto" else asked
    assert model.active_attention_implementation == expected
    assert model.config._attn_implementation == expected
    assert model.model.layers[0].self_attn.config._attn_implementation == expected


def test_flash_attention_on_a_cpu_falls_to_sdpa(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = streamed(checkpoint(), attn_implementation="flash_attention_2")
    assert model.active_attention_implementation == "sdpa"
    assert "attn_implementation='flash_attention_2' is not available" in caplog.text


PARTS = {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"}


@pytest.mark.parametrize("way", ["argument", "config"])
def test_parts_of_a_model_have_backends_of_their_own(
    streamed: Callable[..., StreamedModel], tmp_path: Path, way: str
) -> None:
    geometry = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = geometry | {"vocab_size": 64, "num_hidden_layers": 4, "num_key_value_heads": 1}
    vision = geometry | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    if way == "argument":
        options: dict[str, Any] = {"attn_implementation": PARTS}
    else:
        config._attn_implementation = PARTS
        options = {"config": config}
    model = streamed(tmp_path, **options)
    found = model.config
    assert {name: getattr(found, name)._attn_implementation for name in list(PARTS)[1:]} == {
        "text_config": "eager",
        "vision_config": "sdpa",
    }
    assert model.active_attention_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"'egaer' is not known\. Did you mean 'eager'"):
        streamed(tmp_path, attn_implementation=PARTS | {"text_config": "egaer"})


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21.1"), reason="accepts sdpa, without softcap"
)
def test_gemma2_refuses_sdpa_and_runs_eager(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = streamed(checkpoint("gemma2"), attn_implementation="sdpa")
    assert model.active_attention_implementation == "eager"
    assert "attn_implementation='sdpa' is not available (sdpa: " in caplog.text
    reference = stock(checkpoint("gemma2"), attn_implementation="eager")
    assert torch.equal(model(prompt).logits, reference(prompt).logits)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("sdap", "sdpa"),
        ("eagre", "eager"),
        ("flash_attn_2", "flash_attention_2"),
        ("pagd|eager", "paged|eager"),
    ],
)
def test_a_mistyped_backend_is_an_error_that_names_the_nearest(asked: str, meant: str) -> None:
    with pytest.raises(
        ValueError, match=rf"is not known\. Did you mean {re.escape(repr(meant))}\?"
    ):
        check_backend(asked)


@pytest.mark.parametrize(
    "asked",
    [
        "auto",
        *CHAIN,
        "flex_attention",
        "paged|eager",
        "paged|sdpa",
        "kernels-community/flash-attn3",
    ],
)
def test_every_backend_of_stock_may_be_asked_for(asked: str) -> None:
    check_backend(asked)


def test_a_backend_that_was_registered_may_be_asked_for() -> None:
    with pytest.raises(ValueError, match="'my_own' is not known"):
        check_backend("my_own")
    transformers.AttentionInterface.register("my_own", lambda *_: None)
    try:
        check_backend("my_own")
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["my_own"]
