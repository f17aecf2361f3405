"""The layer store: parameters on disk as the model wants them, one safetensors file for each stage.

It is filled once, for checkpoints whose tensors are not parameters yet, or are to be encoded. A
file appears only when it is whole (written beside, flushed, renamed), so a fill that was killed
goes on where it stopped.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedModel

from rabbitllm.checkpoint.codecs.codec import Codec, Layout
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.durable import TEMPORARY, write_durably
from rabbitllm.checkpoint.moved import DESCRIPTION
from rabbitllm.checkpoint.naming import LOCK, store_name
from rabbitllm.checkpoint.plain_json import MALFORMED, read_json
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.store_file import write_file
from rabbitllm.checkpoint.tensors import TensorEntry, read_header
from rabbitllm.errors import BudgetError, CheckpointError
from rabbitllm.utils.memory import format_size

logger = logging.getLogger(__name__)

FORMAT = 4
HEADER_ROOM = 1 << 20
"""Bytes set aside for each file's header and the file system's own needs when space is checked."""


class LayerStore:
    """The store of one checkpoint, as one model class wants it, in one dtype.

    Args:
        root: the folder that stores lie in.
        checkpoint: the folder of the checkpoint.
        entries: its tensors, wherever they lie; their files' sizes and times are part of the
            store's identity.
        model: the model, on the meta device.
        dtypes: name -> dtype of every parameter and persistent buffer.
        codecs: parameter -> what is to store it, as far as its values let it; the others are stored
            plain.
    """

    def __init__(
        self,
        root: Path,
        checkpoint: Path,
        entries: Mapping[str, TensorEntry],
        model: PreTrainedModel,
        dtypes: Mapping[str, torch.dtype],
        codecs: Mapping[str, Codec] = MappingProxyType({}),
    ) -> None:
        files = sorted({entry.file for entry in entries.values()})
        self.identity = {
            "format": FORMAT,
            "source": str(files[0].parent.resolve()),
            "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
            "architecture": type(model).__name__,
            "dtypes": sorted({str(dtype) for dtype in dtypes.values()}),
            "transformers": transformers.__version__,
            "codecs": sorted({codec.name for codec in codecs.values()}),
        }
        self.folder = root / store_name(self.identity)
        self._checkpoint = checkpoint.resolve()
        self._sources = Reader(entries)
        self._model = model
        self._dtypes = dict(dtypes)
        self._codecs = dict(codecs)

    def fill(
        self, groups: Mapping[str, list[str]], recipes: list[Recipe]
    ) -> dict[str, TensorEntry]:
        """Makes every file that is not there yet; returns where each name of `groups` lies.

        Args:
            groups: file stem -> the parameters and buffers it holds. Recipes that make names of
                several groups run once for each.
            recipes: how to make them.

        Raises:
            BudgetError: the disk lacks the space; nothing is written.
            OSError: the folder cannot be made, or writing fails all the same; the next fill goes on
                from there.
        """
        found = self.find(groups)  # a whole store may lie where nobody can lock or write
        if found is None:
            self._fill(groups, recipes)
            found = self._entries(groups)
        return found

    def find(self, groups: Mapping[str, list[str]]) -> dict[str, TensorEntry] | None:
        """Where each name of `groups` lies; None as long as the store is not whole."""
        if not self._is_described(groups) or self._missing(groups):
            return None
        return self._entries(groups)

    def _entries(self, stems: Iterable[str]) -> dict[str, TensorEntry]:
        headers = (read_header(self._path(stem)) for stem in stems)
        return {key: entry for header in headers for key, entry in header.items()}

    def _fill(self, groups: Mapping[str, list[str]], recipes: list[Recipe]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"No layer store can be made in {self.folder}: {error}. Give another folder: "
                "layer_shards_saving_path=... or RABBITLLM_CACHE."
            ) from error
        with FileLock(self.folder / LOCK):
            for leftover in self.folder.glob(f"{TEMPORARY}*"):
                leftover.unlink()
            missing = self._missing(groups)  # another process may have been faster
            self._check_space(missing)
            if not self._is_described(groups):
                text = json.dumps(self._description(groups), indent=2)
                write_durably(self.folder / DESCRIPTION, text)
            if missing:
                self._write(missing, recipes)

    def _description(self, groups: Mapping[str, list[str]]) -> dict[str, Any]:
        """What the store says about itself."""
        return self.identity | {"checkpoint": str(self._checkpoint), "holds": sorted(groups)}

    def _is_described(self, groups: Mapping[str, list[str]]) -> bool:
        try:
            found = read_json(self.folder / DESCRIPTION)
        except (OSError, *MALFORMED):
            return False
        return bool(found == self._description(groups))

    def _missing(self, groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
        return {stem: names for stem, names in groups.items() if not self._whole(stem, names)}

    def _write(self, missing: Mapping[str, list[str]], recipes: list[Recipe]) -> None:
        total = self._nbytes(missing)
        logger.info(
            "Preparing %s, once: %s into the layer store %s",
            self._checkpoint,
            format_size(total),
            self.folder,
        )
        with tqdm(
            total=total,
            desc="Preparing layers",
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar:
            for stem, names in missing.items():
                tensors: dict[str, torch.Tensor] = {}
                for recipe in recipes:
                    if not set(names).isdisjoint(recipe.targets):
                        made = recipe.run(self._model, self._sources.read, self._dtypes)
                        tensors |= {
                            name: made[name].contiguous() for name in made.keys() & set(names)
                        }
                write_file(self._path(stem), tensors, self._codecs)
                bar.update(self._nbytes({stem: names}))

    def _whole(self, stem: str, names: list[str]) -> bool:
        """The file is there and holds these names, whole, in their shapes and dtypes."""
        if not self._path(stem).is_file():
            return False
        try:
            found = read_header(self._path(stem))
        except CheckpointError as error:
            logger.warning("%s It has to be made again.", error)
            return False
        state = self._model.state_dict()
        return found.keys() == set(names) and all(
            entry.shape == tuple(state[key].shape) and entry.dtype == self._dtypes[key]
            for key, entry in found.items()
        )

    def _check_space(self, missing: Mapping[str, list[str]]) -> None:
        needed = self._nbytes(missing) + HEADER_ROOM * len(missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise BudgetError(
                f"The layer store needs {format_size(needed)} in {self.folder}, where "
                f"{format_size(free)} are free. Make room, "
                "or give another folder: layer_shards_saving_path=... or RABBITLLM_CACHE."
            )

    def _nbytes(self, groups: Mapping[str, list[str]]) -> int:
        """What the files will take as a rule, without their headers."""
        state = self._model.state_dict()
        return sum(
            self._codecs.get(name, PLAIN).nbytes(Layout(self._dtypes[name], state[name].shape))
            for names in groups.values()
            for name in names
        )

    def _path(self, stem: str) -> Path:
        return self.folder / f"{stem}.safetensors"
