"""What a streamed model has moved and waited for."""

from dataclasses import dataclass, field


@dataclass
class StageTimes:
    """Seconds that one stage took, over all forwards."""

    wait: float = 0.0
    compute: float = 0.0


@dataclass
class Stats:
    """Counts since loading.

    Attributes:
        forwards: forward passes of the whole model.
        bytes_from_disk: weights read from disk while streaming, padding included.
        bytes_to_device: weights copied from host memory to a CUDA device while streaming, padding
            included.
        wait_seconds: the model stood still because a stage was not there yet.
        seconds: inside forward passes.
        stages: stage name -> seconds, with `profiling_mode`.
    """

    forwards: int = 0
    bytes_from_disk: int = 0
    bytes_to_device: int = 0
    wait_seconds: float = 0.0
    seconds: float = 0.0
    stages: dict[str, StageTimes] = field(default_factory=dict)
