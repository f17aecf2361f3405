"""The cells of the matrix, from matrix/*.toml: architecture x release x attention backend.

Needs neither torch nor transformers, so that the environment that plans a run can be a light one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from harness.tables import read_rows, unknown

ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / "matrix"
GOLDEN = MATRIX / "golden"
"""Fixed checkpoints, and what is right for them: see `harness.measuring.golden`."""

CHECKS = (
    "contract",
    "split_and_load",
    "residency",
    "prefill_parity",
    "incremental_decoding",
    "cache_fill",
    "left_padded",
    "golden",
    "generation_config",
)
"""What every cell is checked for, unless its architecture's row says otherwise."""

DEALT = (
    "tied_head",
    "tokenizer",
    "generation_settings",
    "padded_row",
    "batch_order",
    "chunked_prompt",
    "last_position",
    "far_positions",
    "hidden_states",
    "arguments",
    "sampling",
    "eager_parity",
    "beams",
    "half_precision",
    "every_id",
    "interrupt",
    "traffic",
    "greedy_generation",
)
"""Further checks, dealt out to the cells because time is short, see `Matrix.dealt`."""
DEFAULT_BACKEND = "sdpa"
"""The attention backend that users get unless they ask for another."""

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "float16", "bfloat16"]
Key = tuple[str, str, str]
"""Ids of an architecture and a backend, and a device: a cell of whatever release."""
Named = TypeVar("Named", "Architecture", "Backend")


def cell_id(key: Key, release: str = "") -> str:
    """Such as "qwen2@5.0.0/sdpa/cpu" or, of whatever release, "qwen2/sdpa/cpu"."""
    architecture, backend, device = key
    return f"{architecture}{f'@{release}' if release else ''}/{backend}/{device}"


@dataclass(frozen=True)
class Gguf:
    """Where a real model's weights come from: a GGUF file inside an installed distribution.

    Attributes:
        distribution: its name on the package index.
        file: the file's name inside it.
    """

    distribution: str
    file: str


@dataclass(frozen=True)
class Architecture:
    """One row of matrix/architectures.toml.

    Attributes:
        id: the row's name, as in `--arch`.
        family: the family's name, as the compatibility table prints it.
        family_class: the class in `rabbitllm` that a streamed model of it is an instance of.
        model_class: the stock class in `transformers`.
        model_type: as in config.json.
        config: arguments of the configuration class: a geometry small enough for milliseconds.
        gguf: set for a real model; `config` is empty then.
        reference: set for a family without a class in transformers: its id in
            `harness.measuring.references.REFERENCES`, which writes the checkpoint and says what is
            right; `config` is empty then.
        tolerance: largest difference that passes on CPU, as a fraction of the largest logit; 0 asks
            for equal bits.
        original_cache: the argument that the family's own code kept its cache in, where a standard
            cache now is.
        backends: the attention backends that can run it; empty for all.
        asked: those that it is measured with, where the others would tell nothing of what the row
            is for; empty for all.
        format: set for a quantised checkpoint: a name in `harness.measuring.formats.FORMS`.
        dtype: of weights and activations.
        checks: the checks that all its cells run; empty for those of `CHECKS`.
        dealt: further ones that are dealt out to them; without `checks` those of `DEALT`.
        notes: why the row is as it is.
    """

    id: str
    family: str
    family_class: str
    model_class: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    gguf: Gguf | None = None
    reference: str = ""
    tolerance: float = 0.0
    original_cache: str = ""
    backends: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    format: str = ""
    dtype: Dtype = "float32"
    checks: tuple[str, ...] = ()
    dealt: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Example:
    """One row of matrix/examples.toml.

    Attributes:
        id: of an architecture.
        checkpoints: repositories on the Hugging Face hub, the best known first.
    """

    id: str
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """One row of matrix/releases.toml.

    Attributes:
        version: of transformers.
        sentinel: belongs to the default selection.
    """

    version: str
    sentinel: bool = False


