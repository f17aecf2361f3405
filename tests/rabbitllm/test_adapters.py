"""Adapters that are found in a folder; that peft loads them is shown in `ecosystem`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rabbitllm import CheckpointError, StreamedModel, adapters
from rabbitllm.adapters import WEIGHTS, Adapter, find_adapter
from rabbitllm.checkpoint.mistaken import ADAPTER


@pytest.fixture
def with_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: object())


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)


def write(folder: Path, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ADAPTER).write_text(json.dumps(settings))
    (folder / WEIGHTS).touch()
    return folder


@pytest.mark.usefixtures("with_peft")
def test_an_adapter_alone_names_its_base(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", base_model_name_or_path="some/base")
    assert find_adapter(folder) == Adapter(folder, "some/base", "")
    assert find_adapter(tmp_path, "a") == Adapter(folder, "some/base", "")


@pytest.mark.usefixtures("with_peft")
def test_an_adapter_beside_weights_is_for_those(tmp_path: Path) -> None:
    folder = write(tmp_path, base_model_name_or_path="some/base")
    (folder / "config.json").touch()
    assert find_adapter(folder) == Adapter(folder, folder, "")


@pytest.mark.usefixtures("with_peft")
def test_where_there_is_none_nothing_is_found(tmp_path: Path) -> None:
    assert find_adapter(tmp_path) is None


@pytest.mark.usefixtures("with_peft")
def test_a_repository_that_cannot_be_had_is_named() -> None:
    with pytest.raises(CheckpointError, match="org/name is not, or not whole, in the local cache"):
        find_adapter("org/name")


@pytest.mark.usefixtures("with_peft")
@pytest.mark.parametrize("settings", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_without_a_base_is_named(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="does not say which model the adapter is for"):
        find_adapter(write(tmp_path, **settings))


@pytest.mark.usefixtures("with_peft")
def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / ADAPTER).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{ADAPTER} is malformed"):
        find_adapter(tmp_path)


@pytest.mark.usefixtures("with_peft")
def test_an_adapter_in_a_pickle_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, base_model_name_or_path="b") / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="in a pickle is not read"):
        find_adapter(tmp_path)


@pytest.mark.usefixtures("without_peft")
def test_without_peft_weights_load_alone_with_a_warning(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write(copied())
    with caplog.at_level(logging.WARNING, "rabbitllm"):
        streamed(folder)
    assert f"{folder} holds an adapter beside its weights" in caplog.text


@pytest.mark.usefixtures("without_peft")
def test_without_peft_an_adapter_alone_says_what_to_do(
    tmp_path: Path, streamed: Callable[..., StreamedModel]
) -> None:
    with pytest.raises(CheckpointError, match=r"is an adapter \(LoRA\) for b, .*pip install peft"):
        streamed(write(tmp_path, base_model_name_or_path="b"))
