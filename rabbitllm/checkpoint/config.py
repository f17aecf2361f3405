"""The config of a checkpoint, and the stock class and dtype that it names."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from json import JSONDecodeError
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rabbitllm.checkpoint import legacy, quantised
from rabbitllm.checkpoint.plain_json import read_settings
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.errors import CheckpointError, summary

logger = logging.getLogger(__name__)

INVALID = (
    StrictDataclassError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
"""What transformers and torch raise for fields of wrong types or values, or at odds with another.

Neither checks them all before it computes with them: a name that is none is a KeyError, 0 heads a
ZeroDivisionError, a padding token beyond the vocabulary an AssertionError, a negative size or one
that no memory holds torch's RuntimeError. OSError, ImportError and MemoryError are not among them,
for they tell of the machine.
"""
COUNTS = re.compile(r"(^|_)(layers?|blocks|cycles|experts|labels)$")
MOST = 100_000
"""Of what `COUNTS` matches, for configs make lists of them; models have 16,384 experts at most.

How many a checkpoint has tensors for is counted while the model is built, see `rehearsal`.
"""
MOST_OF = {"num_": 1000, "prompt_lookup_num_": 1000, "max_": 2**24, "min_": 2**24}
"""Beginnings of fields of a generation config that memory grows with: beams, drafts and tokens."""
AMOUNTS = re.compile("|".join(MOST_OF))
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What models compute in; torch has narrower types, for storage."""


class Fields(dict[str, Any]):
    """The fields of a config.json. Indexing one that is absent is an error that names it.

    Attributes:
        path: the file.
        place: what to name when the config made of them is not valid.
    """

    def __init__(self, fields: Mapping[str, Any], path: Path) -> None:
        super().__init__(fields)
        self.path = path
        self.place = str(path)

    @cached_property
    def quantisation(self) -> quantised.Quantisation | None:
        """How the checkpoint is quantised; raises CheckpointError if it is in a way not read."""
        return quantised.find(self, self.path.parent, str(self.path.parent))

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
        fields = Fields(read_settings(path), path)
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
    return load_changed_config(folder, trust_remote_code, {})[0]


def load_changed_config(
    folder: Path, trust_remote_code: bool, changes: Mapping[str, Any]
) -> tuple[PretrainedConfig, Fields, set[str]]:
    """As `load_config`, with other values of some attributes.

    Returns:
        The config, the fields of its file, and the names of changes that are no attributes.

    Raises:
        CheckpointError: as `load_config`; also where the changes make it invalid.
    """
    fields = read_fields(folder)
    if changes:
        fields.place += " with " + ", ".join(f"{name}={changes[name]!r}" for name in changes)
    _ = fields.quantisation  # one that is not read is refused before its config is understood
    with valid_config(fields):
        _check_counts(fields)
        config, unused = _config(folder, fields, trust_remote_code, changes)
        _check_sizes(config)
    _forget_quantisation(config)
    return config, fields, changes.keys() & unused.keys()


def take_config(config: PretrainedConfig, folder: Path) -> tuple[PretrainedConfig, Fields]:
    """A copy of a config that stands in for the checkpoint's own, and the fields of both.

    The fields are the checkpoint's, which say what its tensors are named, if it has any.

    Raises:
        CheckpointError: it is not valid, or of a quantised model.
    """
    has_own = (folder / "config.json").is_file()
    fields = read_fields(folder) if has_own else Fields(config.to_dict(), folder / "config.json")
    fields.place = "config="
    quantised.find(config.to_dict(), folder, fields.place)  # its own word, not the checkpoint's
    with valid_config(fields):
        _check_sizes(config)
    taken = deepcopy(config)
    taken.name_or_path = str(folder)
    _forget_quantisation(taken)
    return taken, fields


