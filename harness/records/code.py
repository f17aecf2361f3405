"""What code does, as a hash: comments, docstrings and empty lines are no part of it."""

from __future__ import annotations

import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

SILENT = frozenset({tokenize.COMMENT, tokenize.NL})
FSTRING_START = getattr(tokenize, "FSTRING_START", None)
FSTRING_END = getattr(tokenize, "FSTRING_END", None)
"""Since Python 3.12 an f-string is many tokens; None before."""


def hash_code(root: Path, patterns: Iterable[str]) -> str:
    """16 hexadecimal digits that are equal for the same code under the same names.

    Args:
        root: a folder.
        patterns: of the files of Python below it that count.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        digest.update(f"\0{path.relative_to(root).as_posix()}".encode())
        for text in significant(path.read_text("utf-8")):
            digest.update(f"\0{text}".encode())
    return digest.hexdigest()[:16]


def significant(source: str) -> Iterator[str]:
    """Yields the tokens of Python source that matter when it runs, on any Python the same.

    A statement that is nothing but strings does nothing, whether it is a docstring or stands below
    a constant to describe it.
    """
    statement: list[tokenize.TokenInfo] = []
    for token in whole_strings(source):
        statement.append(token)
        if token.type in (tokenize.INDENT, tokenize.DEDENT):
            yield tokenize.tok_name[statement.pop().type]
        elif token.type == tokenize.NEWLINE:
            if any(part.type != tokenize.STRING for part in statement[:-1]):
                yield from (part.string for part in statement[:-1])
                yield "\n"
            statement.clear()


def whole_strings(source: str) -> Iterator[tokenize.TokenInfo]:
    """Yields the tokens of Python source without the silent ones, each f-string as one."""
    lines = io.StringIO(source).readlines()
    begun: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == FSTRING_START:
            begun.append(token)
        elif token.type == FSTRING_END:
            start = begun.pop().start
            if not begun:
                text = between(lines, start, token.end)
                yield token._replace(type=tokenize.STRING, string=text)
        elif not begun and token.type not in SILENT:
            yield token


def between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from one place to another: row from 1, column from 0."""
    chosen = lines[start[0] - 1 : end[0]]
    chosen[-1] = chosen[-1][: end[1]]
    chosen[0] = chosen[0][start[1] :]
    return "".join(chosen)
