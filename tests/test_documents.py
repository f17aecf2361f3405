"""What the documents say exists: files, headings, commands, options, environments, arguments."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbitllm.cli import _parser
from rabbitllm.deprecated import ARGUMENTS, NAMES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)

everywhere = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    words = (re.sub(r"[^\w\s-]", "", text.lower()) for text in HEADING.findall(path.read_text()))
    return {text.replace(" ", "-") for text in words}


def blocks(path: Path, *languages: str) -> Iterator[str]:
    return (body for language, body in BLOCK.findall(path.read_text()) if language in languages)


def commands(path: Path, name: str) -> Iterator[list[str]]:
    """The words of each command `name` in shell blocks, console sessions and inline code."""
    lines = [line for body in blocks(path, "sh") for line in body.splitlines()]
    lines += [
        line.removeprefix("$ ")
        for body in blocks(path, "console")
        for line in body.splitlines()
        if line.startswith("$ ")
    ]
    lines += CODE.findall(BLOCK.sub("", path.read_text()))
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;"):
                if name in command:
                    yield command[command.index(name) + 1 :]
                command = []
            else:
                command.append(word)


@everywhere
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_contributing_names_files_that_exist() -> None:
    names = {name for name in CODE.findall((ROOT / "CONTRIBUTING.md").read_text()) if "/" in name}
    files = {name for name in names if re.fullmatch(r"[\w./]+(/|\.\w+)", name)}
    assert len(files) > 20
    for name in files:
        inside = (ROOT / package for package in ("rabbitllm", "harness"))
        assert (ROOT / name).exists() or any(any(place.rglob(name)) for place in inside), name


@everywhere
def test_commands_are_understood(document: Path) -> None:
    for words in commands(document, "rabbitllm"):
        if len(words) < 2 or words[0].isupper():
            continue  # the package's name, a sub-command's, or a placeholder for any of them
        assert understood(words), words


def understood(words: list[str]) -> bool:
    """Whether the parser takes the arguments, or shows what is asked for."""
    try:
        _parser().parse_args(words)
    except SystemExit as ended:
        return not ended.code
    return True


@everywhere
def test_before_the_first_release_nothing_is_installed_from_the_index(document: Path) -> None:
    unreleased = "(unreleased)" in (ROOT / "CHANGELOG.md").read_text()
    wanted = [
        word
        for words in commands(document, "pip")
        for word in words
        if re.match(r"rabbitllm\b", word)
    ]
    assert not (unreleased and wanted) or document.name == "releasing.md", wanted


@everywhere
def test_environments_exist(document: Path) -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini")
    known = {section.removeprefix("testenv:") for section in settings} | {"test"}
    for words in commands(document, "tox"):
        if "-e" in words:
            assert words[words.index("-e") + 1] in known, words


@everywhere
def test_python_is_python(document: Path) -> None:
    for body in blocks(document, "python"):
        ast.parse(textwrap.dedent(body))


def test_upgrading_maps_every_argument_and_name() -> None:
    text = (ROOT / "UPGRADING.md").read_text()
    for name in ARGUMENTS:
        assert re.search(rf"^\| `{name}=", text, re.MULTILINE), name
    for old, new in NAMES.items():
        assert f"| `{old}` | `{new}` (" in text, old


def test_some_commands_were_found() -> None:
    found = [words for path in DOCUMENTS for words in commands(path, "rabbitllm")]
    assert len(found) > 30
