from __future__ import annotations

import json
from pathlib import Path

import pytest

from rabbitllm.releases import checkup, index
from rabbitllm.releases.environments import Environment

INDEX = ["4.57.6", "5.3.0", "5.4.0", "5.4.1", "5.5.0"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder that only looks like a checkpoint, and the place to be in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def tokens(model, monkeypatch):
    """Have each release generate the tokens that the returned dict has for it."""
    given, asked = {}, []

    def make(environments, release):
        return Environment(release, Path("/none") / release)

    def reply(question, variables, python, timeout):
        asked.append(dict(question))
        if question["weights"] and reply.made:
            (Path(question["folder"]) / "model.safetensors").touch()
        answer = {
            "errors": {},
            "weights": {"missing": [], "mismatched": []},
            "backend": "sdpa",
            "input": [1],
            "watched": [[0]],
            "logits": {"digest": "a", "largest": 1.0, "values": [[1.0]]},
            "tokens": given.get(python.parts[2], [1]),
            "cached": None,
            "backends": {},
        }
        return answer

    monkeypatch.setattr(index, "ask_index", lambda pre: INDEX)
    monkeypatch.setattr("rabbitllm.releases.environments.Environments.make", make)
    monkeypatch.setattr(checkup, "ask", reply)
    reply.given, reply.asked, reply.made = given, asked, True
    return reply


def test_a_release_that_gives_other_tokens_is_found_and_named(command, model, tokens):
    tokens.given |= {"5.4.1": [2], "5.5.0": [2]}
    status, out, err = command("check", model, "--releases", "5.3,newest", "--reports", "reports")
    assert status == 1
    assert "tokens broke in 5.4.1 (last good: 5.4.0)" in out
    assert "2 releases, 5.3.0 to 5.5.0\n" in err
    assert "5.5.0: bad" in err
    assert "commit it" in err
    assert {file.name for file in Path("reports").iterdir()} == {
        "badge.json",
        "check.html",
        "check.json",
        "check.md",
        "issue.md",
    }
    assert "5.4.1: new -> bad" in Path("reports/issue.md").read_text()
    status, _, err = command("check", model, "--releases", "5.3,newest", "--reports", "reports")
    assert status == 1
    assert not Path("reports/issue.md").exists()
    assert "commit it" not in err


def test_what_is_right_stays_in_the_file(command, model, tokens):
    assert command("check", model, "--releases", "5.3")[0] == 0
    assert json.loads(Path("rabbitllm-golden.json").read_text())["release"] == "5.3.0"
    tokens.given |= {release: [2] for release in INDEX}
    assert command("check", model, "--releases", "5.3")[0] == 1
    (model / "config.json").write_text("{}")
    status, _, err = command("check", model, "--releases", "5.3")
    assert status == 2
    assert "rabbitllm-golden.json is of another checkpoint" in err


def test_the_file_s_folder_is_made_before_any_release_is_asked(command, model, tokens):
    status, _, err = command("check", model, "--releases", "5.3", "--golden", "a/b/right.json")
    assert status == 0
    assert json.loads(Path("a/b/right.json").read_text())["release"] == "5.3.0"
    assert "1 release, 5.3.0\n" in err
    assert "What is right is in a/b/right.json: commit it.\n" in err
    tokens.asked.clear()
    closed = ("--golden", model / "config.json" / "right.json")
    status, _, err = command("check", model, "--releases", "5.3", *closed)
    assert (status, tokens.asked) == (2, [])
    assert f"{model / 'config.json'} cannot be written to: " in err


def test_machines_get_json(command, model, tokens):
    status, out, _ = command("check", model, "--releases", "5.3", "--format", "json")
    found = json.loads(out)
    assert (status, found["status"], found["version"]) == (0, "good", 1)


def test_tiny_layers_are_made_in_a_folder_of_their_own(command, model, tokens):
    status, out, _ = command("check", model, "--releases", "5.3,5.5", "--shrink")
    assert status == 0
    assert "Of tiny layers" in out
    assert [asked["weights"] for asked in tokens.asked] == [True, False]
    assert model not in {Path(asked["folder"]) for asked in tokens.asked}


def test_weights_that_no_release_made_are_asked_for_again(command, model, tokens):
    tokens.made = False
    command("check", model, "--releases", "5.3,5.5", "--shrink")
    assert [asked["weights"] for asked in tokens.asked] == [True, True]


def test_what_is_known_is_kept_when_the_command_is_cut_off(command, model, tokens, monkeypatch):
    def cut(*arguments):
        if tokens.asked:
            raise KeyboardInterrupt
        return tokens(*arguments)

    monkeypatch.setattr(checkup, "ask", cut)
    assert command("check", model, "--releases", "5.3,5.5", "--reports", "a/reports")[0] == 130
    assert json.loads(Path("rabbitllm-golden.json").read_text())["release"] == "5.3.0"
    kept = json.loads(Path("a/reports/check.json").read_text())
    assert [row["release"] for row in kept["releases"]] == ["5.3.0"]


def test_plain_weights_of_a_quantized_config_are_said(command, model, tokens):
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    _, _, err = command("check", model, "--releases", "5.3", "--shrink")
    assert "quantization_config is left out" in err


def test_a_report_that_was_cut_off_counts_as_none(command, model, tokens):
    Path("reports").mkdir()
    Path("reports/check.json").write_text('{"version": 1, "rel')
    status, _, err = command("check", model, "--releases", "5.3", "--reports", "reports")
    assert status == 0
    assert "reports/check.json is damaged" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--releases", "5.3", "--attn", "spda"), "--attn spda: there is no such backend. Did"),
        (("--releases", "4.57.6"), "transformers 4.57.6 is too old"),
        (("--releases", "5.3", "--reports", "model/config.json"), "cannot be written to"),
        (("--releases", "5.9"), "no transformers 5.9"),
        (("--releases", "5.5..5.3"), "does not come before"),
        (("--with-editable", "."), "holds no project"),
    ],
)
def test_wrong_questions_are_refused(command, model, tokens, words, said):
    status, _, err = command("check", model, *words)
    assert status == 2
    assert said in err


def test_a_folder_without_a_config_is_refused(command, tokens, tmp_path):
    status, _, err = command("check", tmp_path, "--releases", "5.3")
    assert status == 2
    assert "config.json" in err


def test_a_damaged_report_is_refused(command, model, tokens):
    Path("reports").mkdir()
    Path("reports/check.json").write_text('{"version": 0}')
    status, _, err = command("check", model, "--releases", "5.3", "--reports", "reports")
    assert status == 2
    assert "another version" in err
