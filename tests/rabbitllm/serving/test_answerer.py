"""Columns of prompts, without a cluster; with one: tests/rabbitllm/ecosystem/test_ray.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rabbitllm.serving.answerer import Answerer
from rabbitllm.text import generate


def test_each_prompt_has_its_answer_or_its_error(talker: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "host_memory": "min"}
    answerer = Answerer(
        talker, column="asked", max_new_tokens=6, generation={"do_sample": False}, **options
    )
    chat = [{"role": "user", "content": "Hello"}]
    cells: list[Any] = ["Once", "", chat, "a longer one", "x" * 30_000, 7]
    block = answerer({"asked": cells, "id": list(range(6))})
    assert (block["asked"], block["id"]) == (cells, list(range(6)))
    assert [error is None for error in block["error"]] == [True, False, True, True, False, False]
    assert block["answer"][1] is block["answer"][4] is None
    assert "empty" in block["error"][1]
    assert "context is 20000" in block["error"][4]
    model = answerer.model
    for place, text in ((0, "Once"), (2, "<user>Hello\n<assistant>"), (3, "a longer one")):
        said: list[str] = []
        ids = torch.tensor([model.tokenizer(text).input_ids])
        generate(model, ids, said.append, max_new_tokens=6, do_sample=False)
        assert block["answer"][place] == "".join(said)
    assert answerer({"asked": []}) == {"asked": [], "answer": [], "error": []}
