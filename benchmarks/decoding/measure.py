"""How fast one thread of a CPU decodes, or a GPU: GB/s of the weight that is made, for each codec.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --device cuda

On a CPU the lossless unpack is the measure: what decodes at a third of its pace keeps up with most
disks. On a GPU the link is: what it carries is decoded behind it, so a codec keeps up where it
takes in more stored bytes a second than the link brings.
Codecs take turns, and of each the median counts: a machine's pace wanders.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.records import Record, write_as_they_come
from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.lossy import EightBit, FourBit
from rabbitllm.checkpoint.codecs.nested import Nested
from rabbitllm.checkpoint.codecs.scaled import E8M0, Scaled
from rabbitllm.checkpoint.codecs.words import Words
from rabbitllm.cli.tables import table
from rabbitllm.streaming.devices.decoder import decode_of

ROWS = {"cpu": 2048, "cuda": 16384}
"""Of the weight, by device: more than its cache holds, as a layer is."""
COLUMNS = 4096
GROUP, TURNS = 128, 7
LOSSLESS = "lossless"


def codecs(to: str, in_all: int) -> dict[str, Codec]:
    """Those of the published formats, and our own, by name.

    Args:
        to: dtype of the weight: "bfloat16" or "float16".
        in_all: its rows.
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
        "fp8 tensor": scaled("e4m3", in_all, COLUMNS, "float32"),
        "fp8 e5m2 tensor": scaled("e5m2", in_all, COLUMNS, "float32"),
        "int8 channel": scaled("int8", 1, COLUMNS, "bfloat16", rounded="bfloat16"),
        "int8 packed": scaled("offset8", 1, COLUMNS, "bfloat16", rounded="bfloat16"),
        "int4 packed": scaled("int4", 1, GROUP, "bfloat16", rounded="bfloat16"),
        "int4 packed, zeros": scaled("int4", 1, GROUP, "float16", zeros=True, rounded="float16"),
        "mxfp4": scaled("e2m1", 1, 32, E8M0),
        "mxfp4, experts": scaled("e2m1", 1, 32, E8M0, transposed=in_all),
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


def cases(to: str, rows: int) -> dict[str, tuple[Codec, list[Bytes]]]:
    """Name -> a codec, and what it stores of a weight in this dtype; lossless is of bfloat16."""
    lossless = Lossless.encode((torch.randn(rows, COLUMNS) * 0.02).bfloat16())
    assert lossless is not None, "normal distributions are what it is made for"
    how, parts = lossless
    made: dict[str, tuple[Codec, list[Bytes]]] = {
        LOSSLESS: (how, [part.numpy() for part in parts.values()])
    }
    weight = Layout(getattr(torch, to), (rows, COLUMNS))
    for name, codec in codecs(to, rows).items():
        made[name] = codec, stored_at_random(codec, weight)
    return made


def on_host(codec: Codec, stored: Sequence[Bytes], size: int) -> Callable[[], float]:
    """Decodes to so many bytes by one thread; the call says the seconds it took."""
    target, scratch = np.zeros(size, np.uint8), np.zeros(codec.scratch, np.uint8)

    def seconds() -> float:
        begun = time.perf_counter()
        codec.decode(stored, target, scratch)
        return time.perf_counter() - begun

    return seconds


def on_gpu(codec: Codec, stored: Sequence[Bytes], size: int) -> Callable[[], float]:
    """The same on a CUDA device, as the device's clock has it: memory is taken at each call."""

    def seconds() -> float:
        sources = [torch.from_numpy(part).cuda() for part in stored]
        target = torch.empty(size, dtype=torch.uint8, device="cuda")
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        decode_of(type(codec))(codec, sources, target)
        begun.record()
        decode_of(type(codec))(codec, sources, target)
        ended.record()
        ended.synchronize()
        milliseconds: float = begun.elapsed_time(ended)
        return milliseconds / 1e3

    return seconds


ON: dict[str, Callable[[Codec, Sequence[Bytes], int], Callable[[], float]]] = {
    "cpu": on_host,
    "cuda": on_gpu,
}
"""Device -> what decodes there."""


def measure(device: str) -> Iterator[Record]:
    """The pace of each case there, for both dtypes: medians of the turns."""
    rows = ROWS[device]
    for to in ("bfloat16", "float16"):
        size = rows * COLUMNS * getattr(torch, to).itemsize
        found = cases(to, rows)
        decode = {name: ON[device](codec, parts, size) for name, (codec, parts) in found.items()}
        taken = defaultdict[str, list[float]](list)
        for _ in range(TURNS):
            for name, seconds in decode.items():
                taken[name].append(seconds())
        for name, (_, parts) in found.items():
            pace = 1e-9 / statistics.median(taken[name])
            read = sum(map(len, parts))
            yield {"codec": name, "to": to, "made": size * pace, "read": read * pace}


def render(records: Sequence[Record]) -> str:
    """The table: GB/s of the weight, and of what is stored of it."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        unpacked = next(
            each for each in records if (each["codec"], each["to"]) == (LOSSLESS, record["to"])
        )
        rows[record["codec"]] |= {
            "codec": record["codec"],
            f"GB/s of {record['to']}": f"{record['made']:.2f}",
            f"of stored, {record['to']}": f"{record['read']:.2f}",
            f"of lossless, {record['to']}": f"{record['made'] / unpacked['made']:.2f}",
        }
    return table(list(rows.values()), "github") + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=ON, default="cpu", help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured = measure(asked.device)
    if asked.out:
        write_as_they_come(measured, asked.out, render)
    else:
        print(render(list(measured)))
    return 0
