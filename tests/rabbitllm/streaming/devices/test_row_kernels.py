"""Rows that a GPU looks up, fetches and decodes: the bits of decoding on the host."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec, Layout
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.lossy import EightBit, FourBit
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.codecs.words import Words
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, Joined, TensorEntry, WeightEntry
from rabbitllm.streaming.devices import CudaTransfer
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.plan import EMPTY, Shelf
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Owner, Stage, Weight, lay_out
from tests.rabbitllm.checkpoint.codecs.test_decoding_on import random_bytes, same

DEVICE = torch.device("cuda", 0)
EXPERTS, TOP, SLOTS = 7, 2, 14
TO = "bfloat16"
TOGETHER: dict[str, tuple[Codec, tuple[int, ...]]] = {
    "plain": (PLAIN, (40, 64)),
    "mxfp4": (Scaled(TO, "e2m1", 96, 1, 32, "e8m0", transposed=40), (96, 40)),
    "8bit": (EightBit(TO), (40, 64)),
    "4bit": (FourBit(TO), (40, 64)),
    "float32": (Cast(torch.float32, torch.bfloat16), (40, 64)),
    "float16": (Cast(torch.float16, torch.bfloat16), (33, 65)),
    "lossless": (Lossless(110, 8), (256, 256)),
}
"""Of all experts in one tensor: how they are stored, and the shape of one."""
APART: dict[str, tuple[Codec, tuple[int, ...]]] = {
    "fp8": (Scaled(TO, "e4m3", 400, 128, 128, "float32"), (300, 400)),
    "fp8, a scale for each": (Scaled(TO, "e4m3", 64, 99, 64, "float32"), (30, 64)),
    "int4": (Scaled(TO, "int4", 64, 1, 32, "bfloat16", rounded="bfloat16"), (30, 64)),
    "int4 with zeros": (
        Scaled(TO, "int4", 64, 1, 32, "float16", zeros=True, rounded="float16"),
        (40, 64),
    ),
    "offset8": (Scaled(TO, "offset8", 64, 1, 32, "float16", rounded="float16"), (30, 64)),
    "awq": (Words(TO, 4, 96, 32, "float16", interleaved=True), (40, 96)),
    "gptq": (Words(TO, 4, 96, 32, "float16", added=1), (40, 96)),
    "gptq, act-order": (Words(TO, 4, 96, 32, "float16", indexed=True), (40, 96)),
}
"""Of an expert in two tensors of its own: how each is stored, and its shape."""


class Mixture:
    """Two stages of experts: two weights that are encoded, and a plain one between them."""

    def __init__(self, folder: Path, codec: Codec, shape: tuple[int, ...], apart: bool) -> None:
        self._folder, self.entries = folder, dict[str, WeightEntry]()
        self.names = {
            stage: [f"{stage}.{name}" for name in ("up", "bias", "down")] for stage in "ab"
        }
        for up, bias, down in self.names.values():
            for name in (up, down):
                if apart:
                    parts = [self._tensor(codec, shape) for _ in range(2 * EXPERTS)]
                    whole = (EXPERTS, 2 * shape[0], *shape[1:])
                    self.entries[name] = Joined(tuple(parts), torch.bfloat16, whole)
                else:
                    self.entries[name] = self._tensor(codec, (EXPERTS, *shape))
            self.entries[bias] = self._tensor(PLAIN, (EXPERTS, 24))
        self.meter = Meter()
        self.moving = CudaTransfer(Reader(self.entries), self.meter, DEVICE)
        stages = [self._stage(stage) for stage in self.names]
        memory = self.moving.shelf(Shelf(SLOTS, stages[0].row_nbytes), EMPTY, 0)
        for stage in stages:
            self.moving.open(stage, "host")
        self.shelf = RowShelf(self.moving, memory, stages)
        reader = Reader(self.entries)
        self.truth = {name: reader.read(name) for name in self.entries}

    def _tensor(self, codec: Codec, shape: tuple[int, ...]) -> TensorEntry:
        layout, extents = Layout(torch.bfloat16, shape), []
        if codec == PLAIN:
            stored = [torch.randn(shape).bfloat16().reshape(-1).view(torch.uint8)]
        elif isinstance(codec, Lossless):
            values = (torch.randn(shape) * 0.02).bfloat16()
            values[..., 0, ::100] = 1e30
            codec, made = Lossless.encode(values) or pytest.fail("not encoded")
            assert codec.outliers
            stored = [each.reshape(-1) for each in made.values()]
        else:
            stored = random_bytes(codec, layout)
        for each in stored:
            file = self._folder / f"{len(list(self._folder.iterdir()))}"
            file.write_bytes(each.numpy().tobytes())
            extents.append(Extent(file, 0, each.numel()))
        return TensorEntry(tuple(extents), *layout, codec)

    def _stage(self, stage: str) -> Stage:
        module, weights = nn.Module(), []
        for name in self.names[stage]:
            owners, entry = (Owner(module, name.partition(".")[2]),), self.entries[name]
            shape = torch.Size(entry.shape)
            weights.append(Weight(name, owners, entry.dtype, shape, by=1, rows=EXPERTS))
        return Stage(stage, (module,), lay_out(weights), least_rows=TOP)

    def check(self, stage: str, numbers: torch.Tensor, held: list[torch.Tensor]) -> None:
        """That the rows of a stage's weights are those of these numbers."""
        for name, rows in zip(self.names[stage], held, strict=True):
            made, due = rows.detach().cpu().contiguous(), self.truth[name][numbers]
            assert same(made.view(-1), due.reshape(-1), torch.bfloat16), (stage, name, numbers)


@pytest.fixture
def mixture(tmp_path: Path) -> Callable[[str], Mixture]:
    torch.manual_seed(0)
    table = {**TOGETHER, **APART}
    return lambda case: Mixture(tmp_path, *table[case], case in APART)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", [*TOGETHER, *APART])
@torch.inference_mode()
def test_rows_that_a_device_fetches_itself_have_their_bits(
    case: str, mixture: Callable[[str], Mixture]
) -> None:
    made, draw = mixture(case), random.Random(0)
    total = 0
    for turn in range(24):
        for stage in "ab":
            asked = torch.tensor([draw.sample(range(EXPERTS), TOP)])
            total += TOP
            found = made.shelf.look_up(stage, asked.to(DEVICE))
            assert found is not None, "the device cannot look up"
            places, held = found
            made.check(stage, asked[0], [rows[places[0]] for rows in held])
        if turn % 8 == 7:  # what the host brings in between
            numbers = sorted(draw.sample(range(EXPERTS), 3))
            made.check("a", torch.tensor(numbers), made.shelf.lay_out("a", numbers))
            made.shelf.keep("a", numbers)
            total += 3
    made.meter.settle(wait=True)
    stats = made.meter.stats
    assert stats.rows_asked == total
    assert 0 < stats.rows_brought < total
    assert stats.bytes_of_rows == stats.bytes_to_device
    made.moving.close()
