from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import decoders
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rabbitllm import StreamedModel
from rabbitllm.prompt import encode_text
from rabbitllm.text import TextStream, generate

GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def tokenizer(talker: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(talker)


@pytest.fixture
def model(talker: Path, streamed: Callable[..., StreamedModel]) -> StreamedModel:
    return streamed(talker)


def stream(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: tuple[str, ...] = ()
) -> tuple[list[str], TextStream]:
    """The pieces that come out when `ids` come one by one, and the stream."""
    pieces: list[str] = []
    result = TextStream(tokenizer, pieces.append, stops)
    for token in ids:
        result.put([token])
    result.end()
    return pieces, result


# decoding


@pytest.mark.parametrize("text", ["plain", "naïve 日本語 🦙 done", "ends in 🦙", "", " a  b "])
def test_text_comes_out_whole_and_in_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    pieces, result = stream(tokenizer, tokenizer(text).input_ids)
    assert "".join(pieces) == text
    assert pieces == list(text)
    assert result.tokens == tokenizer(text).input_ids


def test_several_tokens_may_come_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces: list[str] = []
    result = TextStream(tokenizer, pieces.append)
    for text in ("ab日", "c"):
        result.put(tokenizer(text).input_ids)
    assert pieces == ["ab日", "c"]


def test_special_tokens_are_not_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [*tokenizer("hi").input_ids, tokenizer.eos_token_id]
    assert stream(tokenizer, ids)[0] == ["h", "i"]


def test_a_special_token_takes_no_space_from_what_follows(talker: Path) -> None:
    whole = AutoTokenizer.from_pretrained(talker)
    whole.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]
    )
    hi, there = whole("hi").input_ids, whole(" there").input_ids
    ids = [*hi, whole.eos_token_id, whole.eos_token_id, *there]
    assert "".join(stream(whole, ids)[0]) == "hi there"


def test_spaces_before_punctuation_stay(talker: Path) -> None:
    asking = AutoTokenizer.from_pretrained(talker, clean_up_tokenization_spaces=True)
    assert "".join(stream(asking, asking("a . b !").input_ids)[0]) == "a . b !"


def test_bytes_of_no_character_do_not_hold_back_what_follows(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    broken = tokenizer("日").input_ids[1:2]
    pieces, _ = stream(tokenizer, [*broken * 40, *tokenizer("after").input_ids])
    assert len(pieces) > 5
    assert "".join(pieces).endswith("after")


def test_half_a_character_at_the_end_is_not_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces, _ = stream(tokenizer, tokenizer("a日").input_ids[:-1])
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("three",), "one two "),
        (("four", "two"), "one "),
        (("one",), ""),
        (("threw", "e t"), "on"),
        (("fourth",), "one two three four"),
        (("", "zzz"), "one two three four"),
    ],
)
def test_a_stop_string_ends_the_text(
    tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], expected: str
) -> None:
    pieces, result = stream(tokenizer, tokenizer("one two three four").input_ids, stops)
    assert "".join(pieces) == expected
    assert result.stopped == (expected != "one two three four")


def test_only_what_may_begin_a_stop_string_waits(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces, _ = stream(tokenizer, tokenizer("abcabd").input_ids, ("abd",))
    assert pieces == ["abc"]


# generation


def test_the_answer_is_stocks(model: StreamedModel, stock: Callable[..., PreTrainedModel]) -> None:
    prompt, pieces = encode_text(model, "Once"), list[str]()
    answer = generate(model, prompt, pieces.append, max_new_tokens=12, **GREEDY)
    expected = stock(model.checkpoint_folder).generate(prompt, max_new_tokens=12, **GREEDY)
    assert "".join(pieces) == model.tokenizer.decode(expected[0, 4:])
    assert len(pieces) == 12
    assert (answer.prompt_tokens, answer.new_tokens, answer.finish_reason) == (4, 12, "length")
    assert answer.first_seconds > 0
    assert answer.tokens_per_second == pytest.approx(11 / answer.other_seconds)


def test_one_token_has_no_speed(model: StreamedModel) -> None:
    answer = generate(model, encode_text(model, "Once"), str, max_new_tokens=1, **GREEDY)
    assert answer.tokens_per_second is None


def test_a_stop_string_ends_the_generation(model: StreamedModel) -> None:
    prompt, whole, cut = encode_text(model, "Once"), list[str](), list[str]()
    generate(model, prompt, whole.append, max_new_tokens=12, **GREEDY)
    stop = "".join(whole)[4:7]
    answer = generate(model, prompt, cut.append, max_new_tokens=12, stop=[stop], **GREEDY)
    assert "".join(cut) == "".join(whole).split(stop)[0]
    assert (answer.new_tokens, answer.finish_reason) == (7, "stop")


def test_an_end_of_text_token_ends_it(model: StreamedModel) -> None:
    prompt, pieces = encode_text(model, "Once"), list[str]()
    generate(model, prompt, pieces.append, max_new_tokens=3, **GREEDY)
    model.generation_config.eos_token_id = [2, *model.tokenizer(pieces[0]).input_ids]
    answer = generate(model, prompt, str, max_new_tokens=3, **GREEDY)
    assert (answer.new_tokens, answer.finish_reason) == (1, "stop")


def test_the_tokenizers_end_of_a_turn_ends_it_too(model: StreamedModel) -> None:
    prompt, pieces = encode_text(model, "Once"), list[str]()
    generate(model, prompt, pieces.append, max_new_tokens=3, **GREEDY)
    model.generation_config.eos_token_id = 2
    (end,) = model.tokenizer(pieces[0]).input_ids
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    answer = generate(model, prompt, str, max_new_tokens=3, **GREEDY)
    assert (answer.new_tokens, answer.finish_reason) == (1, "stop")


def test_a_cancelled_generation_ends_with_its_token(model: StreamedModel) -> None:
    cancelled, pieces = threading.Event(), list[str]()

    def emit(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            cancelled.set()

    answer = generate(
        model, encode_text(model, "Once"), emit, max_new_tokens=99, cancelled=cancelled, **GREEDY
    )
    assert (answer.new_tokens, answer.finish_reason) == (3, "cancelled")


def test_the_context_limits_an_answer(model: StreamedModel) -> None:
    model.config.max_position_embeddings = 10
    answer = generate(model, encode_text(model, "12345"), str, max_new_tokens=99, **GREEDY)
    assert (answer.new_tokens, answer.finish_reason) == (5, "length")
