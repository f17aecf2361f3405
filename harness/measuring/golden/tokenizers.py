"""Golden tokenizers: small ones of our own, in the files and with the flags that authors publish.

One TOML file for each in matrix/golden/tokenizers says what its files hold. The vocabulary is made
here: pairs of symbols are merged as byte-pair encoding does, in a text of our own.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from harness.matrix import GOLDEN
from harness.tables import read_table

TOKENIZERS = GOLDEN / "tokenizers"
MERGES = 120
"""Pairs that are merged: enough for words of the text to become single tokens."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""
CORPUS = """
the rabbit reads one layer after the other and the layers leave when the rabbit has read them
a layer comes from the disk to the memory and from the memory to the device and then it computes
where the tokens are the same the answers are the same and where one token differs all may differ
Hello world the weights wait while the rabbit runs over the hills 12 34 2026 und über die Hügel
"""


@dataclass(frozen=True)
class Published:
    """What a tokenizer's files hold; `TOKENIZERS` has one file for each.

    Attributes:
        architectures: rows of matrix/architectures.toml whose authors publish such a tokenizer.
        symbols: what is merged: bytes, or characters, with a piece for each byte besides.
        special: special tokens; with characters the first of the vocabulary, else the last.
        config: tokenizer_config.json, without the tokens that `special` names.
        tokenizer: tokenizer.json, without vocabulary, merges and special tokens.
        begins: the token that begins every text, by what the authors' files say.
        chat_template: of the conversation.
        stripping: special tokens that take the white space behind them.
    """

    architectures: tuple[str, ...]
    symbols: Literal["bytes", "characters"]
    special: tuple[str, ...]
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    chat_template: str
    begins: str = ""
    stripping: tuple[str, ...] = field(default=())

    def added_tokens(self, first: int) -> dict[int, dict[str, Any]]:
        """The special tokens as files describe them, by their ids, of which this is the first."""
        return {
            first + number: {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": token in self.stripping,
                "single_word": False,
                "special": True,
            }
            for number, token in enumerate(self.special)
        }


@cache
def read_published(name: str) -> Published:
    """A golden tokenizer.

    Raises:
        TableError: its file is not as `Published` says.
    """
    return read_table(Published, TOKENIZERS / f"{name}.toml")


def name_for(architecture: str) -> str | None:
    """The golden tokenizer of a row of matrix/architectures.toml; None if it has none."""
    names = sorted(path.stem for path in TOKENIZERS.glob("*.toml"))
    return next((n for n in names if architecture in read_published(n).architectures), None)


def files(published: Published) -> dict[str, dict[str, Any]]:
    """File name -> what it holds: tokenizer.json and the two files beside it."""
    merges = merged_pairs(published.symbols)
    made = [first + second for first, second in merges]
    if published.symbols == "bytes":
        plain = [*byte_symbols(), *made]
        first, tokens = len(plain), [*plain, *published.special]
    else:
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        first, tokens = 0, [*published.special, *pieces, *made, *characters()]
    added = published.added_tokens(first)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": published.symbols == "characters",
        "byte_fallback": published.symbols == "characters",
        **published.tokenizer.get("model", {}),
        "vocab": {token: number for number, token in enumerate(dict.fromkeys(tokens))},
        "merges": [" ".join(pair) for pair in merges],
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **token} for number, token in added.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **published.tokenizer,
        "model": model,
    }
    config = {
        "added_tokens_decoder": {str(number): token for number, token in added.items()},
        **published.config,
        "chat_template": published.chat_template,
    }
    names = {name: value for name, value in config.items() if name.endswith("_token")}
    special = {name: value for name, value in names.items() if value in published.special}
    return {
        "tokenizer.json": whole,
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
    }


def texts_of_files(name: str) -> dict[str, str]:
    """File name -> the text of a golden tokenizer's file."""
    return {
        file: json.dumps(content, ensure_ascii=False, indent=1)
        for file, content in files(read_published(name)).items()
    }


@cache
def merged_pairs(symbols: str) -> list[tuple[str, str]]:
    """The pairs that are merged in the corpus, in order: the most frequent, then the alphabet's."""
    space = byte_symbols()[ord(" ")] if symbols == "bytes" else SPACE
    spelled = as_bytes if symbols == "bytes" else list
    words = Counter(space + word for word in CORPUS.split())
    split = {word: [space, *spelled(word[1:])] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: joined(parts, best) for word, parts in split.items()}
    return merges


def joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts of a word with a pair of neighbours made one."""
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def characters() -> list[str]:
    """The characters of the corpus, and the sign for a space."""
    return sorted({SPACE, *"".join(CORPUS.split())})


def as_bytes(word: str) -> list[str]:
    """The signs for a word's bytes in UTF-8."""
    signs = byte_symbols()
    return [signs[byte] for byte in word.encode()]


@cache
def byte_symbols() -> list[str]:
    """The sign that byte-level tokenizers write for each byte: printable ones are their own.

    The others have the characters from 256 on, in order, see
    https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    signs, spare = [], 256
    for byte in range(256):
        signs.append(chr(byte if byte in own else spare))
        spare += byte not in own
    return signs
