"""Decoding by torch, and by kernels where there is a GPU: the bits of decoding on the host."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.lossless import BLOCK, Lossless
from rabbitllm.checkpoint.codecs.lossless_float32 import LosslessFloat32
from rabbitllm.checkpoint.codecs.lossy import EightBit, FourBit
from rabbitllm.checkpoint.codecs.nested import Nested
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.codecs.products import AT_ONCE
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.codecs.strided import Strided
from rabbitllm.checkpoint.codecs.words import STRIP, Words
from rabbitllm.streaming.devices.decoder import decode_of
from tests.rabbitllm.checkpoint.codecs.on_host import by

__all__ = ["by"]

pytestmark = pytest.mark.usefixtures("by")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FLAT: dict[str, tuple[Callable[[str], Codec], tuple[int, ...]]] = {
    "fp8": (lambda to: Scaled(to, "e4m3", 400, 128, 128, "float32"), (300, 400)),
    "fp8, a scale for all": (lambda to: Scaled(to, "e4m3", 64, 99, 64, "float32"), (30, 64)),
    "e5m2": (lambda to: Scaled(to, "e5m2", 64, 1, 64, "float32"), (30, 64)),
    "mxfp4": (lambda to: Scaled(to, "e2m1", 96, 1, 32, "e8m0"), (30, 96)),
    "mxfp4 of experts": (
        lambda to: Scaled(to, "e2m1", 96, 1, 32, "e8m0", transposed=40),
        (3, 96, 40),
    ),
    "int4": (lambda to: Scaled(to, "int4", 64, 1, 32, "bfloat16", rounded="bfloat16"), (30, 64)),
    "int4 with zeros": (
        lambda to: Scaled(to, "int4", 64, 1, 32, "float16", zeros=True, rounded="float16"),
        (40, 64),
    ),
    "int8": (lambda to: Scaled(to, "int8", 64, 1, 64, "float32"), (30, 64)),
    "offset8": (
        lambda to: Scaled(to, "offset8", 64, 1, 32, "float16", rounded="float16"),
        (30, 64),
    ),
    "nf4": (lambda to: Scaled(to, "nf4", 64, 1, 64, "float32", high_first=True), (30, 64)),
    "awq": (lambda to: Words(to, 4, 96, 32, "float16", interleaved=True), (40, 96)),
    "gptq": (lambda to: Words(to, 4, 96, 32, "float16", added=1), (40, 96)),
    "gptq of 8 bits": (lambda to: Words(to, 8, 96, 32, "float16", added=1), (40, 96)),
    "gptq of 2 bits": (lambda to: Words(to, 2, 96, 40, "float16"), (48, 96)),
    "gptq, act-order": (lambda to: Words(to, 4, 96, 32, "float16", indexed=True), (40, 96)),
    "gptq of many rows, act-order": (
        lambda to: Words(to, 4, 96, 32, "float16", indexed=True),
        (STRIP + 40, 96),
    ),
    "gptq of long rows, act-order": (
        lambda to: Words(to, 4, AT_ONCE // 2 + 64, AT_ONCE // 4, "float16", indexed=True),
        (8, AT_ONCE // 2 + 64),
    ),
    "gptq of 8 bits, act-order": (
        lambda to: Words(to, 8, 96, 32, "float16", added=1, indexed=True),
        (40, 96),
    ),
    "gptq of 8 bits in large groups, act-order": (
        lambda to: Words(to, 8, 2048, 600, "float16", indexed=True),
        (STRIP + 8, 2048),
    ),
    **{
        f"{name} of many long rows": (
            partial(Words, bits=bits, columns=1 << 14, group=32, scale="float16", **others),
            (STRIP, 1 << 14),
        )
        for name, bits, others in (
            ("awq", 4, {"interleaved": True}),
            ("gptq", 4, {}),
            ("gptq of 2 bits", 2, {}),
            ("gptq of 8 bits", 8, {}),
            ("gptq, act-order", 4, {"indexed": True}),
        )
    },
    "awq of many rows": (
        lambda to: Words(to, 4, 96, 32, "float16", interleaved=True),
        (STRIP + 40, 96),
    ),
    "nested": (
        lambda to: Nested(Scaled(to, "nf4", 64, 1, 64, "float32", high_first=True), 4, 0.03),
        (30, 64),
    ),
    "int8 in parts of 127": (
        lambda to: Scaled(to, "int8", 64, 1, 64, "float32", factor=1 / 127),
        (30, 64),
    ),
    "8bit": (lambda to: EightBit(to), (30, 64)),
    "4bit": (lambda to: FourBit(to), (30, 64)),
    "cast of half as many bits": (lambda to: Cast(torch.float16, DTYPES[to]), (30, 64)),
    "cast of twice as many bits": (lambda to: Cast(torch.float32, DTYPES[to]), (30, 64)),
    "strided": (lambda to: Strided.of(torch.empty(64, 30, dtype=DTYPES[to]).t()), (30, 64)),
}
CASES = [pytest.param(*FLAT[name], to, id=f"{name}-{to}") for name in FLAT for to in DTYPES]


def random_bytes(codec: Codec, weight: Layout) -> list[torch.Tensor]:
    """Stored tensors, as uint8."""
    torch.manual_seed(0)
    found = []
    for suffix, layout in codec.stored(weight).items():
        size = nbytes(layout)
        if suffix == ".index":
            found.append(torch.randint(0, 3, layout.shape, dtype=torch.int32).view(torch.uint8))
        elif layout.dtype.is_floating_point and suffix:
            scales = (torch.rand(layout.shape) * 0.02).to(layout.dtype)
            found.append(scales.reshape(-1).view(torch.uint8))
        elif suffix == ".scale":
            found.append(torch.randint(100, 140, (size,), dtype=torch.uint8))
        else:
            found.append(torch.randint(0, 256, (size,), dtype=torch.uint8))
    return found


def on_host(codec: Codec, weight: Layout, stored: Sequence[torch.Tensor]) -> torch.Tensor:
    made = np.zeros(nbytes(weight), np.uint8)
    codec.decode([each.numpy() for each in stored], made, np.empty(codec.scratch, np.uint8))
    return torch.from_numpy(made)


def same(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    """Bit for bit, but for which NaN it is."""
    x, y = a.view(dtype), b.view(dtype)
    return bool(((x == y) & (x.signbit() == y.signbit()) | x.isnan() & y.isnan()).all())


def check(codec: Codec, weight: Layout, stored: Sequence[torch.Tensor]) -> None:
    expected = on_host(codec, weight, stored)
    made = torch.zeros(nbytes(weight), dtype=torch.uint8)
    codec.decode_on(stored, made)
    assert same(made, expected, weight.dtype)
    if torch.cuda.is_available():
        kernel = decode_of(type(codec))
        for decode in (kernel, lambda codec, *others: codec.decode_on(*others)):
            there = torch.zeros(nbytes(weight), dtype=torch.uint8, device="cuda")
            decode(codec, [each.cuda() for each in stored], there)
            assert same(there.cpu(), expected, weight.dtype)


@pytest.mark.parametrize(("codec", "shape", "to"), CASES)
def test_every_device_makes_the_same_bits(
    codec: Callable[[str], Codec], shape: tuple[int, ...], to: str
) -> None:
    weight = Layout(DTYPES[to], shape)
    check(codec(to), weight, random_bytes(codec(to), weight))


@pytest.mark.parametrize("kind", [Lossless, LosslessFloat32])
@pytest.mark.parametrize("count", [2 * BLOCK + 5, BLOCK, 7])
def test_what_is_lossless_comes_back_on_every_device(
    kind: type[Lossless] | type[LosslessFloat32], count: int
) -> None:
    dtype = torch.bfloat16 if kind is Lossless else torch.float32
    weight = (torch.randn(count) * 0.02).to(dtype)
    weight[2], weight[3], weight[-1] = 1e30, 0, -1e-30
    codec, stored = kind.encode(weight) or pytest.fail("not encoded")
    layout = Layout(dtype, (count,))
    whole = [each.reshape(-1).view(torch.uint8) for each in stored.values()]
    check(codec, layout, whole)
    assert torch.equal(on_host(codec, layout, whole).view(dtype), weight)


def test_what_is_plain_is_copied() -> None:
    weight = torch.randn(30)
    check(PLAIN, Layout(torch.float32, (30,)), [weight.view(torch.uint8)])


class Taken(TorchDispatchMode):
    """Collects the memory of what operations return."""

    def __init__(self) -> None:
        self.found: set[int] = set()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        self.found |= {each.untyped_storage().data_ptr() for each in tree_leaves(made)}
        return made


@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        (PLAIN, (30, 64)),
        (Cast(torch.float16, torch.bfloat16), (30, 64)),
        (Strided.of(torch.empty(64, 30, dtype=torch.bfloat16).t()), (30, 64)),
        (Scaled("bfloat16", "int8", 64, 1, 64, "float32"), (30, 64)),
    ],
)
def test_only_codecs_that_say_so_take_memory_on_a_device(
    codec: Codec, shape: tuple[int, ...]
) -> None:
    weight = Layout(torch.bfloat16, shape)
    stored, made = random_bytes(codec, weight), torch.zeros(nbytes(weight), dtype=torch.uint8)
    given = {each.untyped_storage().data_ptr() for each in (*stored, made)}
    with Taken() as taken:
        codec.decode_on(stored, made)
    assert (not taken.found <= given) == codec.allocates


@pytest.mark.parametrize("to", DTYPES)
def test_a_cast_rounds_as_torch_does(to: str) -> None:
    codec, values = Cast(torch.float32, DTYPES[to]), torch.randn(3, 5) * 100
    stored = values.view(torch.uint8).reshape(-1)
    made = on_host(codec, Layout(DTYPES[to], (3, 5)), [stored])
    assert torch.equal(made.view(DTYPES[to]).view(3, 5), values.to(DTYPES[to]))
    with pytest.raises(ValueError, match="makes no"):
        codec.stored(Layout(torch.float64, (3, 5)))
