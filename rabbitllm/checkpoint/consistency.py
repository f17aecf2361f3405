"""Whether a checkpoint's tensors are those that its config asks for."""

import logging
from collections.abc import Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.tensors import RAW, UNREAD, TensorEntry
from rabbitllm.errors import CheckpointError

logger = logging.getLogger(__name__)


def repair_head_dim(
    config: PretrainedConfig,
    model: PreTrainedModel,
    recipes: list[Recipe],
    entries: Mapping[str, TensorEntry],
) -> bool:
    """Sets `head_dim` to what the checkpoint's query projections have, if the config's misfits.

    Models that fuse query, key and value need none of this: they derive it from the hidden size, or
    their output projection contradicts a wrong one, which `check_shapes` refuses.

    Returns:
        Whether the config was changed, so that the model must be built again.
    """
    text = config.get_text_config()
    state = model.state_dict()
    for recipe in recipes:
        name, key = recipe.targets[0], recipe.sources[0][0]
        if recipe.converter is not None or not name.endswith("q_proj.weight"):
            continue
        rows, heads = entries[key].shape[0], getattr(text, "num_attention_heads", None)
        if rows == state[name].shape[0] or not heads or rows % heads:
            return False
        stated, found = getattr(text, "head_dim", None), rows // heads
        logger.warning(
            "The config says head_dim=%s, but %s has %d rows for %d heads: using head_dim=%d.",
            stated,
            key,
            rows,
            heads,
            found,
        )
        text.head_dim = found
        return True
    return False


def check_complete(model: PreTrainedModel, recipes: list[Recipe], place: object) -> None:
    """Every parameter and persistent buffer is made by a recipe.

    Raises:
        CheckpointError: naming the first missing ones.
    """
    wanted = model.state_dict().keys()
    missing = sorted(
        wanted - {target for recipe in recipes for target in recipe.targets}, key=dot_natural_key
    )
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors are missing from the checkpoint in {place}: "
            f"{shown}. "
            "It is incomplete, or it is not a checkpoint of this architecture."
        )


def check_types(recipes: list[Recipe], entries: Mapping[str, TensorEntry]) -> None:
    """Every tensor that makes a parameter is in a type that can be read.

    Raises:
        CheckpointError: naming the first that is not.
    """
    for recipe in recipes:
        for key, _ in recipe.sources:
            if entries[key].dtype == RAW:
                raise CheckpointError(
                    f"{key} in {entries[key].file} is in a type that no model computes from: one "
                    f"of {', '.join(UNREAD)}. Use the original, unquantised checkpoint."
                )


def check_shapes(
    model: PreTrainedModel,
    recipes: list[Recipe],
    shapes: Mapping[str, tuple[int, ...]],
    place: object,
) -> None:
    """Every parameter that the checkpoint makes has the shape that the model gives it.

    Conversions are tried on the meta device: nothing is read.

    Args:
        model: the model, on the meta device.
        recipes: how the checkpoint makes its parameters.
        shapes: checkpoint key -> shape on disk.
        place: the checkpoint, for the message.

    Raises:
        CheckpointError: naming the first that has not.
    """
    state = model.state_dict()
    dtypes = {name: tensor.dtype for name, tensor in state.items()}

    def read(key: str) -> torch.Tensor:
        return torch.empty(shapes[key], device="meta")

    for recipe in recipes:
        keys = [key for key, _ in recipe.sources]
        if recipe.converter is None:
            made, origin = {recipe.targets[0]: shapes[keys[0]]}, keys[0]
        else:
            origin = f"{recipe.targets[0]}, made of {len(keys)} tensors ({keys[0]}, ...),"
            try:
                tried = recipe.run(model, read, dtypes)
            except (AssertionError, RuntimeError, ValueError, KeyError, IndexError) as error:
                # Up to torch 2.8 the meta device asserts what others raise.
                raise CheckpointError(
                    f"{origin} cannot be made from what is in {place}: {error}. The checkpoint is "
                    "incomplete, or its config does not belong to these weights."
                ) from error
            made = {name: tuple(tensor.shape) for name, tensor in tried.items()}
        for name in recipe.targets:
            if made.get(name) != tuple(state[name].shape):
                raise CheckpointError(
                    f"{origin} has shape {list(made.get(name, ()))} in the checkpoint, but the "
                    f"config in {place} asks for {list(state[name].shape)}. The checkpoint is "
                    "incomplete, or its config does not belong to these weights."
                )
