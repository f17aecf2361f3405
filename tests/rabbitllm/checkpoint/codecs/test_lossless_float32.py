from __future__ import annotations

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint.codecs.codec import Layout
from rabbitllm.checkpoint.codecs.lossless import AT_ONCE, BLOCK, LEAST
from rabbitllm.checkpoint.codecs.lossless_float32 import LosslessFloat32

Encoded = tuple[LosslessFloat32, dict[str, torch.Tensor]]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def encode(weight: torch.Tensor) -> Encoded:
    found = LosslessFloat32.encode(weight) or pytest.fail("not encoded")
    layouts = found[0].stored(Layout(weight.dtype, tuple(weight.shape)))
    made = {suffix: (tensor.dtype, tuple(tensor.shape)) for suffix, tensor in found[1].items()}
    assert made == layouts
    return found


def decode(codec: LosslessFloat32, stored: list[torch.Tensor], count: int) -> torch.Tensor:
    made = torch.empty(count)
    codec.decode(
        [each.view(torch.uint8).numpy() for each in stored],
        made.view(torch.uint8).numpy(),
        np.full(codec.scratch, 0xA5, np.uint8),
    )
    return made.view(torch.int32)


@pytest.mark.parametrize(
    "count", [0, 1, 3, BLOCK, BLOCK + 1, AT_ONCE * BLOCK, (AT_ONCE + 1) * BLOCK + 5]
)
def test_what_is_encoded_comes_back_bit_for_bit(count: int) -> None:
    weight = normal(count)
    special = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45, -3e38])[:count]
    weight[: len(special)] = special
    codec, stored = encode(weight)
    assert torch.equal(decode(codec, list(stored.values()), count), weight.view(torch.int32))


def test_an_eighth_is_saved() -> None:
    weight = normal(1024, 1000)
    _, stored = encode(weight)
    assert 0.875 <= sum(each.nbytes for each in stored.values()) / weight.nbytes < 0.876


def test_a_view_is_encoded_as_what_it_shows() -> None:
    weight = normal(300, 400)
    codec, stored = encode(weight.t())
    turned = weight.t().contiguous().view(torch.int32).reshape(-1)
    assert torch.equal(decode(codec, list(stored.values()), weight.numel()), turned)


def test_units_decode_by_themselves() -> None:
    weight = normal(2 * BLOCK + 7)
    codec, stored = encode(weight)
    sizes, decoded = codec.unit(Layout(weight.dtype, tuple(weight.shape)))
    parts = []
    for number, part in enumerate(weight.split(decoded // 4)):
        some = [
            each.view(torch.uint8)[number * size : (number + 1) * size]
            for each, size in zip(stored.values(), sizes, strict=True)
        ]
        parts.append(decode(codec, some, len(part)))
    assert len(parts) == 3
    assert torch.equal(torch.cat(parts), weight.view(torch.int32))


def test_what_is_expected_of_a_weight() -> None:
    layout = Layout(torch.float32, (LEAST // 2, 2))
    codec = LosslessFloat32.expected(layout) or pytest.fail("not worth it")
    assert codec.nbytes(layout) == LEAST * 7 // 2
    assert LosslessFloat32.expected(Layout(torch.float32, (LEAST - 1,))) is None
    assert LosslessFloat32.expected(Layout(torch.bfloat16, (LEAST,))) is None


def test_nothing_else_is_taken() -> None:
    with pytest.raises(ValueError, match=r"torch\.bfloat16 is not stored as"):
        LosslessFloat32(1, 0).stored(Layout(torch.bfloat16, (2, 3)))
    with pytest.raises(ValueError, match="no weight is stored as"):
        LosslessFloat32(0, 0)


def test_exponents_that_differ_too_widely_are_not_encoded() -> None:
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    assert LosslessFloat32.encode(words.view(torch.float32)) is None
