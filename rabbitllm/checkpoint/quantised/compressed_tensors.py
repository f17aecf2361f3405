"""What the compressed-tensors library writes (https://github.com/vllm-project/compressed-tensors).

Integers of 4 and 8 bits packed into 32 (`pack-quantized`), integers and FP8 in bytes
(`int-quantized`, `float-quantized`), and MXFP4. Scales are for a tensor, a channel, a group or a
block, and the product is rounded to the scale's own dtype first, as the library computes.
"""

from dataclasses import replace
from typing import Any

import torch

from rabbitllm.checkpoint.codecs.scaled import E8M0, Scaled
from rabbitllm.checkpoint.quantised.grids import block_of, scale_name
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry

PACKED = {4: "int4", 8: "offset8"}
"""Bits of a packed integer -> what its codes are."""
IN_BYTES = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
"""dtype on disk -> what codes are."""
FP8 = ("e4m3", "e5m2")


def _packed(parts: Parts) -> TensorEntry:
    packed, scales = parts.tensors[".weight_packed"], parts.tensors[".weight_scale"]
    if ".weight_g_idx" in parts.tensors:
        raise parts.error("columns in an order of their own (weight_g_idx) are not read")
    stored = [".weight_packed", ".weight_scale"]
    if packed.dtype == torch.uint8:
        if scale_name(parts, ".weight_scale") != E8M0:
            raise parts.error("of floats of 4 bits only MXFP4 is read, this is NVFP4")
        shape = (*packed.shape[:-1], 2 * packed.shape[-1])
        return _entry(parts, shape, "e2m1", stored, rounded="float32")
    bits = _bits(parts.settings) or _bits_by_shape(parts)
    if bits not in PACKED:
        raise parts.error(f"integers of {bits} bits are not read, only of 4 and 8")
    shape = (*packed.shape[:-1], packed.shape[-1] * 32 // bits)
    if ".weight_zero_point" in parts.tensors:
        stored.append(".weight_zero_point")
    rounded = str(scales.dtype).removeprefix("torch.")
    return _entry(parts, shape, PACKED[bits], stored, rounded)


def _in_bytes(parts: Parts) -> TensorEntry:
    codes, scales = parts.tensors[".weight"], parts.tensors[".weight_scale"]
    if codes.dtype not in IN_BYTES:
        raise parts.error(f"{codes.dtype} beside a scale is not known")
    rounded = str(scales.dtype).removeprefix("torch.")
    stored = [".weight", ".weight_scale"]
    return _entry(parts, codes.shape, IN_BYTES[codes.dtype], stored, rounded)


def joined(entry: TensorEntry) -> TensorEntry:
    """A tensor as stock reads it where a larger weight is made of it: FP8 is rounded once.

    Stock multiplies the FP8 experts that it puts together in float32
    (`CompressedTensorsDequantize`), where the library rounds to the scale's dtype first. Packed
    ones it leaves in that dtype, whatever the model's is: here they are in the model's.
    """
    codec = entry.codec
    if isinstance(codec, Scaled) and codec.kind in FP8:
        return replace(entry, codec=replace(codec, rounded="float32"))
    return entry


def _entry(
    parts: Parts, shape: tuple[int, ...], kind: str, stored: list[str], rounded: str
) -> TensorEntry:
    scales = parts.tensors[".weight_scale"]
    rows, width = block_of(parts, shape, scales, _block(parts.settings))
    codec = Scaled(
        parts.dtype_name,
        kind,
        shape[-1],
        rows,
        width,
        scale_name(parts, ".weight_scale"),
        zeros=".weight_zero_point" in stored,
        rounded=rounded,
    )
    return parts.entry(codec, shape, *stored)


def _weights(settings: Any) -> list[dict[str, Any]]:
    """What the config's groups say of weights."""
    groups = dict(settings.get("config_groups") or {}).values()
    return [dict(group.get("weights") or {}) for group in groups]


def _bits(settings: Any) -> int | None:
    """Bits of a code, if all groups have as many."""
    found = {weights.get("num_bits") for weights in _weights(settings)}
    return found.pop() if len(found) == 1 else None


def _bits_by_shape(parts: Parts) -> int:
    columns = int(parts.read(".weight_shape")[-1])
    return parts.tensors[".weight_packed"].shape[-1] * 32 // columns


def _block(settings: Any) -> list[int] | None:
    return next(
        (w["block_structure"] for w in _weights(settings) if w.get("block_structure")), None
    )


SCHEMES = (
    Scheme(
        (
            ".weight_packed",
            ".weight_scale",
            ".weight_shape",
            ".weight_zero_point",
            ".weight_g_idx",
        ),
        _packed,
        optional=frozenset({".weight_shape", ".weight_zero_point", ".weight_g_idx"}),
        telling=frozenset({".weight_shape"}),
    ),
    Scheme(
        (".weight_scale", ".weight", ".weight_zero_point"),
        _in_bytes,
        optional=frozenset({".weight_zero_point"}),
    ),
)
