"""What the official client's helpers make of tools and schemas, unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.patience import PATIENCE
from tests.rabbitllm.serving.processes import serving

QUESTION: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def client(caller: Path) -> Iterator[openai.OpenAI]:
    with (
        serving(caller, "--host-memory", "min", "--name", "caller") as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as made,
    ):
        yield made


def test_a_call_and_what_comes_of_it(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(model="caller", messages=QUESTION, tools=TOOLS)
    (choice,) = asked.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Paris"},
    )
    told = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turns = [*QUESTION, choice.message, told]
    answer = client.chat.completions.create(model="caller", messages=turns, tools=TOOLS)
    assert answer.choices[0].message.content == "It rains in Paris."
    assert answer.choices[0].finish_reason == "stop"


def test_a_streamed_call_is_the_same(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="caller", messages=QUESTION, tools=TOOLS, stream=True
    )
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    (call,) = [call for choice in choices for call in choice.delta.tool_calls or []]
    assert call.function
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments or "") == {"city": "Paris"}
    assert choices[-1].finish_reason == "tool_calls"


class Weather(BaseModel):
    """What an answer has to be."""

    sky: Literal["clear", "grey"]
    wind: bool


def test_the_clients_parse_helper_gets_what_it_asks_for(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    answer = client.chat.completions.parse(
        model="caller", messages=QUESTION, response_format=Weather, max_tokens=200
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Weather)
    assert parsed.sky in ("clear", "grey")


def test_logprobs_come_with_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="caller", messages=QUESTION, stream=True, logprobs=True, top_logprobs=2, temperature=0
    )
    shares = [
        share
        for chunk in stream
        if chunk.choices and (logprobs := chunk.choices[0].logprobs)
        for share in logprobs.content or []
    ]
    assert shares
    assert shares[0].token.startswith("<tool_call>")
    assert len(shares[0].top_logprobs) == 2
    assert shares[0].logprob == max(top.logprob for top in shares[0].top_logprobs)
