"""Adapters (LoRA) beside a checkpoint's weights, or given in place of one: peft loads them.

As in stock: where the folder has no config.json of its own, the base is what the adapter names.
"""

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rabbitllm.checkpoint.hub import CACHED, Download, fetch_if_there, local_folder
from rabbitllm.checkpoint.mistaken import ADAPTER
from rabbitllm.checkpoint.plain_json import MALFORMED, read_settings
from rabbitllm.errors import CheckpointError, summary

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        folder: where its files are.
        base: the model that it is for.
        subfolder: where in `base` that lies.
    """

    folder: Path
    base: str | os.PathLike[str]
    subfolder: str


def find_adapter(
    model: str | os.PathLike[str],
    subfolder: str = "",
    token: str | bool | None = None,
    download: Download = CACHED,
) -> Adapter | None:
    """The adapter in a model's folder or hub repository; None if there is none to load.

    Without peft, weights beside an adapter are loaded alone, with a warning.

    Args:
        model: a folder, or a repository's id.
        subfolder: where in it the model lies.
        token: as huggingface_hub takes it.
        download: which revision of a repository, and from where.

    Raises:
        CheckpointError: its files are malformed, or name no base, or its weights are a pickle; or a
            repository cannot be had.
    """
    peft = find_spec("peft") is not None
    found: Path | None = Path(model).expanduser() / subfolder
    if peft and not Path(model).expanduser().exists() and local_folder(model) is None:
        found = fetch_if_there(os.fspath(model), WEIGHTS, ADAPTER, token, download, subfolder)
    if found is None or not (found / ADAPTER).is_file():
        return None
    folder = found
    whole = (folder / "config.json").is_file()
    if not peft:
        if whole:
            logger.warning(
                "%s holds an adapter beside its weights, which peft would load: pip install peft. "
                "Without it the weights are loaded alone.",
                folder,
            )
        return None  # and what looks for config.json says what an adapter alone needs
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has {ADAPTER}, but no {WEIGHTS}. An adapter in a pickle is not read: load "
            "it with peft, if you trust it, and save_pretrained(...) writes such a file."
        )
    if whole:
        return Adapter(folder, model, subfolder)
    try:
        base = dict(read_settings(folder / ADAPTER)).get("base_model_name_or_path")
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(f"{folder / ADAPTER} is malformed: {summary(error)}.") from error
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER} does not say which model the adapter is for. Set "
            "base_model_name_or_path to its folder or repository."
        )
    return Adapter(folder, base, "")
