"""What clients send: the part of OpenAI's requests that a single local model can honour.

https://platform.openai.com/docs/api-reference/chat and /completions.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, FailFast, Field, ValidationError, model_validator

from rabbitllm.serving.body import decode
from rabbitllm.serving.errors import ApiError
from rabbitllm.serving.fields import Fields, Neutral, refusal
from rabbitllm.text import sampling

Kind = TypeVar("Kind", bound="Request")

LABELS: Neutral = {
    "metadata": (dict,),
    "prompt_cache_key": (str,),
    "safety_identifier": (str,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "user": (str,),
}
"""What clients note about a request, and what a server without accounts and tiers does anyway."""
NO_PENALTIES: Neutral = {
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
}
NO_TOOLS: Neutral = {
    "function_call": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (bool,),
}
COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` in /v1/completions."""
SEEDS = (-(2**63), 2**64 - 1)
"""What torch takes."""
STOPS, STOP_LENGTH = 64, 1_000
"""Stop strings that are looked for in every token's text, and characters of each."""


MOST_ANSWERS, MOST_TOP = 64, 20
"""Answers to one request, and tokens that are named at each place."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _stop(value: Any) -> str | int:
    if type(value) is int or (isinstance(value, str) and len(value) <= STOP_LENGTH):
        return value
    raise ValueError(f"a text of at most {STOP_LENGTH} characters, or a token id, is needed")


class StreamOptions(Fields):
    """A request's `stream_options`."""

    neutral: ClassVar[Neutral] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class Request(Fields):
    """What both kinds of request share."""

    source: ClassVar[str]
    """The field that the prompt is made of."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    seed: int | None = Field(None, ge=SEEDS[0], le=SEEDS[1])
    stop: Annotated[
        list[Annotated[Any, BeforeValidator(_stop)]],
        FailFast(),
        Field(max_length=STOPS, default_factory=list),
        BeforeValidator(_listed),
    ]
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)

    @property
    def limit(self) -> int | None:
        """The most tokens to generate; None where the server decides."""
        return self.max_tokens

    @property
    def schema_of_answers(self) -> Any:
        """The JSON schema that answers keep to; None where they are free."""
        return None

    def sampling(self) -> dict[str, Any]:
        """Options of transformers' `generate`; what is not asked for stays the checkpoint's own."""
        asked = sampling(self.temperature, self.top_p)
        top_k = None if self.top_k is None else max(0, self.top_k)
        drawn = {"top_k": top_k, "min_p": self.min_p}
        given = {name: value for name, value in drawn.items() if value is not None}
        if given and asked.get("do_sample", True):
            asked |= given | {"do_sample": True}
        if self.repetition_penalty is not None:
            asked["repetition_penalty"] = self.repetition_penalty
        return asked

    @property
    def seeds(self) -> list[int | None]:
        """Of the draws of each answer; the first is as if it were alone."""
        if self.seed is None:
            return [None] * self.n
        least, most = SEEDS
        return [least + (self.seed - least + i) % (most - least + 1) for i in range(self.n)]

    @property
    def top(self) -> int | None:
        """Of how many of the likeliest tokens logprobs are asked for; None for none."""
        raise NotImplementedError


class Part(Fields):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: str


def _in_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Function(Fields):
    """A function that a model may call.

    Attributes:
        parameters: a JSON schema.
        strict: a call's arguments keep to it.
    """

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Fields):
    """What a request offers."""

    type: Literal["function"]
    function: Function


class Called(Fields):
    """What a model has called.

    Attributes:
        arguments: JSON.
    """

    name: str
    arguments: str


class Call(Fields):
    """A call in an answer that is sent back."""

    id: str
    type: Literal["function"] = "function"
    function: Called

    def as_template_input(self) -> dict[str, Any]:
        """The call as chat templates take it: with arguments, not their JSON."""
        try:
            arguments = decode(self.function.arguments.encode())
        except ValueError as error:
            raise ValueError(f"the arguments of {self.id!r} are no JSON: {error}") from error
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Fields):
    """One turn of a conversation; what an answer of this server holds may be sent back."""

    neutral: ClassVar[Neutral] = {"annotations": ([],)}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[Part],
        FailFast(),
        Field(min_length=1, default_factory=list),
        BeforeValidator(_in_parts),
    ]
    tool_calls: list[Call] = Field(default_factory=list)
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _say_something(self) -> "Message":
        if not self.content and self.role != "assistant":
            raise ValueError("A message needs content")
        if (self.tool_calls or self.reasoning_content) and self.role != "assistant":
            raise ValueError("tool_calls and reasoning_content are the assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id goes with the role 'tool'")
        return self

    def as_template_input(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        text = "".join(part.text for part in self.content)
        turn = {"role": "system" if self.role == "developer" else self.role, "content": text}
        optional = {
            "tool_calls": [call.as_template_input() for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
        }
        return turn | {name: value for name, value in optional.items() if value}


class ResponseFormat(Fields):
    """A request's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _with_a_schema(self) -> "ResponseFormat":
        given = self.json_schema or {}
        if unknown := given.keys() - {"name", "description", "schema", "strict"}:
            raise ValueError(f"json_schema has no {min(unknown)!r}")
        if (self.type == "json_schema") != ("schema" in given):
            raise ValueError("json_schema.schema goes with type 'json_schema'")
        return self

    @property
    def schema_of_answers(self) -> Any:
        """What answers have to be; None if they may be anything."""
        if self.json_schema is not None:
            return self.json_schema["schema"]
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    source: ClassVar[str] = "messages"
    neutral: ClassVar[Neutral] = (
        LABELS
        | NO_PENALTIES
        | NO_TOOLS
        | {
            "modalities": (["text"],),
            "verbosity": ("medium",),
        }
    )

    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], FailFast()] = Field(default_factory=list)
    tool_choice: Literal["none", "auto"] = "auto"

    @model_validator(mode="after")
    def _one_form(self) -> "ChatRequest":
        if self.strict_functions and self.schema_of_answers is not None:
            raise ValueError("strict functions and response_format exclude each other")
        return self

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The functions that the model may call; None if it may call none."""
        if self.tool_choice == "none" or not self.tools:
            return None
        return [tool.model_dump(exclude={"function": {"strict"}}) for tool in self.tools]

    @property
    def strict_functions(self) -> list[dict[str, Any]]:
        """All functions that may be called, if the arguments of some are held to their schema."""
        held = self.tool_choice != "none" and any(tool.function.strict for tool in self.tools)
        return [tool.function.model_dump() for tool in self.tools] if held else []

    @property
    def top(self) -> int | None:
        """Of how many of the likeliest tokens logprobs are asked for; None for none."""
        return self.top_logprobs if self.logprobs else None

    @property
    def schema_of_answers(self) -> Any:
        """The JSON schema that answers keep to; None where they are free."""
        return self.response_format and self.response_format.schema_of_answers

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ: send one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens to generate, by either of its names; None where the server decides."""
        return self.max_completion_tokens or self.max_tokens


