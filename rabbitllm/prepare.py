"""From a checkpoint to a model without weights, and where on disk those will come from."""

import logging
import os
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import init_empty_weights
from transformers import PretrainedConfig

from rabbitllm.attention import build_with_attention
from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.codecs import codec_class
from rabbitllm.checkpoint.codecs.codec import Codec, Layout
from rabbitllm.checkpoint.config import (
    load_config,
    pick_dtype,
    read_fields,
    stock_class,
    valid_config,
)
from rabbitllm.checkpoint.consistency import check_complete, check_shapes, repair_head_dim
from rabbitllm.checkpoint.convert import (
    Recipe,
    dtypes_of,
    recipes_for,
    resolve_ties,
)
from rabbitllm.checkpoint.deletion import finish, replace_originals
from rabbitllm.checkpoint.hub import resolve
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.inventory import StoreInfo, find_moved
from rabbitllm.checkpoint.moved import MOVED, register
from rabbitllm.checkpoint.proof import check_all_kept, check_bits
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.rehearsal import rehearse
from rabbitllm.checkpoint.store import LayerStore, default_root
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.families import family_of
from rabbitllm.model import StreamedModel, streamed_class
from rabbitllm.streaming.plan import Plan, minimum_bytes
from rabbitllm.streaming.stages import Stage, find_stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A model that has everything but its weights.

    Attributes:
        model: parameters on the meta device, buffers real and on the host.
        folder: where config and tokenizer are.
        dtype: of the weights, as far as the model does not ask for float32.
        moved: the layer store that has taken the place of the checkpoint's shards, if one has.
        entries: the checkpoint's tensors, by their keys.
        recipes: how they become parameters and persistent buffers.
        dtypes: parameter or persistent buffer -> its dtype.
        tied: name -> the name of the parameter that it shares its values with.
        base: the weights that are resident in any case.
        stages: all other weights, as they load together.
    """

    model: StreamedModel
    folder: Path
    dtype: torch.dtype
    moved: StoreInfo | None
    entries: dict[str, TensorEntry]
    recipes: list[Recipe]
    dtypes: dict[str, torch.dtype]
    tied: dict[str, str]
    base: Stage | None
    stages: list[Stage]

    def locate(
        self,
        store_root: str | os.PathLike[str] | None,
        delete_original: bool,
        compression: str | None = None,
    ) -> dict[str, TensorEntry]:
        """Where each parameter and buffer lies: in the checkpoint as it is, or in the layer store.

        Args:
            store_root: the folder for layer stores; None is the user's cache.
            delete_original: remove the checkpoint's shards once a store is shown to hold all of it.
            compression: the codec of what it can store, in a layer store; None leaves it plain.

        Raises:
            CheckpointError: `delete_original`, and the store would not hold, or does not hold, all
                that the shards do.
        """
        self._remember()
        if self.readable_in_place(compression):
            if delete_original and self.moved:
                finish(self.folder, self.moved.folder)
            return {
                recipe.targets[0]: self.entries[recipe.sources[0][0]] for recipe in self.recipes
            }
        if delete_original:
            check_all_kept(self.recipes, self.dtypes, self.entries, self.folder)
        store = self.store(store_root, compression)
        located = store.fill(self._groups(), self.recipes)
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
        store.fill(self._groups(), self.recipes)
        return store.folder

    def with_largest_split(self) -> "Prepared | None":
        """The same with the largest blocks split into their children; None if none can be."""
        blocks = [
            sum(weight.nbytes for weight in stage.weights)  # without the padding of `stage.nbytes`
            for stage in self.stages
            if any(list(module.children()) for module in stage.modules)
        ]
        if not blocks:
            return None
        base, stages = find_stages(self.model, self.tied, self.dtypes, max(blocks) - 1)
        return replace(self, base=base, stages=stages)

    def sizes(self) -> dict[str, int]:
        """Stage name -> bytes of its buffer."""
        return {stage.name: stage.nbytes for stage in self.stages}

    def stored(self, compression: str | None = None) -> list[Stage]:
        """The stages as they are going to be stored with that compression, as a rule."""
        here = {
            recipe.targets[0]: self.entries[recipe.sources[0][0]].codec
            for recipe in self.recipes
            if recipe.converter is None
        }
        codecs = self.codecs(compression) if compression and not self.is_encoded() else here
        return [stage.stored(codecs) for stage in self.stages]

    def gathered(self) -> set[str]:
        """The names of stages that need no slot: of all their weights only rows are needed."""
        return {stage.name for stage in self.stages if stage.streamed() is None}

    def minimum_bytes(self) -> int:
        """The least bytes of weights on the device that the model can run with."""
        return minimum_bytes(self.sizes(), self.base.nbytes if self.base else 0, self.gathered())

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
            self.codecs(compression) if compression else {},
        )

    def codecs(self, compression: str) -> dict[str, Codec]:
        """Of the parameters that a compression encodes; what is asked for by rows stays plain."""
        found = {
            weight.name: codec_class(compression).expected(Layout(weight.dtype, weight.shape))
            for stage in self.stages
            for weight in stage.weights
            if weight.by is None
        }
        return {name: codec for name, codec in found.items() if codec}

    def readable_in_place(self, compression: str | None = None) -> bool:
        """Whether every parameter lies on disk as it is wanted, under whatever name."""
        to_encode = bool(compression and self.codecs(compression)) and not self.is_encoded()
        return not to_encode and all(
            recipe.converter is None
            and self.entries[recipe.sources[0][0]].dtype == self.dtypes[recipe.targets[0]]
            for recipe in self.recipes
        )

    def is_encoded(self) -> bool:
        """Whether an encoded store took the place of the checkpoint's own shards."""
        return self.moved is not None and bool(self.moved.codecs)

    def worth_encoding(self, compression: str | None, plan: Plan) -> str | None:
        """The compression, where something comes from disk or a store is needed anyway."""
        return compression if plan.streamed("disk") or not self.readable_in_place() else None

    def _remember(self) -> None:
        """Has the store that stands in for the shards know of this folder, so that it stays."""
        if self.moved:
            try:
                register(self.moved.folder, self.folder)
            except OSError as error:  # where nothing can be written, nothing can be deleted
                logger.debug("%s does not record its use: %s", self.moved.folder, error)

    def _groups(self) -> dict[str, list[str]]:
        """File stem -> names of what it holds: a file for each stage, and one for the rest."""
        groups = {stage.name: [weight.name for weight in stage.weights] for stage in self.stages}
        state = self.model.state_dict()
        rest = [weight.name for weight in self.base.weights] if self.base else []
        rest += [name for name, _ in self.model.named_buffers() if name in state]
        return groups | {"resident": rest} if rest else groups


