"""A time without garbage collections: what is found by chance must not be freed just then."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_state = {"without": 0, "collects": False}


@contextmanager
def no_garbage() -> Iterator[None]:
    """No garbage is collected meanwhile, in any thread: the collector is the process'.

    What a collection finds may be a device's memory or an event, or a whole model. To free those
    waits for the device, or is an error while a thread records. Several may ask for it at once; the
    collector is as it was behind the last of them.
    """
    with _LOCK:
        if not _state["without"]:
            _state["collects"] = gc.isenabled()
            gc.disable()
        _state["without"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _state["without"] -= 1
            if not _state["without"] and _state["collects"]:
                gc.enable()
