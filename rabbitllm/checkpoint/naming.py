"""Where layer stores lie, and what each is called. Nothing here waits for torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCK = ".lock"
"""In a store: held by who fills or removes it."""


def default_root() -> Path:
    """Where stores lie unless told otherwise: RABBITLLM_CACHE, or the user's cache folder."""
    if folder := os.environ.get("RABBITLLM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rabbitllm"


def store_name(identity: Mapping[str, Any]) -> str:
    """What the folder of a store with this identity is called."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return f"{Path(identity['source']).name}-{digest}"