def prepare(
    model_id: str | os.PathLike[str],
    token: str | None,
    device: torch.device,
    dtype: str | torch.dtype,
    attn_implementation: str,
    trust_remote_code: bool,
) -> Prepared:
    """Reads config and headers and builds the model; arguments as `AutoModel.from_pretrained`."""
    folder = resolve(model_id, token, trust_remote_code)
    fields = read_fields(folder)
    config, row = load_config(folder, trust_remote_code), legacy.find(fields)
    moved = find_moved(folder)
    entries = moved.entries() if moved else read_index(folder)
    place = f"{moved.folder}, which {folder / MOVED} leads to" if moved else folder
    weights_dtype = pick_dtype(dtype, config, entries)
    # The family goes by what the checkpoint says it is, not by the native class it maps to.
    streamed = streamed_class(
        family_of(fields["model_type"]).cls, stock_class(config, folder, trust_remote_code)
    )
    inputs = row.inputs if row else None

    def build(settings: PretrainedConfig, attention: str) -> StreamedModel:
        return _skeleton(streamed, settings, weights_dtype, attention, inputs)

    def try_out(attention: str) -> StreamedModel:
        return rehearse(lambda: build(deepcopy(config), attention), entries)

    with valid_config(fields):
        trial = build_with_attention(try_out, attn_implementation, device, weights_dtype, inputs)
    # A store that took the originals' place holds parameters, which need no map.
    recipes = recipes_for(trial, entries, row.weights if row and not moved else ())
    if repair_head_dim(config, trial, recipes, entries):
        with valid_config(fields):
            trial = try_out(trial.active_attention_implementation)
    check_shapes(trial, recipes, {key: entry.shape for key, entry in entries.items()}, place)
    tied = resolve_ties(trial, recipes, Reader(entries).equal)
    check_complete(trial, recipes, place)
    # Only what fits the checkpoint is built with buffers.
    with valid_config(fields):
        model = build(config, trial.active_attention_implementation)
    model.all_tied_weights_keys = trial.all_tied_weights_keys
    dtypes = dtypes_of(model, weights_dtype)
    base, stages = find_stages(model, tied, dtypes)
    return Prepared(
        model, folder, weights_dtype, moved, entries, recipes, dtypes, tied, base, stages
    )


def _skeleton(
    streamed: type[StreamedModel],
    config: PretrainedConfig,
    dtype: torch.dtype,
    attention: str,
    inputs: legacy.Inputs | None,
) -> StreamedModel:
    # Buffers such as rotary frequencies are computed by the model's own constructor, so they stay
    # real.
    with init_empty_weights(include_buffers=False):
        model = streamed._from_config(config, dtype=dtype, attn_implementation=attention)
    if inputs:
        model.base_model.register_forward_pre_hook(inputs.hook, with_kwargs=True)
    return cast(StreamedModel, model.eval())
