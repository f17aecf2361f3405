"""Imports run one way: no files import each other in a circle, and no folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "harness", "rabbitllm")

Place = tuple[str, ...]
"""A file as the names that lead to it, such as ("harness", "records", "__init__")."""


def imports(package: Path) -> dict[Place, set[Place]]:
    """Return the files of a package, and which of them each imports, wherever it does so."""
    files = {
        path.relative_to(package.parent).with_suffix("").parts: path
        for path in package.rglob("*.py")
    }
    return {
        place: {
            target
            for name in imported(path, ".".join(place[:-1]))
            if (target := found(tuple(name.split(".")), files)) and target != place
        }
        for place, path in files.items()
    }


def imported(path: Path, inside: str) -> Iterator[str]:
    """Yield the dotted names that a file imports; one may name a thing in a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), inside)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def found(name: Place, files: dict[Place, Path]) -> Place | None:
    """Return the file that a name leads to: a module, a package, or either with a thing in it."""
    places = (name, (*name, "__init__"), name[:-1], (*name[:-1], "__init__"))
    return next((place for place in places if place in files), None)


def neighbours(graph: dict[Place, set[Place]]) -> dict[Place, set[Place]]:
    """Return the same imports, as between two files or folders that lie in the same folder."""
    among: dict[Place, set[Place]] = {}
    for importer, targets in graph.items():
        for target in targets:
            pairs = zip(importer, target, strict=False)
            depth = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))) + 1
            among.setdefault(importer[:depth], set()).add(target[:depth])
    return among


def circle(graph: dict[Place, set[Place]]) -> list[str]:
    """Return a circle in a graph, each a name that the next imports; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [".".join(place) for place in error.args[1]]
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other(package):
    assert circle(imports(ROOT / package)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folders_import_each_other(package):
    assert circle(neighbours(imports(ROOT / package))) == []


@pytest.mark.parametrize(
    ("files", "of_files", "of_folders"),
    [
        ({"a": "from p import b", "b": "import os"}, False, False),
        ({"a": "from p import b", "b": "def f():\n    import p.a"}, True, True),
        ({"a/x": "from ..b import y", "b/y": "", "b/z": "from p.a.x import N"}, False, True),
        ({"a/__init__": "from p.b import N", "b": "from p.a.x import N", "a/x": ""}, False, True),
        ({"a/__init__": "", "a/x": "from p.a import N", "b": "import p.a.x"}, False, False),
        ({"a/__init__": "from p.a.x import N", "a/x": "from p.a import N"}, True, True),
    ],
)
def test_a_circle_is_seen(tmp_path, files, of_files, of_folders):
    for name, text in files.items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = imports(tmp_path / "p")
    assert (bool(circle(graph)), bool(circle(neighbours(graph)))) == (of_files, of_folders)
