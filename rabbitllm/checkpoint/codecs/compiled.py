"""Whether loops that are compiled decode on a CPU: where numba is installed."""

import logging
from functools import cache
from importlib.util import find_spec
from types import ModuleType

logger = logging.getLogger(__name__)


@cache
def compiled_loops() -> ModuleType | None:
    """`rabbitllm.checkpoint.codecs.loops`; None where numpy has to do."""
    if not find_spec("numba"):
        return None
    try:
        from rabbitllm.checkpoint.codecs import loops
    # It does not know this numpy, its library is broken, or a newer one lacks what is used of it.
    except (ImportError, OSError, AttributeError) as error:
        logger.warning("numba cannot be used, so weights decode more slowly: %s", error)
        return None
    return loops
