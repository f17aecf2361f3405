"""Options of the matrix run, and what its cells share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import transformers

from harness.judging.expected_failures import Expected, load_expected, problems
from harness.matrix import ROOT, Cell, load_matrix
from harness.records import Store
from harness.running.cell import TIME_LIMIT

CELLS = pytest.StashKey[list[Cell]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what selects cells and says where results go."""
    group = parser.getgroup("matrix")
    group.addoption("--arch", help="architectures, separated by commas (default: all)")
    group.addoption("--attn", help="attention backends, separated by commas (default: all)")
    group.addoption("--cells", help="cells by name, separated by commas (default: all of these)")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--release", help="the transformers that must be the installed one")
    group.addoption("--results", type=Path, default=ROOT / "reports" / "results", metavar="DIR")
    group.addoption("--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS")


def selected(config: pytest.Config) -> list[Cell]:
    """The cells that the options select.

    Raises:
        pytest.UsageError: a name is unknown, or another transformers is installed than was asked
        for.
    """
    installed, asked = transformers.__version__, config.getoption("release")
    if asked not in (None, installed):
        raise pytest.UsageError(f"--release {asked}, but transformers {installed} is installed")
    try:
        cells = load_matrix().cells(
            [installed],
            _names(config.getoption("arch")),
            _names(config.getoption("attn")),
            config.getoption("device"),
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    chosen = _names(config.getoption("cells"))
    if chosen is None:
        return cells
    if strangers := set(chosen) - {cell.id for cell in cells}:
        raise pytest.UsageError(f"--cells {', '.join(sorted(strangers))}: no such cells here")
    return [cell for cell in cells if cell.id in chosen]


def pytest_configure(config: pytest.Config) -> None:
    """Selects the cells before anything runs, for a wrong name to be one line and exit status 4."""
    config.stash[CELLS] = selected(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes an item of each selected cell."""
    if "cell" in metafunc.fixturenames:
        cells = metafunc.config.stash[CELLS]
        metafunc.parametrize("cell", cells, ids=[cell.id for cell in cells])


@pytest.fixture(scope="session")
def expected() -> tuple[Expected, ...]:
    """The rows of matrix/expected_failures.toml."""
    return load_expected()


@pytest.fixture(scope="session")
def list_problems(expected: tuple[Expected, ...]) -> list[str]:
    """What is wrong with that list, over the whole matrix."""
    matrix = load_matrix()
    cells = [*matrix.cells(device="cpu"), *matrix.cells(device="cuda")]
    return problems(expected, cells, date.today())


@pytest.fixture(scope="session")
def store(pytestconfig: pytest.Config) -> Store:
    """Where records go."""
    return Store(pytestconfig.getoption("results"), transformers.__version__)


@pytest.fixture(scope="session")
def tiny_checkpoints() -> Iterator[Path]:
    """A folder that lives as long as the session."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        yield Path(folder)


@pytest.fixture
def checkpoints(cell: Cell, tiny_checkpoints: Path) -> Path:
    """The folder for the cell's checkpoint; a real model serves all releases."""
    return tiny_checkpoints if cell.architecture.gguf is None else ROOT / ".cache" / "checkpoints"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
