from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import LogitsProcessor

from rabbitllm import StreamedModel
from rabbitllm.serving.app import create_app
from rabbitllm.serving.gate import Admission
from rabbitllm.serving.grammar import Grammars
from rabbitllm.serving.parts import WRITTEN, Written
from rabbitllm.serving.prompts import Prompts
from rabbitllm.serving.worker import Worker

pytest.importorskip("llguidance")

HERMES, MISTRAL = WRITTEN
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "parameters": SCHEMA, "strict": True}
TIME = {"name": "time", "parameters": SCHEMA, "strict": False}
GOOD = '{"name": "weather", "arguments": {"city": "Rome", "days": 3}}'
OTHER = '{"name": "time", "arguments": {"at": [1, 2]}}'
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} say <tool_call>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
)


@pytest.fixture
def model(talker: Path, streamed: Callable[..., StreamedModel]) -> StreamedModel:
    return streamed(talker)


def allowed(model: StreamedModel, written: Written, text: str) -> set[str] | None:
    """The first characters of what may follow a text; None if it may not come itself."""
    processor = Grammars(model).of_calls(written, [WEATHER, TIME], "tools")
    tokenizer = model.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    size = max(len(tokenizer), model.config.vocab_size)
    for count in range(len(ids) + 1):
        given = torch.tensor([[0, *ids[:count]]])
        scores = processor(given, torch.zeros(1, size))
        if count < len(ids) and scores[0, ids[count]] == -torch.inf:
            return None
    open_ids = (scores[0] == 0).nonzero().flatten().tolist()
    return {tokenizer.decode([i])[:1] for i in open_ids}


@pytest.mark.parametrize("added", [[], ["<tool_call>", "</tool_call>", "<think>", "</think>"]])
def test_arguments_keep_to_the_schema_behind_the_mark(
    model: StreamedModel, added: list[str]
) -> None:
    model.tokenizer.add_tokens(added)
    before = "<think>{5</think> Look: <tool_call>"
    assert allowed(model, HERMES, before) == {"\n"}
    assert allowed(model, HERMES, f'{before}\n{{"name": "') == {"w", "t"}
    assert allowed(model, HERMES, before + '\n{"name": "weather", "arguments": {"city": "') == {
        *("P", "R"),
    }
    assert allowed(model, HERMES, before + '\n{"name": "weather", "arguments": {"x') is None
    assert allowed(model, HERMES, f"{before}\n{GOOD[:-1]}") == {"}"}
    after = allowed(model, HERMES, f"{before}\n{GOOD}\n</tool_call>")
    assert after
    assert {"a", "<", "{"} < after
    assert allowed(model, HERMES, f"{before}\n{GOOD}\n</tool_call>\n<tool_call>") == {"\n"}


def test_a_function_that_is_not_strict_takes_any_object(model: StreamedModel) -> None:
    assert allowed(model, HERMES, f"<tool_call>\n{OTHER}\n</tool_call>")
    assert allowed(model, HERMES, '<tool_call>\n{"name": "time", "arguments": 5') is None


@pytest.mark.parametrize("added", [[], ["[TOOL_CALLS]"]])
def test_several_calls_of_one_mark(model: StreamedModel, added: list[str]) -> None:
    model.tokenizer.add_tokens(added)
    assert allowed(model, MISTRAL, "[TOOL_CALLS]") == {"["}
    assert allowed(model, MISTRAL, f"[TOOL_CALLS][{GOOD}") == {",", "]"}
    assert allowed(model, MISTRAL, f"[TOOL_CALLS][{GOOD}, {OTHER}]")


class Opened(LogitsProcessor):
    """Has an answer begin with this text."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.ids:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[0, self.ids.pop(0)] = 0
        return forced


@pytest.fixture
def client(model: StreamedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A model that begins a call, as it likes from there."""
    model.tokenizer.chat_template = TEMPLATE
    options = Prompts._options
    opening = model.tokenizer("<tool_call>", add_special_tokens=False).input_ids

    def opened(self: Prompts, asked: Any) -> list[dict[str, Any]]:
        return [
            each | {"processors": [*each.get("processors", []), Opened(list(opening))]}
            for each in options(self, asked)
        ]

    monkeypatch.setattr(Prompts, "_options", opened)
    app = create_app(Worker(model, 1 << 28, 4), "talker", Admission(None, None), 90)
    with TestClient(app) as made:
        yield made


def ask(client: TestClient, *functions: dict[str, Any], **fields: Any) -> Any:
    tools = [{"type": "function", "function": function} for function in functions]
    asked = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    return client.post("/v1/chat/completions", json=asked | fields)


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 3}])
def test_a_strict_call_of_the_server_keeps_to_its_schema(
    client: TestClient, fields: dict[str, Any]
) -> None:
    answer = ask(client, WEATHER, stop=["</tool_call>"], **fields)
    assert answer.status_code == 200, answer.text
    for choice in answer.json()["choices"]:
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        arguments = json.loads(call["function"]["arguments"])
        assert arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Paris", "Rome")
        assert isinstance(arguments["days"], int)


def test_without_strict_the_model_writes_what_it_likes(client: TestClient) -> None:
    assert ask(client, TIME).status_code == 200
    assert "tool_calls" not in ask(client, TIME, temperature=0).json()["choices"][0]["message"]
    assert ask(client, WEATHER, tool_choice="none").status_code == 200


def test_the_prompt_is_that_of_the_same_functions_without_it(client: TestClient) -> None:
    counts = [
        ask(client, WEATHER | {"strict": strict}, max_tokens=1).json()["usage"]["prompt_tokens"]
        for strict in (True, False, None)
    ]
    assert counts[0] == counts[1] == counts[2]


def test_a_form_for_the_whole_answer_excludes_it(client: TestClient) -> None:
    answer = ask(client, WEATHER, response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert "exclude each other" in answer.json()["error"]["message"]


@pytest.mark.parametrize("parameters", [{"type": "no type"}, {"$ref": "#/nowhere"}])
def test_what_is_no_schema_is_said(client: TestClient, parameters: dict[str, Any]) -> None:
    answer = ask(client, WEATHER | {"parameters": parameters})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "tools"


def test_a_model_whose_calls_are_unknown_refuses_tools_by_name(
    model: StreamedModel, client: TestClient
) -> None:
    model.tokenizer.chat_template = "{{ tools }}{{ messages[0].content }}"
    answer = ask(client, WEATHER)
    assert answer.status_code == 400
    assert "no way of calling that is known here" in answer.json()["error"]["message"]
