"""Run language models larger than memory by streaming the layers of stock transformers models."""

from rabbitllm.auto import AutoModel
from rabbitllm.errors import BudgetError, CheckpointError
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