def _one_prompt(prompt: Any) -> Any:
    """A text or token ids, also if they are all that a list holds."""
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list))
    if several and len(prompt) > 1:
        raise ValueError("several prompts in one request are not supported by this server")
    one = prompt[0] if several else prompt
    if isinstance(one, str) or (isinstance(one, list) and all(type(id_) is int for id_ in one)):
        return one
    raise ValueError("a text, or a list of token ids, is needed")


class CompletionRequest(Request):
    """POST /v1/completions; one prompt, as text or as token ids."""

    source: ClassVar[str] = "prompt"
    neutral: ClassVar[Neutral] = LABELS | NO_PENALTIES | {"best_of": (1,), "suffix": ("",)}

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    @model_validator(mode="after")
    def _no_logprobs_of_prompts(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported by this server")
        return self

    @property
    def top(self) -> int | None:
        """Of how many of the likeliest tokens logprobs are asked for; None for none."""
        return self.logprobs

    @property
    def limit(self) -> int:
        """The most tokens to generate."""
        return self.max_tokens or COMPLETION_TOKENS


def read(body: bytes) -> Any:
    """The fields of a body.

    Raises:
        ApiError: it is no JSON.
    """
    try:
        return decode(body)
    except ValueError as error:
        raise ApiError(400, f"The body is no request in JSON: {error}.") from error


def validated(kind: type[Kind], fields: Any) -> Kind:
    """A request of this kind.

    Raises:
        ApiError: it asks for what cannot be done.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise refusal(error) from error
