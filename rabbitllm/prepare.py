"""From a checkpoint to a model without weights, and where on disk those will come from."""

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from transformers import PretrainedConfig

from rabbitllm.attention import Backend, backend_of, build_with_attention, check_backend
from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.codecs.codec import Layout
from rabbitllm.checkpoint.config import (
    Fields,
    causal_config,
    load_changed_config,
    pick_dtype,
    stock_class,
    take_config,
    valid_config,
)
from rabbitllm.checkpoint.consistency import (
    check_complete,
    check_shapes,
    check_types,
    repair_head_dim,
)
from rabbitllm.checkpoint.convert import (
    dtypes_of,
    recipes_for,
    resolve_ties,
    unexpected_names,
)
from rabbitllm.checkpoint.hub import CACHED, Download, resolve, resolve_settings
from rabbitllm.checkpoint.index import ANY, Asked, read_index
from rabbitllm.checkpoint.inventory import find_moved
from rabbitllm.checkpoint.location import Location
from rabbitllm.checkpoint.mistaken import refuse_mistaken
from rabbitllm.checkpoint.moved import MOVED
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.rehearsal import rehearse
from rabbitllm.families import family_of
from rabbitllm.model import StreamedModel, streamed_class
from rabbitllm.stock_arguments import unknown_argument
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import find_structure
from rabbitllm.streaming.weights import Stage

RESIDENT = "resident"
"""The stem of the layer store's file for what no file of a stage holds."""


@dataclass(frozen=True)
class Prepared:
    """A model that has everything but its weights.

    Attributes:
        model: parameters on the meta device, buffers real and on the host.
        staged: the same, and its stages.
        location: where its weights lie.
        unexpected: finds what the checkpoint has and the model does not, as names in the model.
    """

    model: StreamedModel
    staged: StagedModel
    location: Location
    unexpected: Callable[[], set[str]]


