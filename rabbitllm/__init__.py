"""Run language models larger than memory by streaming the layers of stock transformers models."""

import importlib
from typing import TYPE_CHECKING, Any

from rabbitllm.deprecated import rename
from rabbitllm.errors import BudgetError, CheckpointError
from rabbitllm.utils.installed import require_torch

if TYPE_CHECKING:
    from rabbitllm.auto import AutoModel
    from rabbitllm.batching import Batch
    from rabbitllm.families import (
        FAMILIES,
        RabbitLLMBaichuan,
        RabbitLLMChatGLM,
        RabbitLLMInternLM,
        RabbitLLMLlama2,
        RabbitLLMMistral,
        RabbitLLMMixtral,
        RabbitLLMQWen,
        RabbitLLMQWen2,
    )
    from rabbitllm.model import StreamedModel

__version__ = "2.0.0"

__all__ = [
    "FAMILIES",
    "AutoModel",
    "Batch",
    "BudgetError",
    "CheckpointError",
    "RabbitLLMBaichuan",
    "RabbitLLMChatGLM",
    "RabbitLLMInternLM",
    "RabbitLLMLlama2",
    "RabbitLLMMistral",
    "RabbitLLMMixtral",
    "RabbitLLMQWen",
    "RabbitLLMQWen2",
    "StreamedModel",
]

_HOMES = {
    "AutoModel": "rabbitllm.auto",
    "Batch": "rabbitllm.batching",
    "StreamedModel": "rabbitllm.model",
}


def __getattr__(name: str) -> Any:
    if (new := rename(name)) in globals():
        return globals()[new]
    if new not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # torch and transformers take seconds to import; `rabbitllm --help` needs neither.
    require_torch()
    return getattr(importlib.import_module(_HOMES.get(new, "rabbitllm.families")), new)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
