"""Which models' sequences can share passes, and how long they may be."""

import inspect
from typing import Any

from rabbitllm.batching.cache import can_hold_rows
from rabbitllm.model import StreamedModel

CACHES = ("cache", "past_key_values")
"""What forwards call their cache, in newer and older releases."""
GROWING_ROPES = ("dynamic", "longrope")
"""Ropes whose frequencies depend on the longest sequence of a batch, beyond a length."""


def can_share(model: StreamedModel) -> bool:
    """Whether sequences of a model can be rows of one padded batch, and come and go."""
    stock: Any = type(model)
    own = stock.__module__.startswith("transformers.models.")
    text = model.config.get_text_config(decoder=True)
    names = inspect.signature(model.forward).parameters
    return (
        own
        and not model.config.is_encoder_decoder
        and "attention_mask" in names
        and any(name in names for name in CACHES)
        and stock._supports_default_dynamic_cache()
        and can_hold_rows(text)
    )


def rope_bound(model: StreamedModel) -> int | None:
    """Tokens up to which a sequence's positions do not depend on the others' lengths."""
    text = model.config.get_text_config(decoder=True)
    ropes = getattr(text, "rope_parameters", None) or {}
    each = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]
    growing = [rope for rope in each if rope.get("rope_type") in GROWING_ROPES]
    if not growing:
        return None
    trained = growing[0].get("original_max_position_embeddings")
    trained = trained or getattr(text, "original_max_position_embeddings", None)
    return int(trained or text.max_position_embeddings)