def prepare(
    model_id: str | os.PathLike[str],
    token: str | bool | None,
    device: torch.device,
    dtype: str | torch.dtype | None,
    attn_implementation: Backend,
    trust_remote_code: bool,
    *,
    download: Download = CACHED,
    subfolder: str = "",
    asked: Asked = ANY,
    given_config: PretrainedConfig | str | os.PathLike[str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Prepared:
    """Reads config and headers and builds the model; arguments as `AutoModel.from_pretrained`.

    Args:
        model_id: and those after it: as there.
        token: see there.
        device: where the model is going to run.
        dtype: see there.
        attn_implementation: see there.
        trust_remote_code: see there.
        download: which revision of a repository, and from where.
        subfolder: see there.
        asked: which weight files, see `variant` and `use_safetensors` there.
        given_config: what is `config` there.
        changes: attributes of the config -> their values, in place of the checkpoint's.
    """
    check_backend(attn_implementation)
    folder = resolve(model_id, token, trust_remote_code, download, subfolder, asked)
    refuse_mistaken(folder)  # as for a path: a repository may hold an adapter alone
    whole, fields = _settings(folder, given_config, changes or {}, token, trust_remote_code)
    stock = stock_class(whole, folder, trust_remote_code)
    config = causal_config(whole, stock)
    chosen = isinstance(given_config, PretrainedConfig) or "_attn_implementation" in (changes or {})
    if chosen and attn_implementation == "auto":
        attn_implementation = backend_of(config)
    row = legacy.find(fields)
    moved = find_moved(folder)
    entries = moved.entries() if moved else read_index(folder, asked)
    place = f"{moved.folder}, which {folder / MOVED} leads to" if moved else folder
    weights_dtype = pick_dtype(dtype, config, entries)
    if (encoding := fields.quantisation) and not moved:
        entries = encoding.fold(entries, weights_dtype, Reader(entries).read)
    # The family goes by what the checkpoint says it is, not by the native class it maps to.
    streamed = streamed_class(family_of(fields["model_type"]).cls, stock)
    inputs = row.inputs if row else None

    def build(settings: PretrainedConfig, attention: Backend) -> StreamedModel:
        return _skeleton(streamed, settings, weights_dtype, attention, inputs)

    def try_out(attention: Backend) -> StreamedModel:
        return rehearse(lambda: build(deepcopy(config), attention), entries)

    with valid_config(fields):
        trial = build_with_attention(try_out, attn_implementation, device, weights_dtype, inputs)
    # A store that took the originals' place holds parameters, which need no map.
    mapping = row.weights if row and not moved else ()
    recipes = recipes_for(trial, entries, mapping)
    if encoding and not moved:
        parts = {key for recipe in recipes if recipe.converter for key, _ in recipe.sources}
        entries = encoding.joined(entries, parts)
    if repair_head_dim(config, trial, recipes, entries):
        with valid_config(fields):
            trial = try_out(backend_of(trial.config))
    check_types(recipes, entries)
    check_shapes(trial, recipes, {key: entry.shape for key, entry in entries.items()}, place)
    tied = resolve_ties(trial, recipes, Reader(entries).equal)
    check_complete(trial, recipes, place)
    # Only what fits the checkpoint is built with buffers.
    with valid_config(fields):
        model = build(config, backend_of(trial.config))
    model.all_tied_weights_keys = trial.all_tied_weights_keys
    dtypes = dtypes_of(model, weights_dtype)
    structure = find_structure(model, tied, dtypes)
    stages = find_stages(structure)
    # A layer store keeps a block's experts beside what else it has.
    blocks = find_stages(structure, rowwise=lambda *_: False)
    location = Location(
        folder=folder,
        moved=moved,
        entries=entries,
        recipes=recipes,
        model=model,
        dtypes=dtypes,
        tied=tied,
        groups=_groups(blocks),
        whole={
            weight.name: Layout(weight.dtype, weight.shape)
            for stage in blocks
            for weight in stage.weights
            if not stage.pinned and weight.by is None
        },
        rows={
            weight.name: weight.rows
            for stage in stages
            for weight in stage.weights
            if stage.least_rows and weight.row is None
        },
    )
    staged = StagedModel(structure, weights_dtype, stages)
    return Prepared(model, staged, location, partial(unexpected_names, trial, entries, mapping))


def _settings(
    folder: Path,
    given: PretrainedConfig | str | os.PathLike[str] | None,
    changes: Mapping[str, Any],
    token: str | bool | None,
    trust_remote_code: bool,
) -> tuple[PretrainedConfig, Fields]:
    """The config to build with, and the fields of config.json that say what the checkpoint is.

    Raises:
        CheckpointError: the config is absent or not valid.
        TypeError: a change is no attribute of the config, or both a config and changes are given.
    """
    if isinstance(given, PretrainedConfig):
        for name in changes:
            known = hasattr(given, name)
            raise TypeError(
                f"{name}= changes the checkpoint's own config, and config= is another. Set "
                f"config.{name} instead."
                if known
                else unknown_argument(name, given.to_dict())
            )
        return take_config(given, folder)
    if given is not None:
        folder = resolve_settings(given, token, trust_remote_code)
    config, fields, unknown = load_changed_config(folder, trust_remote_code, changes)
    for name in sorted(unknown):
        raise TypeError(unknown_argument(name, config.to_dict()))
    return config, fields


def _groups(stages: list[Stage]) -> dict[str, list[str]]:
    """File stem -> the names that a layer store keeps there: a stage's parameters, or the rest.

    Buffers are with the rest, whichever stage they come with: they are small, and read by name.
    """
    groups = {
        stage.name: [weight.name for weight in stage.weights if weight.kind == "_parameters"]
        for stage in stages
        if not stage.pinned
    }
    placed = {name for names in groups.values() for name in names}
    rest = [w.name for stage in stages for w in stage.weights if w.name not in placed]
    return groups | ({RESIDENT: rest} if rest else {})


def _skeleton(
    streamed: type[StreamedModel],
    config: PretrainedConfig,
    dtype: torch.dtype,
    attention: Backend,
    inputs: legacy.Inputs | None,
) -> StreamedModel:
    # `_from_config` does so as well, but for the first releases.
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype
    # Buffers such as rotary frequencies are computed by the model's own constructor, so they stay
    # real.
    with init_empty_weights(include_buffers=False):
        model = streamed._from_config(config, dtype=dtype, attn_implementation=attention)
    if inputs:
        model.base_model.register_forward_pre_hook(inputs.hook, with_kwargs=True)
    return cast(StreamedModel, model.eval())
