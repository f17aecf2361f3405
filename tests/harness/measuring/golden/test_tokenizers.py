from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from harness.matrix import load_matrix
from harness.measuring.golden import tokenizers
from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.texts import compute, path_of, read_texts, rendered, written

NAMES = sorted(path.stem for path in tokenizers.TOKENIZERS.glob("*.toml"))


def test_every_row_with_a_golden_checkpoint_has_one_tokenizer():
    named = [a for name in NAMES for a in tokenizers.read_published(name).architectures]
    assert sorted(named) == architectures()
    rows = {row.id for row in load_matrix().architectures}
    assert rows >= set(named)
    assert tokenizers.name_for("qwen3") == "qwen2"
    assert tokenizers.name_for("baichuan-7b") is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_can_be_computed_again(name):
    text = path_of(name).read_text("utf-8")
    assert written(compute(name)) == text
    assert read_texts(name) == compute(name)


@pytest.mark.parametrize("name", NAMES)
def test_texts_come_back_and_special_tokens_are_seen(name):
    published, texts = tokenizers.read_published(name), read_texts(name)
    vocabulary = Tokenizer.from_str(tokenizers.texts_of_files(name)["tokenizer.json"]).get_vocab()
    assert len(vocabulary) == max(vocabulary.values()) + 1 < 600
    special = [vocabulary[token] for token in published.special]
    assert special == list(range(special[0], special[0] + len(special)))
    for text in texts.texts[:8]:
        assert text.plain.strip() in ("🐰👪 é", text.text.strip())
        assert [token for token in text.ids if token in special] == [
            vocabulary[published.begins] for _ in [0] if published.begins
        ]
    assert set(texts.texts[-1].ids) & set(special)
    assert len({chat.text for chat in texts.chats}) == 3
    assert "The rabbit" in texts.chats[-1].text


def test_words_of_the_corpus_are_single_tokens():
    merges = tokenizers.merged_pairs("characters")
    assert merges == tokenizers.merged_pairs("characters")
    assert len(set(merges)) == tokenizers.MERGES
    assert tokenizers.SPACE + "rabbit" in {first + second for first, second in merges}


def test_signs_of_bytes_are_those_of_byte_level_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(tokenizers.byte_symbols()) == sorted(ByteLevel.alphabet())
    words = ByteLevel(add_prefix_space=False).pre_tokenize_str("ü🐰")
    assert list("".join(word for word, _ in words)) == tokenizers.as_bytes("ü🐰")


def test_neighbours_are_joined_from_the_left():
    assert tokenizers.joined(["a", "a", "a", "b"], ("a", "a")) == ["aa", "a", "b"]


def test_the_files_name_the_flags_and_tokens_as_published():
    texts = tokenizers.texts_of_files("phi3")
    config, special = (
        json.loads(texts[name]) for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert (config["add_bos_token"], config["legacy"]) == (False, False)
    assert config["added_tokens_decoder"]["2"]["content"] == "</s>"
    assert config["added_tokens_decoder"]["2"]["rstrip"] is True
    assert special["eos_token"] == "<|endoftext|>"


def test_the_models_turn_begins_behind_a_users():
    published = tokenizers.read_published("qwen2")
    two, three = (rendered(published, {}, turns) for turns in (2, 3))
    assert two.endswith("<|im_start|>assistant\n")
    assert three.endswith("The rabbit <|im_end|>\n")
