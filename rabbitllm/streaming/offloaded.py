"""Stock's cache in the host's memory, on a device that the host is far ahead of.

Stock brings the next layer's keys and values to the device in a stream of its own, into memory that
layers before have given back by then, as far as the host knows. A device that waits for weights may
have yet to read what is there. (It shows as other tokens; stock's resident model on a device that
keeps up with the host gives the right ones.)
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch

PREFETCH = "prefetch"


def keep_in_order(arguments: Iterable[object]) -> None:
    """Has each such cache among a forward's arguments bring nothing ahead of its turn.

    What it brings waits for what has been launched: that is as far as the layer before, so bringing
    and computing go on side by side.
    """
    for cache in arguments:
        if getattr(cache, "offloading", False) and PREFETCH not in vars(cache):
            setattr(cache, PREFETCH, _behind(cache))


def _behind(cache: Any) -> Any:
    own, held = type(cache).prefetch, weakref.ref(cache)

    def prefetch(*args: Any, **kwargs: Any) -> None:
        cache = held()
        assert cache is not None, "who calls its method holds it"
        stream = cache.prefetch_stream
        if stream.device.type == "cuda":
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        own(cache, *args, **kwargs)

    return prefetch
