"""What does not belong to one part: memory, sizes, threads, the platform."""

import importlib
from typing import Any

_MOVED = {"find_or_create_local_splitted_path": "rabbitllm.split"}
"""Names that users import from here -> where they are. That imports the engine, which uses this."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MOVED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MOVED})
