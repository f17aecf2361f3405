"""What is right for a golden tokenizer: token ids, texts and chats, computed once and committed.

By the tokenizers library from tokenizer.json, and by jinja2 from the chat template, with what the
authors' flags mean written out here; no transformers has a hand in either.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.measuring.golden.tokenizers import TOKENIZERS, Published, files, read_published
from harness.tables import build

SAMPLES = (
    "Hello world",
    " the rabbit",
    "two  spaces, and   three",
    "a line\n\nand another\twith a tab\n",
    "2026 is 12345678 less 3.14159",
    "über naïve Ångström 兔子 кролик",
    "\N{RABBIT FACE}\N{FAMILY} e\N{COMBINING ACUTE ACCENT}",
    "don't, I'm; they'LL (so) {it} <is> !",
    "",
)
"""Texts besides those that hold a tokenizer's special tokens."""
CONVERSATION = (
    ("system", "Answer in one word."),
    ("user", "What reads the layers?"),
    ("assistant", "The rabbit "),
    ("user", "  And the weights?\n"),
)
"""Roles and contents."""


@dataclass(frozen=True)
class Text:
    """A text, its tokens, and what they are decoded to.

    Attributes:
        text: what is encoded.
        ids: its tokens.
        decoded: their text.
        plain: likewise, without the special tokens.
    """

    text: str
    ids: tuple[int, ...]
    decoded: str
    plain: str


@dataclass(frozen=True)
class Chat:
    """A conversation, the text that the template makes of it, and its tokens.

    Attributes:
        turns: how many of `CONVERSATION`; if the last is a user's, the model's begins behind it.
        text: of the prompt.
        ids: its tokens.
    """

    turns: int
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """What is right for a tokenizer."""

    texts: tuple[Text, ...]
    chats: tuple[Chat, ...]


def read_texts(name: str) -> Texts:
    """What is right for a golden tokenizer.

    Raises:
        FileNotFoundError: it is not known.
        TableError: the file is not as `Texts` says.
    """
    path = path_of(name)
    return build(Texts, json.loads(path.read_text("utf-8")), f"tokenizers/{path.name}")


def path_of(name: str) -> Path:
    """The file that holds what is right for a golden tokenizer."""
    return TOKENIZERS / f"{name}.json"


def written(texts: Texts) -> str:
    """The text of such a file: a line for each sample."""
    parts = [
        f'"{field}": [\n  ' + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        for field, rows in asdict(texts).items()
    ]
    return "{\n " + "\n ],\n ".join(parts) + "\n ]\n}\n"


def messages(turns: int) -> list[dict[str, str]]:
    """The first turns of the conversation, as templates take them."""
    return [{"role": role, "content": content} for role, content in CONVERSATION[:turns]]


def is_asked(turns: int) -> bool:
    """Whether the model's turn comes behind so many turns."""
    return CONVERSATION[turns - 1][0] == "user"


def compute(name: str) -> Texts:
    """What is right for a golden tokenizer."""
    from tokenizers import Tokenizer  # the commands that do not compute need neither

    published = read_published(name)
    content = files(published)
    tokenizer = Tokenizer.from_str(json.dumps(content["tokenizer.json"]))
    vocabulary = tokenizer.get_vocab()
    begin: list[int] = [vocabulary[published.begins]] if published.begins else []
    first, last = published.special[0], published.special[-1]
    found = []
    for text in (*SAMPLES, f"{last}the rabbit {first} runs{last} over", f"  {last}  "):
        ids = [*begin, *tokenizer.encode(text, add_special_tokens=False).ids]
        whole, plain = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True))
        found.append(Text(text, tuple(ids), whole, plain))
    chats = []
    for turns in range(2, len(CONVERSATION) + 1):
        text = rendered(published, content["tokenizer_config.json"], turns)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        chats.append(Chat(turns, text, tuple(ids)))
    return Texts(tuple(found), tuple(chats))


def rendered(published: Published, config: dict[str, Any], turns: int) -> str:
    """The prompt that the chat template makes of the first turns.

    In the environment that transformers documents: a sandbox, where blocks take the first line's
    end behind them and the white space before them.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    special = {name: value for name, value in config.items() if name.endswith("_token")}
    return template.from_string(published.chat_template).render(
        messages=messages(turns), add_generation_prompt=is_asked(turns), **special
    )
