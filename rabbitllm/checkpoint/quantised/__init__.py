"""Quantised checkpoints: which of their tensors are one weight, and how that is stored.

The model stays the stock one in a dtype to compute in, as with stock's `dequantize=True`. A method
is a row of `METHODS`, and a module here; what is quantised is told by the tensors, not by the
config's lists of modules.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rabbitllm.checkpoint.plain_json import MALFORMED, read_settings
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.errors import CheckpointError, summary

METHODS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "compressed-tensors": "compressed_tensors",
    "awq": "awq",
    "gptq": "gptq",
    "bitsandbytes": "bitsandbytes",
}
"""`quant_method` of a config -> the module of its schemes."""
ORIGINAL = "Take the repository that it was made from"
HINTS = {
    "gguf": f"{ORIGINAL}: its name is most often the same without -GGUF.",
    "mlx": f"{ORIGINAL}: its name is most often the same, not of mlx-community and without -4bit.",
    "exl2": f"{ORIGINAL}: its name is most often the same without -exl2.",
    "exl3": f"{ORIGINAL}: its name is most often the same without -exl3.",
    "modelopt": "Take a repository in FP8, or by compressed-tensors, of the same model.",
}
"""Method that is not read -> what helps; of others it is the same for all."""
CONFIGS = {
    "quantization_config": "unknown",
    "compression_config": "compressed-tensors",
    "quantization": "mlx",
}
"""Fields of config.json, or of the text part in it, that say how weights are quantised -> the
method, if they do not say that."""
MLX = {"bits", "group_size"}
"""What MLX says, and no method."""
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that say so in older checkpoints -> the method that they are of."""
CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32)
"""dtypes of what is no weight without its scale."""


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint is quantised.

    Attributes:
        method: a key of `METHODS`.
        settings: what its config says besides.
    """

    method: str
    settings: Mapping[str, Any]

    def fold(
        self,
        entries: Mapping[str, TensorEntry],
        dtype: torch.dtype,
        read: Callable[[str], torch.Tensor],
    ) -> dict[str, TensorEntry]:
        """The checkpoint's tensors, with one for each weight, as if it were not quantised.

        Args:
            entries: its tensors, by their keys.
            dtype: of the weights.
            read: reads one by its key.

        Raises:
            CheckpointError: naming a weight of which something is missing, or in a form that is not
                known.
        """
        module = self._module
        left = dict(entries)
        made = {}
        for scheme in module.SCHEMES:
            for stem in _stems(scheme, left):
                found = {s: left.pop(stem + s) for s in scheme.suffixes if stem + s in left}
                by_suffix = partial(_read, read, stem)
                parts = Parts(stem + scheme.target, found, self.settings, dtype, by_suffix)
                lacking = [s for s in scheme.suffixes if s not in found.keys() | scheme.optional]
                if lacking:
                    raise parts.error(f"there is no {stem}{lacking[0]}")
                try:
                    made[parts.name] = scheme.entry(parts)
                except CheckpointError:
                    raise
                except (*MALFORMED, ArithmeticError) as error:
                    raise parts.error(f"no such form is known: {summary(error)}") from error
        for key, entry in left.items():
            if key.endswith("weight") and entry.dtype in CODES:
                raise CheckpointError(
                    f"{key} in {entry.file} cannot be read: it is quantised, and there is no scale "
                    f"of it ({list(entry.shape)})."
                )
        unneeded = getattr(module, "UNNEEDED", ())
        return {key: entry for key, entry in left.items() if not key.endswith(unneeded)} | made

    def joined(
        self, entries: Mapping[str, TensorEntry], keys: Collection[str]
    ) -> dict[str, TensorEntry]:
        """The checkpoint's tensors, as `fold` gave them, where some make larger weights together.

        Args:
            entries: its tensors, by their keys.
            keys: of those that do.
        """
        change = getattr(self._module, "joined", None)
        return {
            key: change(entry) if change and key in keys else entry
            for key, entry in entries.items()
        }

    def telling(self, keys: Iterable[str]) -> list[str]:
        """Of a checkpoint's keys those that `fold` reads: of small tensors."""
        suffixes = tuple(suffix for scheme in self._module.SCHEMES for suffix in scheme.telling)
        return [key for key in keys if key.endswith(suffixes)]

    @property
    def _module(self) -> Any:
        return import_module(f"{__name__}.{METHODS[self.method]}")


def find(fields: Mapping[str, Any], folder: Path, place: str) -> Quantisation | None:
    """How a checkpoint is quantised; None if it is not.

    Args:
        fields: of its config.
        folder: where it lies.
        place: what to name in errors.

    Raises:
        CheckpointError: by a method that is not read; the message names it.
    """
    for method, settings in _said(fields, folder):
        if method not in METHODS:
            hint = HINTS.get(method, "")
            raise CheckpointError(
                f"{place} is quantised ({method}), which is not read.{' ' * bool(hint)}{hint} "
                f"Methods that are read: {', '.join(METHODS)}; and the original, unquantised "
                "checkpoint."
            )
        return Quantisation(method, settings)
    return None


def _said(fields: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What config and files say of quantisation: method, and settings."""
    text = fields.get("text_config")
    for part in (fields, text if isinstance(text, dict) else {}):
        for name, method in CONFIGS.items():
            settings = part.get(name)
            known = dict(settings) if isinstance(settings, dict) else {}
            if settings and (name != "quantization" or known.keys() >= MLX):
                yield _method(known, method), known
    for name, method in FILES.items():
        if (folder / name).is_file():
            try:
                yield method, dict(read_settings(folder / name))
            except MALFORMED as error:
                raise CheckpointError(f"{folder / name} is not valid JSON: {error}.") from error


def _method(settings: Mapping[str, Any], usual: str) -> str:
    """The method that settings are of."""
    if said := settings.get("quant_method"):
        return str(said).lower()
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if settings.keys() >= MLX else usual


def _stems(scheme: Scheme, keys: Iterable[str]) -> list[str]:
    """What the keys of a scheme's weights begin with."""
    mark = scheme.suffixes[0]
    return [key.removesuffix(mark) for key in keys if key.endswith(mark)]


def _read(read: Callable[[str], torch.Tensor], stem: str, suffix: str) -> torch.Tensor:
    return read(stem + suffix)
