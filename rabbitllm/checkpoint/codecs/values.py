"""What codes of 4 and 8 bits stand for, before they are scaled."""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from rabbitllm.checkpoint.codecs.floats import Floats

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of a float of 4 bits (OCP Microscaling Formats 1.0, table 4) without its sign."""
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, to which NF4 rounds (QLoRA, arXiv:2305.14314, appendix E)."""

FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
"""Magnitudes of bitsandbytes' own float of 4 bits, which has one zero."""

_BYTES = torch.arange(256, dtype=torch.uint8, device="cpu")
VALUES: dict[str, Floats] = {
    "e4m3": _BYTES.view(torch.float8_e4m3fn).float().numpy(),
    "e5m2": _BYTES.view(torch.float8_e5m2).float().numpy(),
    "int8": _BYTES.view(torch.int8).float().numpy(),
    "offset8": _BYTES.float().numpy() - 128,
    "int4": np.arange(-8, 8, dtype=np.float32),
    "uint4": np.arange(16, dtype=np.float32),
    "e2m1": np.array(E2M1 + tuple(-value for value in E2M1), np.float32),
    "nf4": np.array(NF4, np.float32),
    "fp4": np.array(FP4 + tuple(0.0 - value for value in FP4), np.float32),
}
"""Kind of a code -> float32 by code: [256], or [16] where two codes share a byte."""


def pairs(kind: str, high_first: bool) -> Floats:
    """What a byte of two codes stands for: float32 [256, 2].

    Args:
        kind: of the codes.
        high_first: the first is in the upper half of the byte.
    """
    values, byte = VALUES[kind], np.arange(256)
    halves = (byte >> 4, byte & 0xF) if high_first else (byte & 0xF, byte >> 4)
    return np.stack([values[half] for half in halves], axis=1)


@cache
def table(kind: str, device: torch.device) -> torch.Tensor:
    """`VALUES` of a kind on a device."""
    return torch.from_numpy(VALUES[kind]).to(device)


def exponents(scales: npt.NDArray[np.uint8]) -> Floats:
    """What bytes of e8m0 stand for: powers of two, float32 in the same shape.

    The byte 0 is 2^-127, which float32 has as a subnormal, and 255 is NaN.
    """
    bits = scales.astype(np.uint32)  # looking them up would make 8 bytes of each byte first
    bits <<= 23
    bits[scales == 0] = 1 << 22
    bits[scales == 0xFF] = 0x7FC00000
    return bits.view(np.float32)
