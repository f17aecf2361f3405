"""Whether the cache of a batch had better lie in the host's memory than on the device.

There it takes no room from weights and has room for more sequences, and crosses the link in every
pass, as streamed weights do.
"""

from rabbitllm.model import StreamedModel

PINNED = 3
"""Bytes of the host's memory for each of the cache: pinned memory comes in powers of two, and what
was too small for a longer cache stays with the allocator."""


def pass_seconds(weights: float, moved: int, cached: int, link: float) -> float:
    """Seconds of a pass of sequences whose cache lies in the host's memory.

    Every layer's part of it comes to the device beside the weights, and goes back while the next
    one computes. Behind the pass it comes and goes once more, by itself, wherever a sequence has
    joined, left or read a piece of its prompt; that is taken for every pass.

    Args:
        weights: seconds of a pass without a cache, whatever holds it up.
        moved: bytes of weights that cross the link in it.
        cached: bytes of all sequences' cache.
        link: bytes a second of the link, in each direction.
    """
    return max(weights, (moved + cached) / link) + 2 * cached / link


def pays(on_device: int, on_host: int, moved: int, cached: int) -> bool:
    """Whether a cache in the host's memory makes for more tokens a second.

    A pass is taken to last as long as the link is busy, so its rate does not matter.

    Args:
        on_device: sequences that there is room for with the cache on the device.
        on_host: with the cache in the host's memory.
        moved: bytes of weights that cross the link in a pass.
        cached: bytes of the cache of `on_host` sequences.
    """
    return on_host * moved > on_device * pass_seconds(moved, moved, cached, link=1.0)


def can_offload(model: StreamedModel) -> bool:
    """Whether stock's offloaded cache works: by CUDA streams, those of one device."""
    return model.device.type == "cuda" and len(model.streaming_plan.device_bytes) == 1
