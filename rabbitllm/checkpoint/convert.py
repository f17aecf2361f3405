"""From checkpoint keys to parameters, by transformers' own conversion mapping.

In memory transformers fuses some weights (all experts of a mixture are one 3-D parameter) while
files keep them apart. Which keys make which parameter, and by which operations, is asked of the
installed release, never written down here.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

logger = logging.getLogger(__name__)

ReadTensor = Callable[[str], torch.Tensor]
"""Reads the tensor of a checkpoint key, in its dtype on disk."""


@dataclass
class Recipe:
    """How some checkpoint tensors become one or several parameters.

    Attributes:
        targets: the names of the parameters (or persistent buffers) it makes.
        sources: (checkpoint key, pattern it matched), in the order the operations expect.
        converter: transformers' converter; None when the one source is the parameter under another
            name.
    """

    targets: tuple[str, ...]
    sources: list[tuple[str, str]] = field(default_factory=list)
    converter: WeightConverter | None = None

    def run(
        self, model: PreTrainedModel, read: ReadTensor, dtypes: dict[str, torch.dtype]
    ) -> dict[str, torch.Tensor]:
        """The parameters by name, each in its dtype of `dtypes`.

        As in `from_pretrained`, sources are cast before they are combined.
        """
        dtype = dtypes[self.targets[0]]
        if self.converter is None:
            return {self.targets[0]: read(self.sources[0][0]).to(dtype)}
        converter = deepcopy(self.converter)
        for key, pattern in self.sources:
            # Not the tensor but a call that reads it, which transformers makes when its turn comes.
            deferred: Any = partial(_read_as, read, key, dtype)
            converter.add_tensor(self.targets[0], key, pattern, deferred)
        result = converter.convert(self.targets[0], model=model, config=model.config)
        made = result[0] if isinstance(result, tuple) else result
        return {name: _single(tensor) for name, tensor in made.items()}


def _read_as(read: ReadTensor, key: str, dtype: torch.dtype) -> torch.Tensor:
    return read(key).to(dtype)


def _single(value: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return value[0] if isinstance(value, list) else value


def recipes_for(
    model: PreTrainedModel,
    keys: Collection[str],
    legacy: Sequence[WeightRenaming | WeightConverter] = (),
) -> list[Recipe]:
    """The recipes that make `model`'s parameters and persistent buffers from these checkpoint keys.

    Keys that the model has no use for are left out, with a warning where `from_pretrained` has one.

    Args:
        model: the model, on the meta device.
        keys: of the checkpoint.
        legacy: what a family without a class of its own needs before the model's own mapping.
    """
    mapping = _mapping(model, legacy)
    by_pattern = {
        pattern: entry
        for entry in mapping
        if isinstance(entry, WeightConverter)
        for pattern in entry.source_patterns
    }
    state = model.state_dict()
    recipes: dict[str, Recipe] = {}
    unused: dict[str, str] = {}
    for key, target, pattern in _renamed(model, state, keys, mapping):
        if target not in state:
            unused[key] = target
        elif pattern is None:
            recipes.setdefault(target, Recipe((target,), [(key, key)]))
        else:
            converter = by_pattern[pattern]
            recipe = recipes.setdefault(target, Recipe(_targets(target, converter), [], converter))
            recipe.sources.append((key, pattern))
    _report_unused(model, unused)
    return list(recipes.values())


def unexpected_names(
    model: PreTrainedModel,
    keys: Collection[str],
    legacy: Sequence[WeightRenaming | WeightConverter] = (),
) -> set[str]:
    """What the model has no use for and does not ignore on purpose, under its names in the model.

    Those are the `unexpected_keys` of stock's `from_pretrained`; arguments as for `recipes_for`.
    """
    state = model.state_dict()
    names = {target for _, target, _ in _renamed(model, state, keys, _mapping(model, legacy))}
    return _unexpected(model, names - state.keys())


def _mapping(
    model: PreTrainedModel, legacy: Sequence[WeightRenaming | WeightConverter]
) -> list[WeightTransform]:
    return [*legacy, *get_model_conversion_mapping(model, None, None)]


def _renamed(
    model: PreTrainedModel,
    state: dict[str, torch.Tensor],
    keys: Collection[str],
    mapping: Sequence[WeightTransform],
) -> Iterator[tuple[str, str, str | None]]:
    """Each key, the name that it has in the model, and the pattern of a converter if one takes it.

    Args:
        model: the model.
        state: its parameters and persistent buffers, by name.
        keys: of the checkpoint.
        mapping: of its keys.
    """
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for key in sorted(keys, key=dot_natural_key):
        # Positional: the fourth parameter was renamed in transformers 5.10.4.
        target, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if target not in state and key in state:
            target, pattern = rename_source_key(key, [], [], model.base_model_prefix, state)
        yield key, target, pattern


def _unexpected(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Of names that the model does not have, those that it does not ignore on purpose."""
    adjust: Any = model._adjust_missing_and_unexpected_keys
    if "loading_info" in signature(adjust).parameters:
        info = SimpleNamespace(missing_keys=set(), unexpected_keys=names)
        adjust(info)
        return set(info.unexpected_keys)
    return set(adjust(set(), names)[1])


