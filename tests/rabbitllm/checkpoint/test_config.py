from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint.config import (
    causal_config,
    load_config,
    load_generation_config,
    pick_dtype,
    stock_class,
)
from rabbitllm.checkpoint.tensors import Extent, TensorEntry

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({trace!r}).write_text("ran")

class CustomConfig(LlamaConfig):
    model_type = "custom_llama"

class CustomForCausalLM(LlamaForCausalLM):
    config_class = CustomConfig
"""


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "deepseek_v3"])
def test_config_and_class_are_those_of_transformers(
    checkpoint: Callable[..., Path], architecture: str
) -> None:
    config = load_config(checkpoint(architecture), False)
    assert config.model_type == architecture
    cls = stock_class(config, checkpoint(architecture), False)
    assert cls is getattr(transformers, config.architectures[0])


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has no config\.json"):
        load_config(tmp_path, False)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", "null", '"llama"', pytest.param("[" * 100_000, id="deep"), "\xff"]
)
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_config(tmp_path, False)


@pytest.mark.parametrize("model_type", ["llama9", None, 3, ["llama"], {}])
def test_an_unknown_architecture_suggests_a_newer_transformers(
    tmp_path: Path, model_type: object
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    message = rf"config\.json names .*transformers {transformers.__version__} does not know.*pip"
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path, False)


def test_an_architecture_that_is_no_language_model_is_named(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    config = load_config(tmp_path, False)
    with pytest.raises(CheckpointError, match=rf"'vit' in {tmp_path} is no causal language model"):
        stock_class(config, tmp_path, False)


@pytest.mark.parametrize(
    ("field", "value"), [("rope_parameters", "x"), ("auto_map", 3), ("dtype", "float7")]
)
def test_a_field_of_the_wrong_type_is_named_with_its_file(
    copied: Callable[..., Path], configure: Callable[..., None], field: str, value: object
) -> None:
    folder = copied()
    configure(folder, **{field: value})
    with pytest.raises(CheckpointError, match=rf"{folder}/config\.json is no valid config of 'lla"):
        load_config(folder, False)


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("hidden_size", -64, RuntimeError),
        ("hidden_size", 2**62, RuntimeError),
        ("hidden_size", 2**70, TypeError),
        ("head_dim", 0, ZeroDivisionError),
        ("vocab_size", 0, IndexError),
        ("pad_token_id", 10**9, AssertionError),
        ("hidden_act", "swish-swash", KeyError),
        ("text_config", {"hidden_size": 3}, AttributeError),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_named(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    field: str,
    value: object,
    cause: type[Exception],
) -> None:
    folder = copied()
    configure(folder, **{field: value})
    with pytest.raises(CheckpointError, match=rf"^{folder}/config\.json is no valid ") as caught:
        streamed(folder)
    assert isinstance(caught.value.__cause__, cause)
    assert len(str(caught.value)) < 1000  # no stack of C++ frames


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**7},
        {"model_type": "qwen2", "n_layer": 10**9},
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 2**70}},
    ],
    ids=repr,
)
def test_more_layers_than_any_model_has_are_refused_before_they_are_built(
    copied: Callable[..., Path], configure: Callable[..., None], fields: dict[str, Any]
) -> None:
    folder = copied()
    configure(folder, **fields)
    with pytest.raises(CheckpointError, match=r"config\.json .*=\d+ is beyond what any model has"):
        load_config(folder, False)


@pytest.mark.parametrize(
    "fields",
    [{"vision_config": {"feature_layer": -2}}, {"vision_feature_layer": -1}, {"n_experts": 16_384}],
    ids=repr,
)
def test_what_published_configs_name_is_not_beyond_any_model(
    copied: Callable[..., Path], configure: Callable[..., None], fields: dict[str, Any]
) -> None:
    folder = copied()
    configure(folder, **fields)
    assert load_config(folder, False).model_type == "llama"


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"temperature": "warm", "max_new_tokens": "few"}',
        '{"cache_implementation": "mine"}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_malformed_generation_config_is_named(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], text: str
) -> None:
    path = copied() / "generation_config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=rf"^{path} is no valid generation config: \w+: "):
        streamed(path.parent)


@pytest.mark.parametrize(
    ("quantization", "method"),
    [({"quant_method": "hqq"}, "hqq"), ({"a": 1}, "unknown"), (3, "unk")],
)
def test_a_quantised_checkpoint_is_refused(
    copied: Callable[..., Path], configure: Callable[..., None], quantization: object, method: str
) -> None:
    folder = copied()
    configure(folder, quantization_config=quantization)
    with pytest.raises(CheckpointError, match=rf"{folder} is quantised \({method}.*unquantised"):
        load_config(folder, False)


def test_an_empty_quantisation_is_none(copied: Callable[..., Path]) -> None:
    path = copied() / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": None}))
    assert load_config(path.parent, False).model_type == "llama"


# code in the checkpoint


@pytest.fixture
def custom(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A checkpoint whose class lives in its own folder; running that leaves `tmp_path/trace`."""
    cache = str(tmp_path / "modules")
    for module in ("transformers.utils.hub", "transformers.dynamic_module_utils"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = copied()
    (folder / "custom.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    auto_map = {
        "AutoConfig": "custom.CustomConfig",
        "AutoModelForCausalLM": "custom.CustomForCausalLM",
    }
    configure(folder, model_type="custom_llama", auto_map=auto_map)
    yield folder
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_code_in_the_checkpoint_does_not_run_unless_trusted(
    custom: Path, streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"'custom_llama'.*code.*trust_remote_code=True"):
        streamed(custom)
    assert not (tmp_path / "trace").exists()


def test_a_known_architecture_loads_without_the_code_beside_it(
    custom: Path,
    configure: Callable[..., None],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
) -> None:
    configure(custom, model_type="llama")
    assert type(streamed(custom)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "trace").exists()


def test_trusted_code_streams(
    custom: Path,
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = streamed(custom, trust_remote_code=True)
    assert (tmp_path / "trace").exists()
    assert type(model).__name__ == "CustomForCausalLM"
    assert "model.layers.0" in model.streaming_plan.away("disk")
    assert torch.equal(model(prompt).logits, stock(checkpoint())(prompt).logits)


# dtype


@pytest.mark.parametrize(
    ("asked", "stated", "expected"),
    [
        ("auto", torch.bfloat16, torch.bfloat16),
        (None, torch.bfloat16, torch.bfloat16),
        ("auto", "float16", torch.float16),
        ("auto", None, torch.float64),
        ("float32", torch.bfloat16, torch.float32),
        ("torch.float16", None, torch.float16),
        (torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_dtype_is_the_asked_else_the_configs_else_the_checkpoints(
    asked: Any, stated: Any, expected: torch.dtype
) -> None:
    config = PretrainedConfig()
    config.dtype = stated
    entries = {
        "ids": TensorEntry((Extent(Path("f"), 0, 8),), torch.int64, (1,)),
        "w": TensorEntry((Extent(Path("f"), 8, 8),), torch.float64, (1,)),
    }
    assert pick_dtype(asked, config, entries) == expected


NO_FLOATS: list[Any] = [
    "int8",
    "half a float",
    "nn",
    torch.int64,
    3,
    "float8_e4m3fn",
    ["float32"],
    {"a": 1},
]


@pytest.mark.parametrize("asked", NO_FLOATS, ids=repr)
def test_what_is_no_float_dtype_is_refused(asked: Any) -> None:
    message = r"is no floating point dtype to compute in\. Pass dtype= with 'bfloat16'"
    with pytest.raises(ValueError, match=message) as caught:
        pick_dtype(asked, PretrainedConfig(), {})
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("stated", NO_FLOATS, ids=repr)
def test_a_dtype_that_the_config_states_is_the_checkpoints_fault(stated: Any) -> None:
    config = PretrainedConfig(name_or_path="some/folder")
    config.dtype = stated
    with pytest.raises(CheckpointError, match=r"\(so says some/folder\) is no floating point"):
        pick_dtype("auto", config, {})


@pytest.mark.parametrize(("model_type", "built"), [("llama4", "llama4_text"), ("gemma3", "gemma3")])
def test_a_text_model_is_built_from_the_text_part_of_a_composite_config(
    tmp_path: Path, model_type: str, built: str
) -> None:
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    config = load_config(tmp_path, False)
    part = causal_config(config, stock_class(config, tmp_path, False))
    assert (part.model_type, part.name_or_path) == (built, str(tmp_path))


SETTINGS = {"do_sample": True, "temperature": 0.3, "top_k": 7, "eos_token_id": [2, 5]}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_settings_in_config_json_count_where_there_are_no_others(
    copied: Callable[..., Path], configure: Callable[..., None], stock: Any, beside: bool
) -> None:
    folder = copied()
    configure(folder, **SETTINGS)
    if not beside:
        (folder / "generation_config.json").unlink()
    expected, found = stock(folder).generation_config, load_generation_config(folder)
    assert found is not None
    assert found.to_dict() == expected.to_dict()
    assert (found.temperature == 0.3) != beside


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_a_generation_config_that_is_no_json_is_passed_over_as_in_stock(
    copied: Callable[..., Path],
    configure: Callable[..., None],
    stock: Any,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    folder = copied()
    configure(folder, **SETTINGS)
    (folder / "generation_config.json").write_text(text, encoding="latin-1")
    expected, found = stock(folder).generation_config, load_generation_config(folder)
    assert found is not None
    assert found.to_dict() == expected.to_dict()
    assert found.temperature == 0.3
    assert f"{folder / 'generation_config.json'} is no JSON" in caplog.text


def test_settings_in_config_json_have_bounds_too(
    copied: Callable[..., Path], configure: Callable[..., None]
) -> None:
    folder = copied()
    (folder / "generation_config.json").unlink()
    configure(folder, num_beams=10**6)
    with pytest.raises(CheckpointError, match=r"config\.json is no valid generation config"):
        load_generation_config(folder)


def test_narrow_types_are_not_the_dtype_of_a_checkpoint() -> None:
    entries = {
        name: TensorEntry((), dtype, ())
        for name, dtype in {
            "a": torch.int64,
            "b": torch.float8_e4m3fn,
            "c": torch.bfloat16,
            "d": torch.float32,
        }.items()
    }
    assert pick_dtype("auto", PretrainedConfig(dtype=None), entries) == torch.bfloat16
