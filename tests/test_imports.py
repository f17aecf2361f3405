"""Imports run one way, among files and among folders, and as CONTRIBUTING's pictures have it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "harness", "rabbitllm")
PICTURE = re.compile(
    r"```mermaid\s+---\s+title: (\w+)/\s+---\s+flowchart TD\n(.*?)\n *```", re.DOTALL
)
"""Of a package, in CONTRIBUTING: its name, and a node or arrows on each line."""

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


def test_the_package_needs_neither_harness_nor_benchmarks():
    files = (ROOT / "rabbitllm").rglob("*.py")
    packages = {name.partition(".")[0] for file in files for name in imported(file, "rabbitllm")}
    assert "torch" in packages
    assert not packages & {"benchmarks", "harness", "matrix", "tests"}


# pictures


def pictured(text: str) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return what a picture says: the node of each file or folder, and the arrows among nodes."""
    nodes, arrows = {}, set()
    for line in text.splitlines():
        if found := re.fullmatch(r'\s*(\w+)\["(.*)"\]', line):
            nodes |= dict.fromkeys((name.rstrip("/") for name in found[2].split(", ")), found[1])
        else:
            importer, targets = line.split(" --> ")
            arrows |= {(importer.strip(), target) for target in targets.split(" & ")}
    return nodes, arrows


def reduced(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the arrows of a graph without those that a way along others stands for."""

    def reached(start: str) -> set[str]:
        return {start}.union(*map(reached, graph.get(start, ())))

    return {
        (start, end)
        for start, ends in graph.items()
        for end in ends
        if not any(end in reached(other) for other in ends - {end})
    }


def test_a_way_along_others_is_no_arrow():
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}
    assert reduced(graph) == {("a", "b"), ("b", "c"), ("c", "d")}


def test_contributing_has_a_picture_of_each_package_that_has_rooms():
    found = [name for name, _ in PICTURE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))]
    assert found == ["rabbitllm", "harness"]


@pytest.mark.parametrize(
    ("package", "picture"), PICTURE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
)
def test_a_picture_shows_what_imports_what(package, picture):
    nodes, arrows = pictured(picture)
    files = imports(ROOT / package)
    assert sorted(nodes) == sorted({place[1] for place in files})
    among: dict[str, set[str]] = {}
    for importer, targets in neighbours(files).items():
        if len(importer) == 2:
            among.setdefault(nodes[importer[1]], set()).update(nodes[name] for _, name in targets)
    assert arrows == reduced({node: ends - {node} for node, ends in among.items()})
