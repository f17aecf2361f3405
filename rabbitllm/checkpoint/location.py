"""Where a model's weights lie on disk: in the checkpoint as it is, or in the layer store."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rabbitllm.checkpoint.codecs import codec_class, codecs_of
from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec, Layout, nbytes
from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.deletion import finish, replace_originals
from rabbitllm.checkpoint.inventory import StoreInfo
from rabbitllm.checkpoint.joining import Joiner
from rabbitllm.checkpoint.moved import register
from rabbitllm.checkpoint.naming import default_root
from rabbitllm.checkpoint.proof import check_all_kept, check_bits
from rabbitllm.checkpoint.reads import rowwise
from rabbitllm.checkpoint.store import LayerStore
from rabbitllm.checkpoint.tensors import Extent, TensorEntry, WeightEntry, in_plain_pieces
from rabbitllm.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Location:
    """A checkpoint on disk, and how its tensors become a model's weights.

    Attributes:
        folder: where config and tokenizer are.
        moved: the layer store that has taken the place of the checkpoint's shards, if one has.
        entries: the checkpoint's tensors, by their keys.
        recipes: how they become parameters and persistent buffers.
        model: whose weights they are, on the meta device.
        dtypes: parameter or persistent buffer -> its dtype.
        tied: name -> the name of the parameter that it shares its values with.
        groups: file stem -> the names that a layer store keeps there together.
        whole: name -> layout of what may be encoded: of what no row is read by itself but experts.
        rows: name -> into how many rows a weight falls that are read by themselves.
    """

    folder: Path
    moved: StoreInfo | None
    entries: Mapping[str, TensorEntry]
    recipes: list[Recipe]
    model: PreTrainedModel
    dtypes: dict[str, torch.dtype]
    tied: dict[str, str]
    groups: Mapping[str, list[str]]
    whole: Mapping[str, Layout]
    rows: Mapping[str, int]

    def locate(
        self,
        store_root: str | os.PathLike[str] | None,
        delete_original: bool,
        compression: str | None = None,
    ) -> Mapping[str, WeightEntry]:
        """Where each parameter and buffer lies; fills the layer store if it is needed.

        Args:
            store_root: the folder for layer stores; None is the user's cache.
            delete_original: remove the checkpoint's shards once a store is shown to hold all of it;
                one is made of weights in pieces, too, though they can be read where they lie.
            compression: the codec of what it can store, in a layer store; None leaves it plain.

        Raises:
            CheckpointError: `delete_original`, and the store would not hold, or does not hold, all
                that the shards do.
        """
        self._remember()
        in_place = self.readable_in_place(compression)
        if in_place and not (delete_original and in_plain_pieces(self._lying.values())):
            if delete_original and self.moved:
                finish(self.folder, self.moved.folder)
            return self._lying
        if delete_original:
            self._check_exact(compression)
            self._check_own()
            check_all_kept(self.recipes, self.dtypes, self.entries, self.folder)
        store = self.store(store_root, compression)
        located = store.fill(self.groups, self.recipes)
        if delete_original:
            files = {entry.file for entry in self.entries.values()}
            check = partial(
                check_bits,
                self.model,
                self.recipes,
                self.dtypes,
                self.entries,
                located,
                self.tied,
            )
            replace_originals(self.folder, files, store.folder, self.moved, check)
        return located

    def split(
        self, store_root: str | os.PathLike[str] | None, compression: str | None = None
    ) -> Path:
        """Fills the layer store, even for a checkpoint readable in place; returns its folder."""
        self._remember()
        if self.moved and self.readable_in_place(compression):
            return self.moved.folder
        store = self.store(store_root, compression)
        store.fill(self.groups, self.recipes)
        return store.folder

    def store(
        self, root: str | os.PathLike[str] | None, compression: str | None = None
    ) -> LayerStore:
        """The layer store of this checkpoint, filled or not."""
        return LayerStore(
            Path(root or default_root()).expanduser(),
            self.folder,
            self.entries,
            self.model,
            self.dtypes,
            self._encodes(compression) if compression else {},
        )

    def encoded(
        self,
        compression: str | None = None,
        store_root: str | os.PathLike[str] | None = None,
    ) -> Mapping[str, WeightEntry]:
        """The weights that are encoded with that compression.

        Without a layer store that holds them these are those that are going to be, as a rule. They
        have no place yet, and their values decide how many bytes they will take.

        Args:
            compression: see `locate`.
            store_root: as well.
        """
        if self.readable_in_place(compression):
            return {name: entry for name, entry in self._lying.items() if not entry.plain}
        codecs = self._encodes(compression) if compression else {}
        found = self.store(store_root, compression).find(self.groups) if codecs else None
        if found is not None:
            return {name: entry for name, entry in found.items() if not entry.plain}
        return {name: _expected(codec, self.whole[name]) for name, codec in codecs.items()}

    def plain_in_place(self) -> Mapping[str, WeightEntry]:
        """The weights that lie on disk as they compute, whatever a store holds of them."""
        return {name: entry for name, entry in self._lying.items() if entry.plain}

    def readable_in_place(self, compression: str | None = None) -> bool:
        """Whether every parameter lies on disk as it is wanted, under whatever name."""
        to_encode = bool(compression and self._encodes(compression)) and not self._is_encoded()
        names = (name for recipe in self.recipes for name in recipe.targets)
        return not to_encode and all(name in self._lying for name in names)

    @cached_property
    def _lying(self) -> Mapping[str, WeightEntry]:
        """Where the weights lie that lie on disk as they are wanted, under whatever names."""
        joiner = Joiner(self.model, self.entries)
        found: dict[str, WeightEntry] = {}
        for recipe in self.recipes:
            if recipe.converter is None:
                found[recipe.targets[0]] = self.entries[recipe.sources[0][0]]
            else:
                found |= joiner.join(recipe)
        if any(not entry.plain for entry in self.entries.values()):
            found = {name: self._cast(name, entry) for name, entry in found.items()}
        return {name: entry for name, entry in found.items() if self._as_wanted(name, entry)}

    def _cast(self, name: str, entry: WeightEntry) -> WeightEntry:
        """The weight, cast on arrival where that is all that it lacks.

        A layer store of a quantised checkpoint would hold all that is encoded as it computes, two
        to four times as large, for the sake of routers that compute in float32.
        """
        wanted = self.dtypes[name]
        floats = entry.dtype.is_floating_point and wanted.is_floating_point
        if entry.dtype == wanted or not (entry.plain and floats):
            return entry
        codec = Cast(entry.dtype, wanted)
        parts = tuple(replace(part, dtype=wanted, codec=codec) for part in entry.parts)
        return (
            parts[0]
            if isinstance(entry, TensorEntry)
            else replace(entry, parts=parts, dtype=wanted)
        )

    def _as_wanted(self, name: str, entry: WeightEntry) -> bool:
        in_place = all(part.codec.in_place for part in entry.parts)
        return in_place and entry.dtype == self.dtypes[name]

    def worth_encoding(self, compression: str | None, read_again: bool) -> str | None:
        """The compression, where it pays.

        Args:
            compression: what is asked for.
            read_again: some of the weights move in every forward. Where none does, only a store
                that is needed anyway is encoded.
        """
        if compression and (why := self._useless(compression, read_again)):
            logger.warning("compression=%r does nothing here: %s.", compression, why)
        return compression if read_again or not self.readable_in_place() else None

    def _useless(self, compression: str, read_again: bool) -> str | None:
        """Why a compression cannot help; None if it can."""
        if not self._encodes(compression):
            if self._could_encode(compression):
                return f"the layers of {self.folder} take fewer bytes as they are stored there"
            found = sorted({str(w.dtype).removeprefix("torch.") for w in self.whole.values()})
            return (
                f"it encodes none of the weights that the layers of {self.folder} have "
                f"({', '.join(found)})"
            )
        if not read_again and self.readable_in_place():
            return "no layer moves with these budgets"
        return None

    def _encodes(self, compression: str) -> dict[str, Codec]:
        """Of the weights that a compression encodes: none if the store were the larger for it.

        It holds as they compute those that the checkpoint has encoded and the compression has not.
        """
        codecs = self._could_encode(compression)
        if not codecs or any(name not in self._lying for name in self.whole):
            return codecs
        stored = sum(
            codecs[name].nbytes(layout) if name in codecs else nbytes(layout)
            for name, layout in self.whole.items()
        )
        lying = sum(self._lying[name].nbytes for name in self.whole)
        return codecs if stored <= lying else {}

    def _could_encode(self, compression: str) -> dict[str, Codec]:
        """Of the weights that would take fewer bytes by themselves."""
        return {
            name: codec
            for name, layout in self.whole.items()
            for kind in codecs_of(compression)
            if (codec := kind.expected(layout)) and self._saves(name, codec)
        }

    def _saves(self, name: str, codec: Codec) -> bool:
        """Whether a weight takes no more with a codec than it does, and its rows are apart."""
        entry, layout = self._lying.get(name), self.whole[name]
        if not rowwise(_expected(codec, layout), self.rows.get(name, 1)):
            return False
        return entry is None or codec.nbytes(layout) <= entry.nbytes

    def _is_encoded(self) -> bool:
        """Whether an encoded store took the place of the checkpoint's own shards."""
        return self.moved is not None and bool(self.moved.codecs)

    def _check_exact(self, compression: str | None) -> None:
        """Raises CheckpointError if a store would not hold the shards' bits."""
        if compression and not codec_class(compression).exact:
            raise CheckpointError(
                f"A layer store with compression={compression!r} does not hold the bits of the "
                f"shards of {self.folder}, which would be lost. Leave delete_original "
                "(--delete-original) out to keep the shards."
            )
        encoded = (e for e in self.entries.values() if not e.codec.exact)
        if entry := next(encoded, None):
            raise CheckpointError(
                f"{entry.file} is quantised, and a layer store would hold what is computed from "
                "it. Leave delete_original (--delete-original) out to keep the shards."
            )

    def _check_own(self) -> None:
        """Raises CheckpointError if the shards do not lie beside config.json."""
        for entry in self.entries.values():
            if not self.moved and entry.file.parent != self.folder:
                raise CheckpointError(
                    f"{entry.file} is in a folder of its own, where nothing is deleted. Leave "
                    "delete_original (--delete-original) out to keep the shards."
                )

    def _remember(self) -> None:
        """Has the store that stands in for the shards know of this folder, so that it stays."""
        if self.moved:
            try:
                register(self.moved.folder, self.folder)
            except OSError as error:  # where nothing can be written, nothing can be deleted
                logger.debug("%s does not record its use: %s", self.moved.folder, error)


def _expected(codec: Codec, weight: Layout) -> TensorEntry:
    """A weight as a codec will store it, nobody knows where."""
    stored = (Extent(Path(), 0, nbytes(each)) for each in codec.stored(weight).values())
    return TensorEntry(tuple(stored), *weight, codec)
