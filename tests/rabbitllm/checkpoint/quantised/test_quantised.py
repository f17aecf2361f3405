from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint import quantised
from rabbitllm.checkpoint.quantised import HINTS, METHODS, Quantisation, find

AFFINE = {"group_size": 64, "bits": 4}


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "FP8"}}, "fp8"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"compression_config": {"config_groups": {}}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"text_config": 3}, None),
        ({"quantization": "none"}, None),
    ],
)
def test_what_configs_say(tmp_path: Path, fields: dict[str, Any], method: str | None) -> None:
    found = find(fields, tmp_path, "here")
    assert (found and found.method) == method


@pytest.mark.parametrize(
    ("name", "settings", "method"),
    [
        ("quantize_config.json", {"bits": 4}, "gptq"),
        ("quant_config.json", {"w_bit": 4}, "awq"),
    ],
)
def test_what_older_files_say(
    tmp_path: Path, name: str, settings: dict[str, Any], method: str
) -> None:
    (tmp_path / name).write_text(json.dumps(settings))
    found = find({}, tmp_path, "here")
    assert found is not None
    assert (found.method, found.settings) == (method, settings)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name} is not valid JSON"):
        find({}, tmp_path, "here")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantization": AFFINE}, r"\(mlx\), which is not read. Take .* it was made from: .*mlx-"),
        ({"quantization_config": AFFINE}, r"\(mlx\)"),
        ({"quantization_config": {"quant_method": "exl2"}}, r"\(exl2\).* without -exl2"),
        ({"quantization_config": {"quant_method": "modelopt"}}, r"\(modelopt\).*FP8"),
        ({"quantization_config": {"quant_method": "hqq"}}, r"\(hqq\).*fp8, .* and the original"),
        ({"quantization_config": {"a": 1}}, r"\(unknown\), which is not read. Methods that are"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    fields: dict[str, Any],
    said: str,
) -> None:
    folder = copied()
    configure(folder, **fields)
    with pytest.raises(CheckpointError, match=rf"^{folder} is quantised {said}"):
        streamed(folder)


def test_a_method_is_read_or_not() -> None:
    assert METHODS.keys().isdisjoint(HINTS)


@pytest.mark.parametrize("given", [False, True])
def test_what_a_checkpoint_says_is_asked_once_in_a_load(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
    given: bool,
) -> None:
    asked = []

    def once(fields: Any, folder: Path, place: str) -> Quantisation | None:
        asked.append(folder)
        return find(fields, folder, place)

    monkeypatch.setattr(quantised, "find", once)
    folder = checkpoint()
    streamed(folder, **({"config": AutoConfig.from_pretrained(folder)} if given else {}))
    assert asked == [folder] * (2 if given else 1)  # a config of the user's says something, too
