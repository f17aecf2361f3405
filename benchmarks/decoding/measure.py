"""How fast one thread of a CPU decodes: GB/s of the weight that is made, for each codec.

    python -m benchmarks.decoding

The lossless unpack is the measure: what decodes at a third of its pace keeps up with most disks.
Codecs take turns, and of each the median counts: a machine's pace wanders.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.lossy import EightBit, FourBit
from rabbitllm.checkpoint.codecs.nested import Nested
from rabbitllm.checkpoint.codecs.scaled import E8M0, Scaled
from rabbitllm.checkpoint.codecs.words import Words
from rabbitllm.cli.tables import table

ROWS, COLUMNS = 2048, 4096
"""Of the weight: more than a cache holds, as a layer is."""
GROUP, TURNS = 128, 7
LOSSLESS = "lossless"


def codecs(to: str) -> dict[str, Codec]:
    """Those of the published formats, and our own, by name.

    Args:
        to: dtype of the weight: "bfloat16" or "float16".
    """

    def scaled(kind: str, rows: int, width: int, scale: str, **others: object) -> Scaled:
        return Scaled(to, kind, COLUMNS, rows, width, scale, **others)  # type: ignore[arg-type]

    def words(bits: int, **others: bool) -> Words:
        return Words(to, bits, COLUMNS, GROUP, "float16", added=1, **others)

    blocks = Scaled(to, "nf4", 64, 1, 64, "float32", high_first=True, rounded="bfloat16")
    return {
        "8bit": EightBit(to),
        "4bit": FourBit(to),
        "fp8 128x128": scaled("e4m3", 128, 128, "float32"),
        "fp8 128x128 ue8m0": scaled("e4m3", 128, 128, E8M0),
        "fp8 channel": scaled("e4m3", 1, COLUMNS, "bfloat16", rounded="bfloat16"),
        "fp8 tensor": scaled("e4m3", ROWS, COLUMNS, "float32"),
        "fp8 e5m2 tensor": scaled("e5m2", ROWS, COLUMNS, "float32"),
        "int8 channel": scaled("int8", 1, COLUMNS, "bfloat16", rounded="bfloat16"),
        "int8 packed": scaled("offset8", 1, COLUMNS, "bfloat16", rounded="bfloat16"),
        "int4 packed": scaled("int4", 1, GROUP, "bfloat16", rounded="bfloat16"),
        "int4 packed, zeros": scaled("int4", 1, GROUP, "float16", zeros=True, rounded="float16"),
        "mxfp4": scaled("e2m1", 1, 32, E8M0),
        "mxfp4, experts": scaled("e2m1", 1, 32, E8M0, transposed=ROWS),
        "nf4": blocks,
        "nf4 twice": Nested(blocks, 256, 0.05),
        "int8 of rows": scaled("int8", 1, COLUMNS, "float32", factor=1 / 127),
        "awq": words(4, interleaved=True),
        "gptq 4": words(4),
        "gptq 4, act-order": words(4, indexed=True),
        "gptq 8": words(8),
        "gptq 2": words(2),
    }


def stored_at_random(codec: Codec, weight: Layout) -> list[Bytes]:
    """Stored tensors of any codes, with scales near 1."""
    generator = np.random.default_rng(0)
    found: list[Bytes] = []
    for suffix, layout in codec.stored(weight).items():
        if suffix == ".index":
            groups = np.arange(layout.shape[0], dtype="<i4") // GROUP
            found.append(generator.permutation(groups).view(np.uint8))
        elif layout.dtype.is_floating_point:
            ones = torch.rand(layout.shape).add_(0.5).to(layout.dtype)
            found.append(ones.reshape(-1).view(torch.uint8).numpy())
        else:
            low, high = (120, 134) if suffix == ".scale" else (0, 256)
            size = nbytes(layout)
            found.append(generator.integers(low, high, size, dtype=np.uint8))
    return found


def cases(to: str) -> dict[str, tuple[Codec, list[Bytes]]]:
    """Name -> a codec, and what it stores of a weight in this dtype; lossless is of bfloat16."""
    lossless = Lossless.encode((torch.randn(ROWS, COLUMNS) * 0.02).bfloat16())
    assert lossless is not None, "normal distributions are what it is made for"
    how, parts = lossless
    made: dict[str, tuple[Codec, list[Bytes]]] = {
        LOSSLESS: (how, [part.numpy() for part in parts.values()])
    }
    weight = Layout(getattr(torch, to), (ROWS, COLUMNS))
    for name, codec in codecs(to).items():
        made[name] = codec, stored_at_random(codec, weight)
    return made


def measure(to: str) -> dict[str, float]:
    """GB/s of a weight in this dtype, for each case: the median of the turns."""
    target = np.zeros(ROWS * COLUMNS * getattr(torch, to).itemsize, np.uint8)
    paces: dict[str, list[float]] = {}
    found = cases(to)
    scratch = np.zeros(max(codec.scratch for codec, _ in found.values()), np.uint8)
    for _ in range(TURNS):
        for name, (codec, stored) in found.items():
            begun = time.perf_counter()
            codec.decode(stored, target, scratch[: codec.scratch])
            paces.setdefault(name, []).append(len(target) / (time.perf_counter() - begun) / 1e9)
    return {name: statistics.median(turns) for name, turns in paces.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints a table; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    torch.set_num_threads(1)
    into = {to: measure(to) for to in ("bfloat16", "float16")}
    rows = []
    for name in into["bfloat16"]:
        row = {"codec": name}
        for to, paces in into.items():
            share = paces[name] / paces[LOSSLESS]
            row |= {f"GB/s of {to}": f"{paces[name]:.2f}", f"of lossless, {to}": f"{share:.2f}"}
        rows.append(row)
    print(table(rows, "github"))
    return 0