@dataclass(frozen=True)
class Backend:
    """One row of matrix/backends.toml.

    Attributes:
        id: `attn_implementation` in transformers.
        devices: where it can run.
        modules: importable modules that it needs besides transformers' own needs.
        capability: the lowest CUDA compute capability, as 10 * major + minor; 0 for any.
        dtype: overrides the architecture's where the backend does not take it.
        uncompiled: devices where torch.compile is switched off for its cells.
        checks: architecture id -> further checks of its cells.
        notes: why the row is as it is, in words for the reports.
    """

    id: str
    devices: tuple[Device, ...]
    modules: tuple[str, ...] = ()
    capability: int = 0
    dtype: Dtype | None = None
    uncompiled: tuple[Device, ...] = ()
    checks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Surroundings:
    """One row of matrix/environments.toml: a Python and a torch beside the pinned ones.

    Attributes:
        id: the row's name, which ends that of its tox environment.
        python: version of the interpreter, such as "3.10".
        release: of transformers.
        architectures: ids of those that run.
        torch: the version; empty for what the other requirements lead to.
        lowest: everything that pyproject.toml names is at the lowest version that it admits.
        backends: ids of the attention backends that run.
        notes: why the row is as it is.
    """

    id: str
    python: str
    release: str
    architectures: tuple[str, ...]
    torch: str = ""
    lowest: bool = False
    backends: tuple[str, ...] = (DEFAULT_BACKEND,)
    notes: str = ""


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        architecture: what is streamed.
        release: of transformers.
        backend: of attention.
        device: where it runs.
        dealt: which of the checks that are dealt out it runs.
    """

    architecture: Architecture
    release: str
    backend: Backend
    device: Device = "cpu"
    dealt: tuple[str, ...] = DEALT

    @property
    def key(self) -> Key:
        """What it has in common with the same cell of other releases."""
        return self.architecture.id, self.backend.id, self.device

    @property
    def id(self) -> str:
        """See `cell_id`."""
        return cell_id(self.key, self.release)

    @property
    def dtype(self) -> Dtype:
        """Of weights and activations."""
        return self.backend.dtype or self.architecture.dtype

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that run, in order."""
        row = self.architecture
        return (row.checks or CHECKS) + self.dealt + self.backend.checks.get(row.id, ())

    @property
    def unsupported(self) -> str:
        """Why there can be no such cell on any machine, or nothing."""
        row = self.architecture
        if not row.backends or self.backend.id in row.backends:
            return ""
        return f"{row.id} runs on {' and '.join(row.backends)} only: {row.notes}"

    @property
    def unasked(self) -> str:
        """Why the cell is not measured though it could be, or nothing."""
        asked = self.architecture.asked
        if not asked or self.backend.id in asked:
            return ""
        return f"{self.architecture.id} is measured with {' and '.join(asked)} only"


@dataclass(frozen=True)
class Matrix:
    """All rows of matrix/*.toml, in their order."""

    architectures: tuple[Architecture, ...]
    releases: tuple[Release, ...]
    backends: tuple[Backend, ...]

    def cells(
        self,
        releases: Sequence[str] | None = None,
        architectures: Sequence[str] | None = None,
        backends: Sequence[str] | None = None,
        device: Device = "cpu",
    ) -> list[Cell]:
        """The cells of a selection, None meaning all; releases need no row in the matrix.

        Raises:
            ValueError: a name that the matrix does not have; the message lists those it has.
        """
        versions = [row.version for row in self.releases] if releases is None else releases
        return [
            Cell(architecture, version, backend, device, self.dealt(architecture, backend))
            for version in versions
            for architecture in _chosen("architecture", self.architectures, architectures)
            for backend in _chosen("attention backend", self.backends, backends)
        ]

    def dealt(self, row: Architecture, backend: Backend) -> tuple[str, ...]:
        """The further checks that the cells of a row and a backend run: a covering design.

        With its default backend a row runs all of them; with each other backend one, the next row
        the next one. So every row meets every check, and every backend meets every check on
        some row.
        """
        known = [each.id for each in self.backends]
        own = row.asked or row.backends or known
        names = row.dealt if row.checks else DEALT
        if backend.id == (DEFAULT_BACKEND if DEFAULT_BACKEND in own else own[0]):
            return names
        number = self.architectures.index(row) + known.index(backend.id)
        return tuple(islice(cycle(names), number, number + 1))

    def cell(self, key: Key, release: str) -> Cell:
        """The cell of a key in a release.

        Raises:
            ValueError: the matrix has no such architecture or backend.
        """
        architecture, backend, device = key
        on: Device = "cuda" if device == "cuda" else "cpu"
        (found,) = self.cells([release], [architecture], [backend], on)
        return found


def load_matrix(folder: Path = MATRIX) -> Matrix:
    """The matrix.

    Raises:
        TableError: a file is not as its dataclass says.
    """
    return Matrix(
        architectures=read_rows(Architecture, folder / "architectures.toml", "architecture"),
        releases=read_rows(Release, folder / "releases.toml", "release", key="version"),
        backends=read_rows(Backend, folder / "backends.toml", "backend"),
    )


def load_surroundings(folder: Path = MATRIX) -> tuple[Surroundings, ...]:
    """The rows of matrix/environments.toml.

    Raises:
        TableError: the file is not as its dataclass says.
    """
    return read_rows(Surroundings, folder / "environments.toml", "environment")


def _chosen(kind: str, rows: Sequence[Named], names: Sequence[str] | None) -> list[Named]:
    known = [row.id for row in rows]
    for name in names or ():
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    return [row for row in rows if names is None or row.id in names]
