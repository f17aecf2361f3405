"""The model families as data: which model types belong, and the class users know them by."""

from dataclasses import dataclass

from rabbitllm.model import StreamedModel


class RabbitLLMLlama2(StreamedModel):
    """Llama 2 and 3, and every architecture that has no row of its own."""


class RabbitLLMQWen2(StreamedModel):
    """Qwen2, Qwen2.5, Qwen3, Qwen3.5 and their mixture-of-experts variants."""


class RabbitLLMMistral(StreamedModel):
    """Mistral and Ministral."""


class RabbitLLMMixtral(StreamedModel):
    """Mixtral."""


class RabbitLLMInternLM(StreamedModel):
    """InternLM 1, 2 and 3."""


class RabbitLLMBaichuan(StreamedModel):
    """Baichuan and Baichuan2."""


class RabbitLLMQWen(StreamedModel):
    """QWen, the first generation."""


class RabbitLLMChatGLM(StreamedModel):
    """ChatGLM2, ChatGLM3 and GLM-4."""


@dataclass(frozen=True)
class Family:
    """One family of architectures.

    Attributes:
        name: what people call the family, as the compatibility table prints it.
        cls: the class that a streamed model of this family is an instance of.
        model_types: the `model_type` values of its checkpoints' config.json.
    """

    name: str
    cls: type[StreamedModel]
    model_types: tuple[str, ...]

    @property
    def class_name(self) -> str:
        """The name of `cls`, by which users import it from `rabbitllm`."""
        return self.cls.__name__


FAMILIES = (
    Family("Llama 2 / 3", RabbitLLMLlama2, ("llama",)),
    Family(
        "Qwen2 / 2.5 / 3",
        RabbitLLMQWen2,
        (
            *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"),
            *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        ),
    ),
    Family("Mistral", RabbitLLMMistral, ("mistral", "ministral", "ministral3", "mistral3")),
    Family("Mixtral", RabbitLLMMixtral, ("mixtral",)),
    Family("InternLM", RabbitLLMInternLM, ("internlm", "internlm2", "internlm3")),
    Family("Baichuan", RabbitLLMBaichuan, ("baichuan",)),
    Family("Gemma 2 / 3", RabbitLLMLlama2, ("gemma", "gemma2", "gemma3", "gemma3_text")),
    Family("DeepSeek V2 / V3", RabbitLLMLlama2, ("deepseek_v2", "deepseek_v3", "kimi_k2")),
    Family("Phi 2 / 3 / 4", RabbitLLMLlama2, ("phi", "phi3", "phimoe", "phi4_multimodal")),
    Family("QWen v1", RabbitLLMQWen, ("qwen",)),
    Family("ChatGLM", RabbitLLMChatGLM, ("chatglm", "glm", "glm4")),
    Family("gpt-oss", RabbitLLMLlama2, ("gpt_oss",)),
    Family(
        "More mixtures of experts",
        RabbitLLMLlama2,
        ("glm4_moe", "minimax_m2", "ernie4_5_moe", "olmoe", "granitemoe"),
    ),
)

UNLISTED = Family("other", RabbitLLMLlama2, ())
"""Any other architecture: it streams as well, and counts as Llama-like."""


def family_of(model_type: str) -> Family:
    """The family that lists this `model_type`; `UNLISTED` when none does."""
    return next((row for row in FAMILIES if model_type in row.model_types), UNLISTED)
