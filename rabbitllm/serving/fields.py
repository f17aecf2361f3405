"""How a request's fields are read: each is honoured, asks for nothing, or is refused by name."""

import reprlib
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from rabbitllm.serving.errors import ApiError

Neutral = dict[str, tuple[Any, ...]]


class Fields(BaseModel):
    """An object whose every field is known.

    Attributes:
        neutral: fields that are not supported, and the values that ask for nothing; a type among
            them stands for all its values.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_the_rest(cls, fields: Any) -> Any:
        """Stops at the first field: a list of all could be longer than the request."""
        if not isinstance(fields, dict):
            return fields
        for name in fields.keys() - cls.model_fields.keys():
            about = {"field": name, "value": reprlib.repr(fields[name])}
            if name not in cls.neutral:
                raise PydanticCustomError("unknown", "This server knows no such field", about)
            if not any(_same(fields[name], value) for value in cls.neutral[name]):
                raise PydanticCustomError(
                    "unsupported", "{value} is not supported by this server", about
                )
        return {name: fields[name] for name in fields.keys() & cls.model_fields.keys()}


def refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request, and where in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    about = first.get("ctx", {})
    steps = [*first["loc"], *([about["field"]] if "field" in about else [])]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
    between = "=" if first["type"] == "unsupported" else ": "
    reason = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{path}{between}{reason}" if path else reason, param=path or None)


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON, where 1 is not true; or of that type."""
    if isinstance(neutral, type):
        return type(value) is neutral
    return type(value) is type(neutral) and bool(value == neutral)
