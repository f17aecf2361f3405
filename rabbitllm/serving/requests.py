"""What clients send: the part of OpenAI's requests that a single local model can honour.

https://platform.openai.com/docs/api-reference/chat and /completions.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""Fields that are not supported, and the values besides null that ask for nothing."""


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request share. Unknown fields are ignored, as OpenAI's own server does."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, fields: Any) -> Any:
        for name, neutral in NEUTRAL.items() if isinstance(fields, dict) else ():
            value = fields.get(name)
            if value is not None and value not in neutral:
                raise ValueError(f"{name}={value!r} is not supported by this server")
        return fields

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """Options of transformers' `generate`; what is not asked for stays the checkpoint's own."""
        if self.temperature == 0:
            return {"do_sample": False}
        given = {"temperature": self.temperature, "top_p": self.top_p}
        asked = {name: value for name, value in given.items() if value is not None}
        return asked | {"do_sample": True} if asked else {}


class Part(BaseModel):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str | list[Part] | None = None

    def as_template_input(self) -> dict[str, str]:
        """The message as chat templates take it."""
        parts = self.content if isinstance(self.content, list) else None
        text = "".join(part.text for part in parts) if parts else self.content or ""
        return {"role": "system" if self.role == "developer" else self.role, "content": str(text)}


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        """The most tokens to generate, by either of its names."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """POST /v1/completions; one prompt, as text or as token ids."""

    prompt: str | list[int] | list[str]

    @model_validator(mode="after")
    def _one_prompt(self) -> "CompletionRequest":
        if isinstance(self.prompt, list) and self.prompt and isinstance(self.prompt[0], str):
            if len(self.prompt) > 1:
                raise ValueError("several prompts in one request are not supported by this server")
            self.prompt = self.prompt[0]
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens to generate."""
        return self.max_tokens
