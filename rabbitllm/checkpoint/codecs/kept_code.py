"""What numba compiled, kept on disk: read whole and of this version, or compiled again.

Files of numba's own are believed: where one is damaged, or was left by a process that was killed
between two of them, reading it ends in an error of pickle's or runs code that is damaged or of
another version. Here what a file is for stands in its name, and in front of what it holds a digest
of that, so that the order in which files are written does not matter, nor by how many processes.

Nothing but time is lost without them, so what goes wrong with them is said, and no more.
"""

import hashlib
import logging
import os
import pickle
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.serialize import dumps
from typing_extensions import override

logger = logging.getLogger(__name__)

VERSIONS = numba.__version__, llvmlite.__version__
"""Of what makes the code, and of what it is made of."""


def keep(compiled: Any) -> Any:
    """Has what numba compiles of a function kept, beside its file or in the user's cache.

    Args:
        compiled: what `numba.njit` made of it.
    """
    try:
        compiled._cache = _KeptCode(compiled.py_func)
    except RuntimeError:
        beside = Path(compiled.py_func.__code__.co_filename).parent / "__pycache__"
        _warn(f"is not kept, since neither {beside} nor the user's cache can be written")
    return compiled


class _KeptCode(FunctionCache):
    """What is kept of a function.

    Args:
        function: that is compiled.

    Raises:
        RuntimeError: there is no folder to keep it in.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self.cache_path, self._impl.filename_base, stamp)

    @override
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            _say_that_it_takes_time()
        return found

    @override
    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"cannot be kept in {self.cache_path} ({error.strerror})")


class _Files(IndexDataCacheFile):
    """Those of a function: one for each version of its source, types of arguments, and CPU."""

    @override
    def load(self, key: object) -> Any:
        """What was saved; None if nothing was, or it is damaged."""
        try:
            data = self._place(key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn(f"cannot be read in {self._cache_path} ({error.strerror})")
            return None
        digest, kept = data[:DIGEST], data[DIGEST:]
        if digest != _digest(kept):
            _warn(f"is damaged in {self._cache_path}")
            return None
        return pickle.loads(kept)

    @override
    def save(self, key: object, data: object) -> None:
        """Saves it, whatever is there.

        Raises:
            OSError: it cannot be written.
        """
        place, kept = self._place(key), dumps(data)
        temporary = place.with_name(f"{place.name}.{uuid4().hex}")
        try:
            with temporary.open("xb") as stream:
                stream.write(_digest(kept) + kept)
            os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _place(self, key: object) -> Path:
        of = _digest(repr((VERSIONS, self._source_stamp, key)).encode()).hex()
        return Path(self._cache_path, f"{Path(self._index_name).stem}.{of[:32]}.code")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


DIGEST = len(_digest(b""))
"""Bytes."""


@cache
def _warn(problem: str) -> None:
    """Says it, once."""
    logger.warning(
        "What numba compiled %s. It is compiled again, which takes some seconds "
        "at each start until that is mended; NUMBA_CACHE_DIR names another folder.",
        problem,
    )


@cache
def _say_that_it_takes_time() -> None:
    """Says it, once."""
    logger.info("Compiling loops: some seconds, once")
