from __future__ import annotations

import json
from pathlib import Path

import pytest

from rabbitllm.cli.conversation import Conversation, default_file, read


@pytest.fixture
def talk() -> Conversation:
    talk = Conversation()
    talk.set_system("Be brief.")
    talk.say("user", "Caf\N{LATIN SMALL LETTER E WITH ACUTE}?")
    talk.say("assistant", "Yes.")
    return talk


def test_what_is_saved_can_be_loaded(talk: Conversation, tmp_path: Path) -> None:
    assert not talk.saved
    talk.save(tmp_path / "new" / "talk.json")
    assert talk.saved
    other = Conversation()
    other.load(tmp_path / "new" / "talk.json")
    assert other.messages == talk.messages
    assert other.saved


def test_it_replaces_a_conversation_and_nothing_else(talk: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk.save(file)
    talk.say("user", "More?")
    talk.save(file)
    assert len(read(file)) == 4
    file.write_text("export PATH")
    with pytest.raises(ValueError, match=r"holds no conversation\. It stays as it is"):
        talk.save(file)
    assert file.read_text() == "export PATH"


def test_the_system_message_comes_first_and_outlasts_the_others(talk: Conversation) -> None:
    talk.set_system("Be long.")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    talk.clear()
    assert talk.messages == [{"role": "system", "content": "Be long."}]
    talk.set_system("")
    assert talk.messages == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "Hi",
        "3",
        "{}",
        '{"messages": 3}',
        '["Hi"]',
        '[{"role": "wizard", "content": "Hi"}]',
        '[{"role": "user"}]',
        '[{"role": "user", "content": ["Hi"]}]',
    ],
)
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(ValueError, match="holds no conversation"):
        read(tmp_path / "file")


def test_a_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    (tmp_path / "file").write_text(json.dumps(messages))
    assert read(tmp_path / "file") == messages


def test_a_file_without_a_name_lies_in_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_file().parent == tmp_path / "rabbitllm"
    assert not (tmp_path / "rabbitllm").exists()
