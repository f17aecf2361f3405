"""Which attention backend a model runs: the asked one, or the best that works."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rabbitllm.checkpoint.legacy import Inputs
from rabbitllm.errors import first_line, nearest
from rabbitllm.utils.platform import is_flash_attention_available

logger = logging.getLogger(__name__)

CHAIN = ("flash_attention_2", "sdpa", "eager")
"""From fastest to most widely supported."""
FLASH_DTYPES = (torch.float16, torch.bfloat16)

Model = TypeVar("Model", bound=PreTrainedModel)
Backend = str | dict[str, str | None]
"""A backend's name in transformers, or one for each part of a model: "" for its own layers, else
the part's name in the config, such as "vision_config"; None leaves one to transformers."""


def check_backend(asked: Backend) -> None:
    """Before anything is fetched or built.

    Raises:
        ValueError: stock transformers has no such backend, nor can it be a kernel of the hub.
    """
    known = {"auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    for name in [asked] if isinstance(asked, str) else filter(None, asked.values()):
        if "/" not in name and name.removeprefix("paged|") not in known:
            raise ValueError(
                f"attn_implementation={name!r} is not known.{nearest(name, known)} There are "
                f"{', '.join(sorted(known))}, and kernels of the hub as in 'kernels-community/...'."
            )


def backend_of(config: PretrainedConfig) -> Backend:
    """What a config names: one backend, or one for each part where they differ."""
    own = config._attn_implementation
    parts = {
        name: part._attn_implementation
        for name in config.sub_configs
        if (part := getattr(config, name, None)) is not None
    }
    return {"": own} | parts if set(parts.values()) - {own} else own or "auto"


def candidates(
    asked: Backend, device: torch.device, dtype: torch.dtype, inputs: Inputs | None = None
) -> tuple[list[Backend], str | None]:
    """The backends to try in turn, and why the fastest or the asked one is not among them.

    Args:
        asked: "auto" or a backend's name in transformers; names for parts are the only candidate.
        device: where the model runs.
        dtype: of its activations.
        inputs: a legacy family's inputs, if only some backends take them.
    """
    if not isinstance(asked, str):
        return [asked], None
    wanted: list[Backend]
    wanted = (
        list(CHAIN) if asked == "auto" else [asked, *(name for name in CHAIN[1:] if name != asked)]
    )
    if inputs and wanted[0] not in inputs.backends:
        return [name for name in wanted if name in inputs.backends], inputs.why
    if wanted[0] != "flash_attention_2":
        return wanted, None
    available, reason = is_flash_attention_available(device)
    if available and dtype not in FLASH_DTYPES:
        available, reason = (
            False,
            f"it needs float16 or bfloat16, not {str(dtype).removeprefix('torch.')}",
        )
    if available:
        logger.info("Attention: Flash Attention 2 available on %s", reason)
        return wanted, None
    return wanted[1:], reason


def build_with_attention(
    build: Callable[[Backend], Model],
    asked: Backend,
    device: torch.device,
    dtype: torch.dtype,
    inputs: Inputs | None = None,
) -> Model:
    """Builds the model with the first backend that it accepts.

    Args:
        build: makes the model for one; transformers raises ValueError or ImportError
            for one that cannot be.
        asked: "auto" or what transformers takes.
        device: where the model runs.
        dtype: of its activations.
        inputs: a legacy family's inputs, if only some backends take them.

    Raises:
        ValueError: the model accepts none of them.
    """
    names, reason = candidates(asked, device, dtype, inputs)
    for position, name in enumerate(names):
        try:
            model = build(name)
        except (ValueError, ImportError) as error:
            if position + 1 == len(names):
                raise
            reason = reason or f"{name}: {first_line(error)}"
            continue
        active = str(model.config._attn_implementation)
        if asked == "auto" and reason:
            logger.info(
                "Flash Attention not available: %s. Using %s",
                reason,
                active.upper() if active == "sdpa" else active,
            )
        elif isinstance(asked, str) and asked not in ("auto", active):
            logger.warning(
                "attn_implementation=%r is not available (%s). Using %r.",
                asked,
                reason or "the model replaced it",
                active,
            )
        logger.info("Model initialized with attn_implementation=%r", active)
        return model
    raise AssertionError("names is never empty")