def _report_unused(model: PreTrainedModel, unused: dict[str, str]) -> None:
    """Warns of checkpoint keys (-> name in the model) but for those that it ignores on purpose."""
    if unexpected := _unexpected(model, set(unused.values())):
        keys = [key for key, target in unused.items() if target in unexpected]
        logger.warning(
            "%d tensors in %s are not used by %s (%s). The config names fewer layers than the "
            "checkpoint has, or these belong to something else than this model.",
            len(keys),
            model.config.name_or_path or "the checkpoint",
            type(model).__name__,
            ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else ""),
        )


def _targets(first: str, converter: WeightConverter) -> tuple[str, ...]:
    """The names a converter makes: the other target patterns in place of the first."""
    patterns = list(converter.target_patterns)
    return tuple(first.replace(patterns[0], pattern) for pattern in patterns)


def dtypes_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each parameter and persistent buffer; some modules ask to stay in float32."""
    plan = getattr(
        model, "dtype_plan", None
    )  # 5.0 makes it with the model, later releases for a dtype
    if plan is None:
        plan = model._get_dtype_plan(dtype)
    kept = {re.compile(name.replace("*", ".*")): exception for name, exception in plan.items()}
    return {
        name: next(
            (exception for pattern, exception in kept.items() if pattern.search(name)), tensor.dtype
        )
        for name, tensor in model.state_dict().items()
    }


def resolve_ties(
    model: PreTrainedModel, recipes: list[Recipe], equal: Callable[[str, str], bool]
) -> dict[str, str]:
    """Which parameters share values: what the model ties, unless the checkpoint denies it.

    As in `from_pretrained`: two names that are both in the checkpoint with different values stay
    apart, with a warning. A name that is absent gets the recipe of the one it is tied to, appended
    to `recipes`.

    Args:
        model: the model, on the meta device.
        recipes: how the checkpoint makes its parameters.
        equal: whether the tensors of two checkpoint keys have the same values.

    Returns:
        name -> the name it is tied to.
    """
    makers = {target: recipe for recipe in recipes for target in recipe.targets}
    tied: dict[str, str] = {}
    for target, source in list(model.all_tied_weights_keys.items()):
        keys = [makers[name].sources[0][0] for name in (target, source) if name in makers]
        if len(keys) == 2 and not equal(*keys):
            logger.warning("%s and %s differ in the checkpoint: not tied.", target, source)
            del model.all_tied_weights_keys[target]
            continue
        for absent, present in ((target, source), (source, target)):
            if absent not in makers and present in makers:
                makers[absent] = Recipe((absent,), makers[present].sources)
                recipes.append(makers[absent])
        tied[target] = source
    return tied
