"""The config of a checkpoint, the stock class it names, and what its own tensors say against it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.source import TensorEntry
from rabbitllm.errors import CheckpointError

logger = logging.getLogger(__name__)

INVALID = (
    StrictDataclassError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What transformers raises for a config whose fields have wrong types or values."""


class Fields(dict[str, Any]):
    """The fields of a config.json. Indexing one that is absent is an error that names it."""

    def __init__(self, fields: Mapping[str, Any], path: Path) -> None:
        super().__init__(fields)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self.path} has no {name!r}, which its {self['model_type']} needs.")


def read_fields(folder: Path) -> Fields:
    """The checkpoint's config.json, as data; its `model_type` is made a string.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: it is no transformers checkpoint.")
    try:
        fields = Fields(json.loads(path.read_text()), path)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    fields["model_type"] = str(fields.get("model_type"))
    return fields


def load_config(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    """The checkpoint's config, as the installed transformers understands it.

    That of a legacy family becomes the native config it maps to, whether its authors are trusted
    or not.

    Raises:
        CheckpointError: no config or a malformed one, an architecture that transformers does not
            know, one that needs code from the checkpoint, one that its map cannot express, or a
            quantised checkpoint.
    """
    fields = read_fields(folder)
    if quantization := fields.get("quantization_config"):
        known = isinstance(quantization, dict)
        method = quantization.get("quant_method", "unknown") if known else "unknown"
        raise CheckpointError(
            f"{folder} is quantised ({method}). Only float checkpoints stream; use the original, "
            "unquantised one."
        )
    try:
        return _config(folder, fields, trust_remote_code)
    except CheckpointError:
        raise
    except INVALID as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{fields.path} is no valid config of {fields['model_type']!r}: {reason}."
        ) from error


def _config(folder: Path, fields: Fields, trust_remote_code: bool) -> PretrainedConfig:
    config: PretrainedConfig
    if row := legacy.find(fields):
        config = row.native_config(fields)
        config.name_or_path = str(folder)
        return config
    trusted = trust_remote_code and "auto_map" in fields and legacy.row_of(fields) is None
    if fields["model_type"] not in CONFIG_MAPPING and not trusted:
        raise CheckpointError(_unknown(fields.path, fields["model_type"], "auto_map" in fields))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    return config


def stock_class(
    config: PretrainedConfig, folder: Path, trust_remote_code: bool
) -> type[PreTrainedModel]:
    """The causal language model class for this config.

    Raises:
        CheckpointError: there is none.
    """
    if type(config) in AutoModelForCausalLM._model_mapping:
        return cast(type[PreTrainedModel], AutoModelForCausalLM._model_mapping[type(config)])
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if trust_remote_code and reference:
        return cast(type[PreTrainedModel], get_class_from_dynamic_module(reference, str(folder)))
    raise CheckpointError(
        f"{config.model_type!r} in {folder} is no causal language model in transformers "
        f"{transformers.__version__}."
    )


def pick_dtype(
    asked: str | torch.dtype | None, config: PretrainedConfig, entries: Mapping[str, TensorEntry]
) -> torch.dtype:
    """The dtype of the running model's weights: asked, else the config's, else the checkpoint's.

    Raises:
        ValueError: not the name of a floating point dtype.
    """
    if asked in ("auto", None):
        asked = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if asked is None:
        floats = [entry.dtype for entry in entries.values() if entry.dtype.is_floating_point]
        asked = floats[0] if floats else torch.float32
    dtype = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"dtype={asked!r} is no floating point dtype. Use 'auto', 'bfloat16', 'float16' or "
            "'float32'."
        )
    return dtype


def repair_head_dim(
    config: PretrainedConfig,
    model: PreTrainedModel,
    recipes: list[Recipe],
    entries: Mapping[str, TensorEntry],
) -> bool:
    """Sets `head_dim` to what the checkpoint's query projections have, if the config's misfits.

    Returns:
        Whether the config was changed, so that the model must be built again.
    """
    text = config.get_text_config()
    state = model.state_dict()
    for recipe in recipes:
        name, key = recipe.targets[0], recipe.sources[0][0]
        if recipe.converter is not None or not name.endswith("q_proj.weight"):
            continue
        rows = entries[key].shape[0]
        if rows == state[name].shape[0] or rows % text.num_attention_heads:
            return False
        stated, found = getattr(text, "head_dim", None), rows // text.num_attention_heads
        logger.warning(
            "The config says head_dim=%s, but %s has %d rows for %d heads: using head_dim=%d.",
            stated,
            key,
            rows,
            text.num_attention_heads,
            found,
        )
        text.head_dim = found
        return True
    return False


def _unknown(path: Path, model_type: object, has_code: bool) -> str:
    if has_code:
        return (
            f"{path} names the model type {model_type!r}, which only code in the checkpoint "
            "defines. If you trust its authors, "
            "pass trust_remote_code=True."
        )
    return (
        f"{path} names the model type {model_type!r}, which transformers "
        f"{transformers.__version__} does not know. "
        "A newer transformers may: pip install -U transformers."
    )
