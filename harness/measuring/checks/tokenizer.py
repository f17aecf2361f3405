"""Token ids, or texts, are not the golden ones.

A small tokenizer in the files that the family's authors publish (matrix/golden/tokenizers) is
loaded by stock's AutoTokenizer and by the engine. Stock's ids, decoded texts and chats are held to
the committed ones, which no transformers has computed; the engine's are held to stock's, and the
text that it writes as tokens come to the text of all of them. Spaces before punctuation are not
"cleaned up" on the way, which some files ask for and newer releases refuse to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from harness.measuring.checkpoints import made_once
from harness.measuring.checks import Outcome
from harness.measuring.golden import tokenizers
from harness.measuring.golden.manifest import read_manifest
from harness.measuring.golden.texts import Texts, is_asked, messages, read_texts
from harness.measuring.subject import Subject, reference_side

Answers = dict[str, Any]
"""What was asked, in words -> ids or a text."""


def run(subject: Subject) -> Outcome:
    """Encodes, decodes and renders chats, both ways."""
    architecture = subject.cell.architecture.id
    name = tokenizers.name_for(architecture)
    if name is None:
        return Outcome("not-run", message=f"{architecture} has no golden tokenizer")
    texts = read_texts(name)
    folder = published_folder(architecture, name, subject.folder.parent)
    with reference_side():
        stock = answers(AutoTokenizer.from_pretrained(folder), texts)
    streamed, written = engine_answers(folder, texts)
    others = differing(streamed, stock)
    if others or written:
        of = (
            "the engine's are not stock's"
            if others
            else "tokens that come one by one read otherwise"
        )
        return Outcome(
            "fail", {"differing": others or written}, f"{of}: {listed(others or written)}"
        )
    figures = {"tokenizer": name, "differing": (wrong := differing(stock, due(texts)))}
    if not wrong:
        return Outcome("pass", figures)
    said = f"stock's are not those of tokenizer.json: {len(wrong)} of {len(stock)} differ"
    return Outcome("stock-wrong", figures, f"{said}, {listed(wrong)}")


def published_folder(architecture: str, name: str, cache: Path) -> Path:
    """A folder with the tokenizer's files, and the config.json of the architecture's authors."""
    config = json.dumps(read_manifest(architecture).config)
    files = tokenizers.texts_of_files(name) | {"config.json": config}

    def write(folder: Path) -> None:
        for file, text in files.items():
            (folder / file).write_text(text, "utf-8")

    key = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
    return made_once(cache / f"tokenizer-{architecture}-{key}", write)


def engine_answers(folder: Path, texts: Texts) -> tuple[Answers, list[str]]:
    """The engine's answers, and which texts it writes otherwise when their tokens come singly."""
    from rabbitllm.checkpoint.tokenizer import load_tokenizer  # a broken engine fails this check
    from rabbitllm.text import TextStream

    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    others = []
    for text in texts.texts:
        pieces: list[str] = []
        stream = TextStream(tokenizer, pieces.append)
        for token in text.ids:
            stream.put([token])
        stream.end()
        if "".join(pieces) != decode(tokenizer, text.ids, True):
            others.append(repr(text.text))
    return answers(tokenizer, texts), others


def answers(tokenizer: Any, texts: Texts) -> Answers:
    """What a tokenizer of transformers makes of the texts and chats."""
    found: Answers = {}
    for text in texts.texts:
        found[f"ids of {text.text!r}"] = tuple(tokenizer(text.text).input_ids)
        found[f"text of {text.text!r}"] = decode(tokenizer, text.ids)
        found[f"plain text of {text.text!r}"] = decode(tokenizer, text.ids, True)
    for chat in texts.chats:
        asked = {
            "conversation": messages(chat.turns),
            "add_generation_prompt": is_asked(chat.turns),
        }
        found[f"chat of {chat.turns} turns"] = tokenizer.apply_chat_template(
            **asked, tokenize=False
        )
        made = tokenizer.apply_chat_template(**asked, return_dict=True)
        found[f"ids of {chat.turns} turns"] = tuple(made["input_ids"])
    return found


def decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of tokens, as the model wrote it."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


def due(texts: Texts) -> Answers:
    """The committed answers to the same questions."""
    found: Answers = {}
    for text in texts.texts:
        found[f"ids of {text.text!r}"] = text.ids
        found[f"text of {text.text!r}"] = text.decoded
        found[f"plain text of {text.text!r}"] = text.plain
    for chat in texts.chats:
        found[f"chat of {chat.turns} turns"] = chat.text
        found[f"ids of {chat.turns} turns"] = chat.ids
    return found


def differing(ours: Answers, theirs: Answers) -> list[str]:
    """The questions with other answers."""
    return [question for question, answer in theirs.items() if ours[question] != answer]


def listed(questions: list[str]) -> str:
    """The first of them, in words."""
    return questions[0] + (f" and {len(questions) - 1} more" if questions[1:] else "")
