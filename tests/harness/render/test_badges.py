from __future__ import annotations

import json

from harness.matrix import load_matrix
from harness.render.badges import badges


def cell(architecture, status="pass", attention="sdpa", release="5.1.0", device="cpu"):
    return {
        "architecture": architecture,
        "transformers": release,
        "attention": attention,
        "device": device,
        "status": status,
    }


def made(*cells):
    rows = load_matrix().architectures
    found = badges(cells, rows, "5.1.0")
    return {name: json.loads(text)["message"] for name, text in found.items()}


def test_a_family_and_its_model_types_have_badges():
    assert made(cell("qwen2"), cell("qwen3", "stock-wrong")) == {
        "family-qwen2-2-5-3.json": "1 of 2 cells pass",
        "type-qwen2.json": "works",
        "type-qwen3.json": "0 of 1 cells pass",
    }


def test_only_the_newest_release_and_what_every_machine_runs_counts():
    others = [
        cell("qwen2", "fail", release="5.0.0"),
        cell("qwen2", "fail", device="cuda"),
        cell("qwen2", "not-run"),
        cell("qwen2", "fail", attention="uncompiled flex_attention"),
    ]
    assert set(made(cell("qwen2"), *others).values()) == {"works"}
    assert made(*others) == {}


def test_the_label_names_the_release():
    text = badges([cell("qwen2")], load_matrix().architectures, "5.1.0")["type-qwen2.json"]
    assert json.loads(text)["label"] == "qwen2 on transformers 5.1.0"
    assert json.loads(text)["color"] == "brightgreen"
