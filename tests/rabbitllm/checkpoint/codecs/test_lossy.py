from __future__ import annotations

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint.codecs import from_header, to_header
from rabbitllm.checkpoint.codecs.codec import Layout
from rabbitllm.checkpoint.codecs.lossy import BLOCK, LEAST, EightBit, FourBit, Lossy
from rabbitllm.checkpoint.codecs.values import NF4
from tests.rabbitllm.checkpoint.codecs.on_host import by

__all__ = ["by"]

pytestmark = pytest.mark.usefixtures("by")
CODECS = [EightBit, FourBit]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def normal(*shape: int, dtype: torch.dtype = torch.float32, std: float = 0.02) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * std).to(dtype)


def round_trip(kind: type[Lossy], weight: torch.Tensor) -> torch.Tensor:
    codec, stored = kind.encode(weight) or pytest.fail("not encoded")
    layout = Layout(weight.dtype, tuple(weight.shape))
    for (_, expected), tensor in zip(codec.stored(layout).items(), stored.values(), strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == expected
    made = torch.empty(weight.shape, dtype=weight.dtype)
    codec.decode(
        [tensor.view(torch.uint8).reshape(-1).numpy() for tensor in stored.values()],
        made.view(torch.uint8).reshape(-1).numpy(),
        np.full(codec.scratch, 0xA5, np.uint8),
    )
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("std", [1e-4, 0.02, 100.0])
def test_8_bits_are_off_by_less_than_half_a_step(dtype: torch.dtype, std: float) -> None:
    weight = normal(70, 640, dtype=dtype, std=std)
    made = round_trip(EightBit, weight)
    most = weight.float().view(-1, BLOCK).abs().amax(1, keepdim=True)
    # A scale is rounded, and so is what comes out.
    allowed = most / 127 * (1 + 2**-8) / 2 + most * torch.finfo(dtype).eps / 2
    assert ((made - weight).float().view(-1, BLOCK).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_4_bits_are_the_nearest_value(dtype: torch.dtype) -> None:
    weight = normal(70, 640, dtype=dtype)
    made = round_trip(FourBit, weight).float().view(-1, BLOCK)
    blocks = weight.float().view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True).bfloat16().float()
    values = torch.tensor(NF4)
    nearest = (blocks[..., None] / scales[..., None] - values).abs().min(-1)
    assert torch.equal(made, (values[nearest.indices] * scales).to(dtype).float())


@pytest.mark.parametrize(("kind", "error"), [(EightBit, 0.01), (FourBit, 0.1)])
def test_the_error_of_weights_like_trained_ones(kind: type[Lossy], error: float) -> None:
    weight = normal(512, 512)
    assert error / 2 < (round_trip(kind, weight) - weight).norm() / weight.norm() < error


@pytest.mark.parametrize("kind", CODECS)
def test_zeros_and_the_largest_of_a_block_stay(kind: type[Lossy]) -> None:
    weight = normal(4, 5 * BLOCK)
    weight[1] = 0
    weight[2, :BLOCK] = -0.5
    weight[3, 7] = 1.0
    weight[0, 3] = 1e-45
    made = round_trip(kind, weight)
    assert (made[1] == 0).all()
    assert made[2, 0].item() == pytest.approx(-0.5, rel=2**-8)
    assert made[3, 7].item() == pytest.approx(1.0, rel=2**-8)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("least", [1e-45, 1e-38])
def test_what_is_nearly_zero_comes_back_so(kind: type[Lossy], least: float) -> None:
    made = round_trip(kind, torch.full((2, BLOCK), least))
    assert made.isfinite().all()
    assert (made.abs() <= 2 * least).all()


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_encoded(kind: type[Lossy], value: float) -> None:
    weight = normal(4, BLOCK)
    weight[2, 3] = value
    assert kind.encode(weight) is None


@pytest.mark.parametrize(("kind", "share"), [(EightBit, 66 / 128), (FourBit, 34 / 128)])
def test_what_is_expected_of_a_weight(kind: type[Lossy], share: float) -> None:
    layout = Layout(torch.bfloat16, (LEAST // BLOCK, BLOCK))
    codec = kind.expected(layout) or pytest.fail("not worth it")
    assert codec.nbytes(layout) == 2 * LEAST * share
    for dtype, shape in [
        (torch.bfloat16, (LEAST // BLOCK - 1, BLOCK)),
        (torch.bfloat16, (LEAST,)),
        (torch.bfloat16, (LEAST, BLOCK + 2)),
        (torch.float64, (LEAST, BLOCK)),
        (torch.int8, (LEAST, BLOCK)),
    ]:
        assert kind.expected(Layout(dtype, shape)) is None


@pytest.mark.parametrize("kind", CODECS)
def test_experts_and_views_are_encoded_as_what_they_show(kind: type[Lossy]) -> None:
    experts = normal(3, 2 * BLOCK, BLOCK)
    made = round_trip(kind, experts)
    assert torch.equal(made[1], round_trip(kind, experts[1].clone()))
    turned = round_trip(kind, experts[0].t().contiguous())
    assert torch.equal(round_trip(kind, experts[0].t()), turned)


@pytest.mark.parametrize("kind", CODECS)
def test_units_decode_by_themselves(kind: type[Lossy]) -> None:
    weight = normal(4, 4 * BLOCK)
    codec, stored = kind.encode(weight) or pytest.fail("not encoded")
    sizes, decoded = codec.unit(Layout(weight.dtype, (4, 4 * BLOCK)))
    assert decoded == BLOCK * weight.itemsize
    data = [tensor.view(torch.uint8).reshape(-1).numpy() for tensor in stored.values()]
    made = torch.empty(2 * BLOCK)
    parts = [each[3 * size : 5 * size] for each, size in zip(data, sizes, strict=True)]
    codec.decode(parts, made.view(torch.uint8).numpy(), np.empty(codec.scratch, np.uint8))
    assert torch.equal(made, round_trip(kind, weight).reshape(-1)[3 * BLOCK : 5 * BLOCK])


@pytest.mark.parametrize("kind", CODECS)
def test_a_header_keeps_the_dtype(kind: type[Lossy]) -> None:
    about = {"dtype": "BF16", "shape": [2, BLOCK]}
    codec = kind("bfloat16")
    assert from_header(to_header({"w": (codec, about)})) == {"w": (codec, about)}
    other = to_header({"w": (codec, about)})
    for wrong in ('"float64"', "3", "null", "[]"):
        header = {key: text.replace('"bfloat16"', wrong) for key, text in other.items()}
        with pytest.raises((ValueError, TypeError)):
            from_header(header)