def _forget_quantisation(config: PretrainedConfig) -> None:
    """The model computes with weights that are not quantised, as stock's with `dequantize=True`."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name in quantised.CONFIGS:
            vars(part or config).pop(name, None)


def load_generation_config(folder: Path) -> GenerationConfig | None:
    """The checkpoint's own settings for generating, as stock finds them.

    Those of generation_config.json; where there is none, or no JSON in it, those of config.json,
    which a model's config no longer has. None if the folder has neither, or the config of a legacy
    family, whose fields mean something else.

    Raises:
        CheckpointError: they are malformed.
    """
    path = folder / "generation_config.json"
    options: dict[str, Any] = {}
    if not path.is_file() or _is_garbled(path):
        path = folder / "config.json"
        options = {"config_file_name": path.name, "_from_model_config": True}
        if not path.is_file() or legacy.find(read_fields(folder)):
            return None
    try:
        if not options:
            _check_amounts(read_settings(path))
        settings = GenerationConfig.from_pretrained(folder, **options)
        _check_amounts(settings.to_dict())
    except (*INVALID, OSError) as error:
        raise CheckpointError(f"{path} is no valid generation config: {summary(error)}") from error
    return settings


def _is_garbled(path: Path) -> bool:
    """Whether a file of settings is no JSON at all, which then is said."""
    try:
        read_settings(path)
    except (JSONDecodeError, UnicodeDecodeError) as error:
        logger.warning("%s is no JSON (%s): as in transformers, it is ignored.", path, error)
        return True
    except (ValueError, RecursionError):
        pass  # that it is too much, whoever reads it says
    return False


@contextmanager
def valid_config(fields: Fields) -> Iterator[None]:
    """Turns an error over a config, or in a model's own constructor, into one that names the file.

    Raises:
        CheckpointError: for anything that `INVALID` lists.
    """
    try:
        yield
    except CheckpointError:
        raise
    except INVALID as error:
        raise CheckpointError(
            f"{fields.place} is no valid config of {fields['model_type']!r}: {summary(error)}"
        ) from error


def _check_counts(fields: Mapping[str, Any]) -> None:
    for name, value in _numbers(fields):
        if value > MOST and COUNTS.search(name):
            raise ValueError(f"{name}={value} is beyond what any model has")


def _check_sizes(config: PretrainedConfig) -> None:
    _check_counts(config.to_dict())  # some are derived from others
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise ValueError(f"a model has layers, but it names {layers}")


def _check_amounts(settings: Mapping[str, Any]) -> None:
    for name, value in _numbers(settings):
        if (kind := AMOUNTS.match(name)) and value > MOST_OF[kind[0]]:
            raise ValueError(f"{name}={value} is beyond what any model is published with")


def _numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a config and the configs in it, with their names."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def _config(
    folder: Path, fields: Fields, trust_remote_code: bool, changes: Mapping[str, Any]
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The config with these changes, and those that it has no attribute for."""
    config: PretrainedConfig
    unused: dict[str, Any] = {}
    if row := legacy.find(fields):
        config = row.native_config(fields)
        if changes:
            own = config.to_dict()
            config, unused = type(config).from_dict(own, return_unused_kwargs=True, **changes)
        config.name_or_path = str(folder)
        return config, unused
    trusted = trust_remote_code and "auto_map" in fields and legacy.row_of(fields) is None
    if fields["model_type"] not in CONFIG_MAPPING and not trusted:
        raise CheckpointError(_unknown(fields.path, fields["model_type"], "auto_map" in fields))
    config, unused = AutoConfig.from_pretrained(
        folder, trust_remote_code=trusted, return_unused_kwargs=True, **changes
    )
    return config, unused


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


def causal_config(config: PretrainedConfig, cls: type[PreTrainedModel]) -> PretrainedConfig:
    """The part of a checkpoint's config that the class is built from.

    As in `AutoModelForCausalLM`: where the config is composite and the class is that of its text
    part, the text part.
    """
    part = config.sub_configs.get("text_config")
    if part is None or getattr(cls, "config_class", None) is not part:
        return config
    text = config.get_text_config()
    text.name_or_path = config.name_or_path
    return text


def pick_dtype(
    asked: str | torch.dtype | None, config: PretrainedConfig, entries: Mapping[str, TensorEntry]
) -> torch.dtype:
    """The dtype of the running model's weights: asked, else the config's, else the checkpoint's.

    The checkpoint's is that of the first tensor in a dtype to compute in, as stock counts: in the
    order of `entries`.

    Raises:
        ValueError: `asked` is no floating point dtype that models compute in, nor its name.
        CheckpointError: the config's or the checkpoint's is none.
    """
    kind: type[ValueError] = ValueError
    place = ""
    if asked in ("auto", None):
        kind, place = CheckpointError, f" (so says {config.name_or_path})"
        asked = getattr(config, "dtype", None)
    if asked is None:
        floats = (entry.dtype for entry in entries.values())
        asked = next((dtype for dtype in floats if dtype in FLOATS), torch.float32)
    dtype = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if dtype not in FLOATS:
        raise kind(
            f"dtype={asked!r}{place} is no floating point dtype to compute in. Pass dtype= with "
            "'bfloat16', 'float16' or 'float32'."
        )
    return dtype


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
