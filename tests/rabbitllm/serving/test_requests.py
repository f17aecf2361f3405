"""Every field is honoured, asks for nothing, or is refused by name; no body is an error of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rabbitllm import StreamedModel
from rabbitllm.serving import worker
from rabbitllm.serving.app import create_app
from rabbitllm.serving.gate import Admission
from rabbitllm.serving.worker import Worker
from tests.patience import PATIENCE

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
NAME = "tiny/talker"
JSON = {"Content-Type": "application/json"}
HELLO: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 2,
}
ONCE: dict[str, Any] = {"model": NAME, "prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def client(talker: Path, streamed: Callable[..., StreamedModel]) -> Iterator[TestClient]:
    """A client that gets a status 500 as a response."""
    app = create_app(Worker(streamed(talker), 1 << 28, 4), NAME, Admission(None, None), 6)
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def error_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def said(*turns: object) -> dict[str, Any]:
    return {"messages": list(turns)}


def user(content: object, **fields: object) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


ASKS_FOR_NOTHING: list[dict[str, Any]] = [
    {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
    {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    {"stream_options": {"include_usage": False}},
    {"stop": []},
    {"stop": ""},
    {"max_tokens": 10**30, "stop": ["a", "e", "i", "o", "u", "n", "t", "s", "r", "l", "m"]},
    {"temperature": 1e-300},
    {"temperature": 5e-324, "top_p": 1e-320},
    {"temperature": 1, "top_p": 0},
    {"temperature": 1, "top_p": 1.0},
    {"temperature": 0.7, "seed": -(2**63)},
    {"temperature": 0.7, "seed": 2**64 - 1},
    {"temperature": 0.7, "seed": 2**64 - 1, "n": 3},
    {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
    {"temperature": 0, "top_k": 5},
    {"stop": 7},
    {"stop": ["a", 7]},
]
ASKS_FOR_NOTHING_IN_A_CHAT: list[dict[str, Any]] = [
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": []},
    {"response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0},
    {"max_completion_tokens": 2},
    said({"role": "assistant"}, user("x")),
    said({"role": "assistant", "content": "x", "tool_calls": []}, user("")),
    said(user([{"type": "text", "text": "x"}])),
]


@pytest.mark.parametrize("fields", ASKS_FOR_NOTHING + ASKS_FOR_NOTHING_IN_A_CHAT, ids=repr)
def test_a_field_that_can_be_honoured_is(client: TestClient, fields: dict[str, Any]) -> None:
    assert client.post(CHAT, json=HELLO | fields).status_code == 200


@pytest.mark.parametrize("fields", ASKS_FOR_NOTHING, ids=repr)
def test_also_of_a_completion(client: TestClient, fields: dict[str, Any]) -> None:
    assert client.post(COMPLETION, json=ONCE | fields).status_code == 200


OPTIONAL = [
    "audio",
    "best_of",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "n",
    "no_such_field",
    "presence_penalty",
    "seed",
    "stop",
    "store",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "tools",
    "top_k",
    "top_p",
    "user",
]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_absence(client: TestClient, path: str, name: str) -> None:
    asked = HELLO if path == CHAT else ONCE
    assert client.post(path, json=asked | {"max_tokens": 2, name: None}).status_code == 200


def test_null_is_absence_inside_too(client: TestClient) -> None:
    turn = user("x", name=None, tool_calls=None)
    fields = {"stream": True, "stream_options": {"include_usage": None}} | said(turn)
    assert "usage" not in client.post(CHAT, json=HELLO | fields).text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"x" * 5000: 1}, "x" * 5000),
        ({"stream_options": {"other": 1}}, "stream_options.other"),
        ({"stream_options": []}, "stream_options"),
        ({"stream": 1}, "stream"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": [[[[1]]]]}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, None),
        ({"stop": ["x"] * 50_000}, "stop"),
        ({"stop": ["x" * 10_000]}, "stop[0]"),
        ({"stop": ["x", 5.5]}, "stop[1]"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": "x"}, "messages"),
        (said("x"), "messages[0]"),
        (said(None), "messages[0]"),
        (said(user("x"), {"role": "user"}), "messages[1]"),
        (said({"role": "critic", "content": "x"}), "messages[0].role"),
        (said({"role": "tool", "content": "x"}), "messages[0]"),
        (said(user("x", tool_call_id="1")), "messages[0]"),
        (said({"content": "x"}), "messages[0].role"),
        (said(user(5)), "messages[0].content"),
        (said(user({})), "messages[0].content"),
        (said(user([])), "messages[0].content"),
        (said(user("x", name="me")), "messages[0].name"),
        (
            said(user([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}])),
            "messages[0].content[1]",
        ),
        (said(user([{"type": "text", "text": "x", "other": 1}])), "messages[0].content[0].other"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_cannot_be_honoured_is_named(
    client: TestClient, fields: dict[str, Any], param: str | None
) -> None:
    error = error_of(client.post(CHAT, json=HELLO | fields))
    assert error["type"] == "invalid_request_error"
    if param is None:
        assert "max_completion_tokens" in error["message"]
    else:
        assert error["param"].startswith(param)
        assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([-1], "prompt"),
        ([10**30], "prompt"),
        ([True], "prompt"),
        ([1.0], "prompt"),
        ([1, "x"], "prompt"),
        ([[1], [2]], "prompt"),
        ([[]], "prompt"),
        ({}, "prompt"),
        (None, "prompt"),
        (5, "prompt"),
    ],
)
def test_a_prompt_that_is_none_is_named(client: TestClient, prompt: Any, param: str) -> None:
    error = error_of(client.post(COMPLETION, json=ONCE | {"prompt": prompt}))
    assert error["param"] == param


@pytest.mark.parametrize("name", ["best_of", "echo", "suffix"])
def test_what_only_a_completion_has_is_named_too(client: TestClient, name: str) -> None:
    assert error_of(client.post(COMPLETION, json=ONCE | {name: 3}))["param"] == name


def test_what_cannot_go_together_is_said(client: TestClient) -> None:
    both = {"echo": True, "logprobs": 1}
    assert "echo with logprobs" in error_of(client.post(COMPLETION, json=ONCE | both))["message"]
    alone = {"top_logprobs": 3}
    assert "needs logprobs=true" in error_of(client.post(CHAT, json=HELLO | alone))["message"]


def inside(text: bytes) -> bytes:
    """A chat request with JSON of this kind in it."""
    return json.dumps(HELLO).encode().replace(b'"Hello"', text)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b"[]", "dictionary"),
        (b"null", "dictionary"),
        (b'"text"', "dictionary"),
        (b"\xff\xfe{}", "utf-8"),
        (inside(b'"\xff"'), "utf-8"),
        (inside(b'"a\\ud83d b"'), "surrogate"),
        (inside(b'"x"}, {"\\ud83d": 1'), "surrogate"),
        (inside(b"NaN"), "NaN"),
        (inside(b"-Infinity"), "Infinity"),
        (inside(b"1" * 5_000), "digits"),
        (inside(b"[" * 100_000), "nests too deeply"),
        (inside(b'{"a":' * 50_000), "nests too deeply"),
        (inside(b"[" + b"[]," * 60_000 + b"[]]"), "more than"),
        (inside(b'"x", "content": "y"'), "'content' twice"),
        (b'{"n": 2, "n": 1}', "'n' twice"),
        (b'{"n": 2, "n": null}', "'n' twice"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_is_no_request_is_said(client: TestClient, body: bytes, reason: str) -> None:
    assert reason in error_of(client.post(CHAT, content=body, headers=JSON))["message"]


def test_a_number_beyond_floats_is_no_temperature(client: TestClient) -> None:
    body = json.dumps(HELLO)[:-1].encode() + b', "temperature": 1e999}'
    assert error_of(client.post(CHAT, content=body, headers=JSON))["param"] == "temperature"


@pytest.mark.parametrize("kind", [None, "", "text/plain", "multipart/form-data", "application/x"])
def test_a_body_that_is_not_said_to_be_json_is_refused(
    client: TestClient, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post(CHAT, content=json.dumps(HELLO), headers=headers)
    assert "Content-Type" in error_of(response)["message"]


def test_a_charset_may_be_said(client: TestClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps(HELLO), headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    assert client.request(method, CHAT).status_code == 405


def test_memory_is_given_back_after_large_requests_alone(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Semaphore(0)
    monkeypatch.setattr(worker, "_give_back_memory", called.release)
    assert client.post(CHAT, json=HELLO).status_code == 200
    assert not called.acquire(blocking=False)
    assert client.post(CHAT, json=HELLO | said(user("x" * 100_000))).status_code == 400
    assert called.acquire(timeout=PATIENCE)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('Roles must alternate') }}",
        "{{ messages[5].role }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.no_such_method() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_refuses_is_said(
    streamed: Callable[..., StreamedModel], talker: Path, template: str
) -> None:
    model = streamed(talker)
    model.tokenizer.chat_template = template
    app = create_app(Worker(model, 1 << 28, 4), NAME, Admission(None, None), 6)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert error_of(client.post(CHAT, json=HELLO))["param"] == "messages"


def test_variables_go_to_the_chat_template_or_are_refused_by_name(client: TestClient) -> None:
    sent = said(user("x")) | {"model": NAME, "max_tokens": 1, "chat_template_kwargs": {}}
    assert client.post("/v1/chat/completions", json=sent).status_code == 200
    sent["chat_template_kwargs"] = {"chat_template": "{{ 1 }}"}
    refused = client.post("/v1/chat/completions", json=sent)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chat_template_kwargs"
