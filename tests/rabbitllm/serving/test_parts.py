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
from rabbitllm.serving.parts import Marks, Splitter, marks_of, read_calls
from rabbitllm.serving.prompts import Prompts
from rabbitllm.serving.worker import Worker

THINKS = ("<think>", "</think>")
HERMES = ("<tool_call>", "</tool_call>")
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


def split(marks: Marks, text: str, size: int) -> tuple[dict[str, str], list[str]]:
    splitter, parts = Splitter(marks), dict[str, str]()
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for part, new in [pair for piece in pieces for pair in splitter.feed(piece)] + list(
        splitter.end()
    ):
        parts[part] = parts.get(part, "") + new
    return parts, splitter.calls


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("marks", "text", "parts", "calls"),
    [
        (Marks(), " <think>x</think> y", {"content": " <think>x</think> y"}, []),
        (
            Marks(THINKS),
            "<think>\nhm < 3\n</think>\n\nYes",
            {"reasoning_content": "hm < 3\n", "content": "Yes"},
            [],
        ),
        (Marks(THINKS, True), "hm</think>Yes", {"reasoning_content": "hm", "content": "Yes"}, []),
        (Marks(THINKS, True), "hm", {"reasoning_content": "hm"}, []),
        (Marks(THINKS), "Yes <think>", {"content": "Yes <think>"}, []),
        (Marks(THINKS), "<thin", {"content": "<thin"}, []),
        (
            Marks(None, False, HERMES),
            f"Look: <tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>",
            {"content": "Look: "},
            [f"\n{CALL}\n", CALL],
        ),
        (Marks(None, False, ("[TOOL_CALLS]", "")), f"[TOOL_CALLS] [{CALL}]", {}, [f" [{CALL}]"]),
        (
            Marks(THINKS, True, HERMES),
            f"so</think><tool_call>{CALL}</tool_call>",
            {"reasoning_content": "so"},
            [CALL],
        ),
    ],
)
def test_an_answer_has_parts(
    marks: Marks, text: str, parts: dict[str, str], calls: list[str], size: int
) -> None:
    assert split(marks, text, size) == (parts, calls)


def test_calls_are_read() -> None:
    made = read_calls([CALL, f"[{CALL}, {CALL}]"])
    assert made is not None
    assert len({call["id"] for call in made}) == 3
    for call in made:
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


@pytest.mark.parametrize("text", ["", "{", "5", "[5]", "{}", '{"arguments": {}}'])
def test_what_is_no_call_is_none(text: str) -> None:
    assert read_calls([CALL, text]) is None


def test_the_template_shows_how_they_are_written() -> None:
    template = "{{ tools }} <tool_call> </think>"
    assert marks_of(template, "hi", False, []) == Marks(THINKS)
    assert marks_of(template, "x<think>\n", True, []) == Marks(THINKS, True, HERMES)
    assert marks_of("plain", "hi", True, []) == Marks()
    assert marks_of(template, "hi", True, ["<tool_call>", "</think>"]) == Marks()


class Forced(LogitsProcessor):
    """Has an answer be this text."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[0, self.ids.pop(0)] = 0
        return forced


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} say <tool_call>{% endif %}{# </think> #}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{{ (message.tool_calls or []) | tojson }}{% endfor %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def client(
    talker: Path, streamed: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A model that thinks, speaks and calls."""
    model = streamed(talker)
    model.tokenizer.chat_template = TEMPLATE
    options = Prompts._options

    def forced(self: Prompts, asked: Any) -> list[dict[str, Any]]:
        ids = model.tokenizer(f"<think>hm</think>Look<tool_call>{CALL}</tool_call>").input_ids
        ids.append(model.tokenizer.eos_token_id)
        return [each | {"processors": [Forced(list(ids))]} for each in options(self, asked)]

    monkeypatch.setattr(Prompts, "_options", forced)
    app = create_app(Worker(model, 1 << 28, 4), "talker", Admission(None, None), 200)
    with TestClient(app) as made:
        yield made


def ask(client: TestClient, **fields: Any) -> Any:
    asked = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
    return client.post("/v1/chat/completions", json=asked | fields)


def test_a_call_is_one_for_clients_too(client: TestClient) -> None:
    (choice,) = ask(client).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Look")
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    answered = [
        {"role": "user", "content": "Hi"},
        message,
        {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"},
    ]
    assert ask(client, messages=answered).status_code == 200


def test_a_streamed_call_is_the_same(client: TestClient) -> None:
    lines = ask(client, stream=True).text.split("\n\n")
    chunks = [
        json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")
    ]
    parts: dict[str, str] = {}
    for chunk in chunks:
        for part, text in chunk["choices"][0]["delta"].items():
            if isinstance(text, str):
                parts[part] = parts.get(part, "") + text
    assert parts == {"role": "assistant", "content": "Look", "reasoning_content": "hm"}
    last = chunks[-1]["choices"][0]
    assert last["finish_reason"] == "tool_calls"
    (call,) = last["delta"]["tool_calls"]
    assert (call["index"], call["function"]["name"]) == (0, "weather")


def test_without_an_offer_nothing_is_a_call(client: TestClient) -> None:
    (choice,) = ask(client, tool_choice="none").json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == f"Look<tool_call>{CALL}</tool_call>"
