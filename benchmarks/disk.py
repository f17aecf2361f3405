"""The pace of a disk that is left alone."""

from collections.abc import Sequence
from pathlib import Path

from rabbitllm.measure.limits import direct_read_bandwidth

AHEAD = 1 << 29
"""Bytes: more than the stages that a model loads ahead of its next forward."""


def read_alone(files: Sequence[Path]) -> float:
    """GB/s of direct reads, once what the model loads ahead has arrived."""
    direct_read_bandwidth(files, AHEAD)
    rate = direct_read_bandwidth(files)
    assert rate is not None, "a checkpoint has files"
    return rate
