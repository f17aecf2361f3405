"""What a release of transformers answers: a script that runs in its environment.

`python answers.py FOLDER [NAME=GGUF]...` reads what `harness.stock.questions` has written, and
tokenizers of GGUF files, and prints JSON, fact -> value. "tokens: mixtral" is a JSON object, text
-> token ids; "logits: gemma2" a JSON list of numbers. What a release cannot do is "no, " and why.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

DIGITS = 6
"""Significant ones of a logit that are kept: a tenth of what counts as rounding."""
EVERY = 32
"""Words of the vocabulary from one whose logit is kept to the next."""
SINGLE = 8
"""Last tokens of the text that a cached reading takes one by one."""
CACHES = ("cache", "past_key_values")
"""What forwards call their cache, in newer and older releases."""

Question = Callable[[], Any]
"""Asks the release; what it returns is kept as JSON."""


def facts(folder: Path, gguf: dict[str, Path]) -> dict[str, str]:
    """Fact -> value, of all questions in a folder, and of the tokenizers of GGUF files."""
    asked = json.loads((folder / "asked.json").read_text("utf-8"))
    questions = _tokens(folder, asked, gguf) | _logits(folder, asked)
    return {name: _answer(question, folder) for name, question in questions.items()}


def _answer(question: Question, folder: Path) -> str:
    try:
        return json.dumps(question(), ensure_ascii=False)
    except Exception as error:  # that a release cannot answer is what it is to its users
        said = " ".join(f"no, {type(error).__name__}: {error}".split())
        return said.replace(str(folder), "FOLDER")[:200]


def _tokens(folder: Path, asked: dict[str, Any], gguf: dict[str, Path]) -> dict[str, Question]:
    """Of published files, and of classes that are given a vocabulary: the ids of the texts."""
    from transformers import AutoTokenizer

    published, vocabularies = AutoTokenizer.from_pretrained, _vocabularies(asked)
    makers = {name: partial(published, folder / "tokens" / name) for name in asked["tokenizers"]}
    makers |= {n: partial(published, file.parent, gguf_file=file.name) for n, file in gguf.items()}
    for kind in _classes(vocabularies):
        makers[kind.__name__] = partial(kind, **vocabularies[kind.model.__name__])
    return {f"tokens: {n}": partial(_ids, make, asked["texts"]) for n, make in makers.items()}


def _ids(make: Callable[[], Any], texts: list[str]) -> dict[str, list[int]]:
    tokenizer = make()
    return {text: list(tokenizer(text).input_ids) for text in texts}


def _vocabularies(asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What classes are given: their merges and scored pieces are pairs, for which JSON has none."""
    return {
        kind: {
            name: [tuple(pair) for pair in value] if isinstance(value, list) else value
            for name, value in given.items()
        }
        for kind, given in asked["vocabularies"].items()
    }


def _classes(vocabularies: dict[str, Any]) -> Iterator[Any]:
    """The tokenizers' classes that are made from nothing but a vocabulary, each under one name."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    # Of one class, or of a slow and a fast one, either of which may be None.
    mapping: dict[str, Any] = dict(TOKENIZER_MAPPING_NAMES)
    listed = [[entry] if isinstance(entry, str) else entry or () for entry in mapping.values()]
    for name in sorted({name for names in listed for name in names if name}):
        kind: Any = getattr(transformers, name, object)
        # What stands for a class whose library is lacking is none of these.
        ours = issubclass(kind, transformers.TokenizersBackend) and kind.__name__ == name
        if ours and getattr(kind.model, "__name__", "") in vocabularies:
            yield kind


def _logits(folder: Path, asked: dict[str, Any]) -> dict[str, Question]:
    """Of a text, read by each checkpoint at once, and with a cache."""
    return {
        f"logits: {name}{how}": partial(_read, folder / "logits" / name, **question, single=single)
        for name, question in asked["models"].items()
        for how, single in (("", 0), (" with a cache", SINGLE))
    }


def _read(folder: Path, kind: str, text: list[int], single: int) -> list[float]:
    """The logits of a text, whose last tokens come one by one, as many as `single`."""
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    begun = len(text) - single
    names = inspect.signature(model.forward).parameters
    name = next((each for each in CACHES if each in names), CACHES[-1])
    with torch.no_grad():
        out = model(torch.tensor([text[:begun]]), use_cache=single > 0)
        rows = [out.logits[0]]
        for token in text[begun:]:
            out = model(torch.tensor([[token]]), **{name: getattr(out, name)})
            rows.append(out.logits[0])
    return _kept(torch.cat(rows))


def _kept(logits: Any) -> list[float]:
    """Of [S, V], each position's logits of some words, in order."""
    return [float(f"{value:.{DIGITS}g}") for value in logits[:, ::EVERY].flatten().tolist()]


if __name__ == "__main__":
    named = (argument.partition("=") for argument in sys.argv[2:])
    print(json.dumps(facts(Path(sys.argv[1]), {n: Path(path) for n, _, path in named}), indent=0))
