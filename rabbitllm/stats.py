"""What a streamed model has moved, waited for and computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Limits(Protocol):
    """What a machine can do at most, such as a `rabbitllm.measure.limits.Limits`."""

    def seconds(self, from_disk: float, to_device: float, computed: float) -> float:
        """The least time to read, copy and compute with so many bytes, all at once."""


@dataclass
class StageTimes:
    """One stage, over all forwards.

    Attributes:
        wait: seconds that the model stood still for it.
        read: seconds from the first of its reads from disk to the last; those of the stage before
            it come first, and count.
        copy: seconds that it was copied from host memory to a CUDA device.
        compute: seconds that it ran.
        bytes: that were copied to a CUDA device, or on CPU read from disk.
    """

    wait: float = 0.0
    read: float = 0.0
    copy: float = 0.0
    compute: float = 0.0
    bytes: int = 0


@dataclass
class Stats:
    """Counts since loading.

    Attributes:
        forwards: forward passes of the whole model.
        tokens: one for each sequence of each forward: what they generate, if nothing is guessed.
        bytes_from_disk: weights read from disk while streaming, as they lie there, and padding.
        bytes_to_device: weights copied from host memory to a CUDA device while streaming, padding
            included.
        wait_seconds: the model stood still because a stage was not there yet.
        seconds: inside forward passes. On CUDA this and the waits are the device's time.
        stages: stage name -> its part of it, with `profiling_mode`.
    """

    forwards: int = 0
    tokens: int = 0
    bytes_from_disk: int = 0
    bytes_to_device: int = 0
    wait_seconds: float = 0.0
    seconds: float = 0.0
    stages: dict[str, StageTimes] = field(default_factory=dict)

    def figures(self, limits: Limits | None = None) -> dict[str, Any]:
        """The counts, and what follows from them.

        Args:
            limits: of this machine, as `rabbitllm.measure.limits.measure_limits` finds them.

        Returns:
            The attributes, and "compute_seconds"; "tokens_per_second",
            "disk_gb_per_second" and "device_gb_per_second" (None before the first forward);
            "share_of_limit", the least time that the limits allow the bytes that moved, over the
            time it took (None without limits).
        """
        wires = {"disk": self.bytes_from_disk, "device": self.bytes_to_device}
        least = limits.seconds(wires["disk"], wires["device"], 0) if limits else None

        def per_second(count: float | None) -> float | None:
            return count / self.seconds if count is not None and self.seconds else None

        return asdict(self) | {
            "compute_seconds": self.seconds - self.wait_seconds,
            "tokens_per_second": per_second(self.tokens),
            **{f"{wire}_gb_per_second": per_second(n / 1e9) for wire, n in wires.items()},
            "share_of_limit": per_second(least),
        }
