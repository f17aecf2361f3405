"""Tokenizers without their authors' code give what the libraries they are made of give."""

from __future__ import annotations

import base64
import json
import unicodedata

import pytest
from transformers import PreTrainedTokenizerFast

from harness.measuring.references import REFERENCES
from rabbitllm import CheckpointError
from rabbitllm.checkpoint.legacy import tokenizers
from rabbitllm.checkpoint.tokenizer import load_tokenizer

CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "你好 世界。我们在这里。",
    "def main(): return 42",
    "  two spaces and 2024-05-06",
    "hello world, hello tokens, sophisticated hello",
)
TEXTS = (
    "hello world",
    "  two spaces",
    " leading",
    "trailing  ",
    "你好 hello 42\n\tx",
    "the dog.  é🙂 sophisticated",
    "",
)
SPECIAL = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False} | {
    "single_word": False,
    "special": True,
}


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def model_file(request, tmp_path_factory):
    """A sentencepiece model with byte pieces; with and without a space before each text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.99,
        add_dummy_prefix=request.param,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture
def processor(model_file):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(str(model_file))


@pytest.fixture
def checkpoint_with(model_file, tmp_path):
    """`checkpoint_with(id, field=value)`: with tokenizer.model and these fields of its config."""

    def make(architecture, **fields):
        REFERENCES[architecture].write(tmp_path, 0)
        (tmp_path / "tokenizer.model").write_bytes(model_file.read_bytes())
        code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
        config = {"auto_map": code, "tokenizer_class": "OwnTokenizer"} | fields
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "tokenization_own.py").write_text("raise SystemExit('ran')")
        return tmp_path

    return make


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "architecture", ["internlm", "internlm2", "internlm3", "baichuan-7b", "baichuan2-13b"]
)
def test_pieces_are_those_of_sentencepiece(architecture, trust, checkpoint_with, processor):
    tokenizer = load_tokenizer(checkpoint_with(architecture), trust_remote_code=trust)
    assert len(tokenizer) == processor.vocab_size()
    for text in TEXTS:
        ids = processor.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == processor.decode(ids)
        assert tokenizer.decode([1, *ids], skip_special_tokens=True) == processor.decode(ids)


def test_the_config_says_what_surrounds_a_text(checkpoint_with, processor):
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True} | {
        "rstrip": False,
        "single_word": True,
    }
    folder = checkpoint_with(
        "baichuan2-7b", add_bos_token=False, add_eos_token=True, pad_token="<unk>", eos_token=token
    )
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    ids = processor.encode("hello")
    assert tokenizer.encode("hello") == [*ids, 2]
    batch = tokenizer(["hello", "hello world, hello"], padding=True)
    padding = len(batch["input_ids"][1]) - len(ids) - 1
    assert batch["input_ids"][0] == [0] * padding + [*ids, 2]
    assert batch["attention_mask"][0] == [0] * padding + [1] * (len(ids) + 1)


def test_added_tokens_take_the_place_of_pieces(checkpoint_with, processor):
    unused = processor.piece_to_id("[UNUSED_TOKEN_2]")
    folder = checkpoint_with(
        "internlm2",
        added_tokens_decoder={str(unused): SPECIAL},
        additional_special_tokens=["<|im_start|>"],
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
    )
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    assert len(tokenizer) == processor.vocab_size()
    ids = tokenizer.encode("hello<|im_start|>", add_special_tokens=False)
    assert ids == [*processor.encode("hello"), unused]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>hello"


@pytest.mark.parametrize("architecture", ["chatglm2", "chatglm3"])
def test_chatglm_begins_a_text_and_knows_roles(architecture, checkpoint_with, processor):
    tokenizer = load_tokenizer(checkpoint_with(architecture), trust_remote_code=False)
    pieces = processor.vocab_size()
    gmask, sop, user = pieces + 1, pieces + 3, pieces + 6
    for text in TEXTS:
        ids = processor.encode(text)
        assert tokenizer.encode(text) == [gmask, sop, *ids]
        assert tokenizer.decode(ids) == processor.decode(ids)
    assert tokenizer.encode("<|user|>hello")[2:] == [user, *processor.encode("hello")]
    assert tokenizer.convert_ids_to_tokens([gmask, sop, user]) == ["[gMASK]", "sop", "<|user|>"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "left"
    assert len(tokenizer) == pieces + len(tokenizers.CHATGLM_SPECIAL)


def test_the_ids_of_chatglm3_are_the_published_ones(checkpoint_with):
    tokenizer = load_tokenizer(checkpoint_with("chatglm3"), trust_remote_code=False)
    shift = 64789 - tokenizer.sp_model.get_piece_size()  # the published model's pieces
    published = {"[gMASK]": 64790, "sop": 64792, "<|system|>": 64794, "<|observation|>": 64797}
    found = {token: tokenizer.convert_tokens_to_ids(token) + shift for token in published}
    assert found == published


def test_a_converted_tokenizer_is_preferred(checkpoint_with):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    folder = checkpoint_with("internlm2")
    Tokenizer(BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.encode("a", add_special_tokens=False) == [0]


def test_a_model_has_it(checkpoint_with, streamed, processor):
    model = streamed(checkpoint_with("baichuan-13b"))
    assert model.tokenizer.encode("hello") == [1, *processor.encode("hello")]


@pytest.mark.parametrize(
    ("architecture", "file"),
    [
        ("internlm", "tokenizer.model"),
        ("chatglm2", "tokenizer.model"),
        ("qwen", "qwen.tiktoken"),
    ],
)
def test_a_missing_file_is_named(architecture, file, tmp_path):
    REFERENCES[architecture].write(tmp_path, 0)
    (tmp_path / file).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=f"has no {file}"):
        load_tokenizer(tmp_path, trust_remote_code=False)


def test_a_file_of_another_format_is_named(tmp_path):
    pytest.importorskip("sentencepiece")
    REFERENCES["chatglm3"].write(tmp_path, 0)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is no sentencepiece model"):
        load_tokenizer(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    ("architecture", "file", "library"),
    [("baichuan-7b", "tokenizer.model", "sentencepiece"), ("qwen", "qwen.tiktoken", "tiktoken")],
)
def test_a_missing_library_is_named(architecture, file, library, tmp_path, monkeypatch):
    REFERENCES[architecture].write(tmp_path, 0)
    (tmp_path / file).touch()
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"{library}.*rabbitllm\[legacy\]"):
        load_tokenizer(tmp_path, trust_remote_code=False)


@pytest.fixture
def ranks():
    """Byte-pair ranks: the bytes, and merges learnt from the corpus."""
    made = {bytes([n]): n for n in range(256)}
    for text in CORPUS:
        for word in text.split():
            data = word.encode()
            for end in range(2, len(data) + 1):
                made.setdefault(data[:end], len(made))
    return made


def test_qwen_is_that_of_tiktoken(ranks, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    REFERENCES["qwen"].write(tmp_path, 0)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (tmp_path / "qwen.tiktoken").write_text("".join(lines))
    start = len(ranks)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = {"<|endoftext|>": start, "<|im_start|>": start + 1, "<|extra_204|>": start + 207}
    wanted = tiktoken.Encoding(
        "qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    tokenizer = load_tokenizer(tmp_path, trust_remote_code=False)
    assert len(tokenizer) == start + 208
    for text in (*TEXTS, "e\u0301 composed", "<|im_start|>user\nhello<|extra_204|>"):
        ids = wanted.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == wanted.decode(ids)


def test_kimi_is_that_of_tiktoken(ranks, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    for word in ("中", "文", "中文", "123", "HELLO", " don't"):
        ranks.setdefault(word.encode(), len(ranks))
    (tmp_path / "config.json").write_text('{"model_type": "kimi_k2"}')
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (tmp_path / "tiktoken.model").write_text("".join(lines))
    start = len(ranks)
    settings = {
        "added_tokens_decoder": {
            str(start): {"content": "[BOS]", "special": True},
            str(start + 2): {"content": "<|im_end|>", "special": True},
        },
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    # moonshotai/Kimi-K2-Instruct, tokenization_kimi.py
    letters = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}{letters}", rf"[\p{{Ll}}{letters}"
    first, last = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    pattern = (
        rf"[\p{{Han}}]+|{first}{upper}*{lower}+{last}|{first}{upper}+{lower}*{last}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = {
        "[BOS]": start,
        f"<|reserved_token_{start + 1}|>": start + 1,
        "<|im_end|>": start + 2,
    }
    wanted = tiktoken.Encoding(
        "kimi", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    tokenizer = load_tokenizer(tmp_path, trust_remote_code=False)
    assert (len(tokenizer), tokenizer.eos_token_id) == (start + 256, start + 2)
    assert tokenizer.chat_template == "{{ messages }}"
    for text in (*TEXTS, "x中文y HELLOworld 12345 don't\r\n", "[BOS]hello<|im_end|>"):
        ids = wanted.encode(text, allowed_special="all")
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == wanted.decode(ids)
