from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers.cache_utils import DynamicCache

from harness.stock import snapshot, store
from harness.stock.differences import ANSWERS, differences
from harness.stock.store import Asked, read, take, write


@pytest.fixture(scope="module")
def facts():
    return snapshot.facts(["llama", "no_such_type"])


def test_a_type_has_defaults_parameters_and_layers(facts):
    assert facts["llama: builds"] == "yes"
    assert facts["llama: config num_hidden_layers"] == "32"
    assert facts["llama: parameter model.layers.*.self_attn.q_proj.weight"] == "[4096, 4096]"
    assert facts["llama: layer LlamaDecoderLayer"].startswith("(self, hidden_states, ")
    assert not any(fact.startswith("no_such_type") for fact in facts)


def test_interfaces_have_signatures_and_attention_has_backends(facts):
    assert facts["caches: DynamicCache.__init__"].startswith("(self")
    assert "config" in facts["masks: create_causal_mask"]
    assert facts["attention: sdpa"] == "there"


def test_a_type_that_a_release_cannot_build_says_why(monkeypatch):
    def refuse(config):
        raise ValueError("no such\nthing")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", refuse)
    found = snapshot.facts(["llama"])
    assert found["llama: builds"] == "no, ValueError: no such thing"


def test_a_signature_that_changes_is_a_difference(facts, monkeypatch):
    def reset(self, deep=False):
        raise NotImplementedError

    monkeypatch.setattr(DynamicCache, "reset", reset, raising=False)
    after = snapshot.facts(["llama"])
    found = next(d for d in differences(facts, after) if d.subject not in ANSWERS)
    assert (found.subject, found.what) == ("caches", "DynamicCache.reset")


@dataclass
class Here:
    """Environments that are all this one."""

    bin: Path
    variables: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    release: str = "5.0.0"

    def make(self, release):
        return self


@pytest.fixture
def asked(tmp_path):
    return Asked(tmp_path / "questions", "abc", {"smol": tmp_path / "smol.gguf"})


def scripts(folder, monkeypatch, text):
    """Stands two scripts in for those that a release runs."""
    for name in ("snapshot", "answers"):
        script = folder / f"{name}.py"
        script.write_text(text)
        monkeypatch.setattr(getattr(store, name), "__file__", str(script))


def test_the_scripts_run_by_themselves_and_a_file_keeps_their_facts(tmp_path, monkeypatch, asked):
    echo = "import json, sys; print(json.dumps({sys.argv[0][-11:]: ' '.join(sys.argv[1:])}))"
    scripts(tmp_path, monkeypatch, echo)
    facts = take("5.0.0", ["llama", "gemma2"], Here(Path(sys.executable).parent), asked)
    assert facts == {
        "questions: digest": "abc",
        "snapshot.py": "llama gemma2",
        "/answers.py": f"{tmp_path / 'questions'} smol={tmp_path / 'smol.gguf'}",
    }
    write("5.0.0", facts, tmp_path / "stock")
    assert read("5.0.0", tmp_path / "stock") == facts
    assert read("5.1.0", tmp_path / "stock") == {}


def test_a_script_that_fails_is_an_error_with_its_last_line(tmp_path, monkeypatch, asked):
    scripts(tmp_path, monkeypatch, "raise KeyError('transformers is broken')")
    with pytest.raises(ValueError, match=r"5\.0\.0: KeyError: 'transformers is broken'"):
        take("5.0.0", [], Here(Path(sys.executable).parent), asked)
