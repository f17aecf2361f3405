from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rabbitllm import StreamedModel
from rabbitllm.serving.app import create_app
from rabbitllm.serving.gate import Admission
from rabbitllm.serving.worker import Worker

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "colour": {"enum": ["red", "green", "blue"]},
        "digits": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["sure", "colour", "digits"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(talker: Path, streamed: Callable[..., StreamedModel]) -> Iterator[TestClient]:
    app = create_app(Worker(streamed(talker), 1 << 28, 4), "talker", Admission(None, None), 200)
    with TestClient(app) as made:
        yield made


def ask(client: TestClient, form: Any, **fields: Any) -> Any:
    body = {
        "model": "talker",
        "messages": [{"role": "user", "content": "Hello"}],
        "response_format": form,
    }
    return client.post("/v1/chat/completions", json=body | fields)


def by(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 3}])
def test_answers_keep_to_the_schema(client: TestClient, fields: dict[str, Any]) -> None:
    answer = ask(client, by(SCHEMA), **fields)
    assert answer.status_code == 200, answer.text
    for choice in answer.json()["choices"]:
        said = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert said.keys() == {"sure", "colour", "digits"}
        assert said["colour"] in ("red", "green", "blue")
        assert [type(digit) for digit in said["digits"]] == [int, int]


def test_any_object_begins_as_one(client: TestClient) -> None:
    answer = ask(client, {"type": "json_object"}, max_tokens=3)
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


def test_one_that_is_free_runs_beside_it(client: TestClient) -> None:
    assert "{" not in ask(client, {"type": "text"}, max_tokens=5).text.split('"content"')[1][:9]


@pytest.mark.parametrize("schema", [{"type": "no type"}, 5, {"$ref": "#/nowhere"}])
def test_what_is_no_schema_is_said(client: TestClient, schema: Any) -> None:
    answer = ask(client, by(schema))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("response_format")


def test_without_the_library_the_way_out_is_said(
    talker: Path, streamed: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    app = create_app(Worker(streamed(talker), 1 << 28, 4), "talker", Admission(None, None), 9)
    with TestClient(app) as client:
        answer = ask(client, by(SCHEMA))
    assert answer.status_code == 400
    assert "pip install 'rabbitllm[json]'" in answer.json()["error"]["message"]
