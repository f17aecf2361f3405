"""JSON files, read only as far as that costs seconds and megabytes: they may be strangers'."""

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 2 << 20
"""Of a file of settings: published ones have kilobytes, long lists of modules included."""
MOST_VALUES = 200_000
"""In such a file. An empty list of two bytes becomes an object of sixty."""
MAX_JSON_BYTES = 1 << 24
"""Of a file that this program writes; what describes a store grows with the number of shards."""

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading JSON, and numbers out of it, raises when a file is not what it should be."""


def read_settings(path: Path) -> Any:
    """What a config file holds.

    Raises:
        ValueError: it is no JSON, or larger than any file of settings.
        RecursionError: it is nested too deeply.
    """
    return parse(read_bytes(path, MOST_BYTES), MOST_VALUES)


def read_json(path: Path) -> Any:
    """Reads a JSON file of ours; raises OSError, or one of `MALFORMED`."""
    return json.loads(read_bytes(path, MAX_JSON_BYTES))


def read_bytes(path: Path, most: int) -> bytes:
    """A file's bytes.

    Raises:
        ValueError: there are more than `most`.
    """
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it has {size:,} bytes; at most {most:,} are read")
    return path.read_bytes()


def parse(text: bytes, most: int) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is no JSON, or has more than about `most` values.
        RecursionError: it is nested too deeply.
    """
    # Each value but the first of its list or object follows a comma.
    if sum(map(text.count, (b",", b"[", b"{"))) > most:
        raise ValueError(f"it has more than {most:,} values")
    return json.loads(text.decode())
