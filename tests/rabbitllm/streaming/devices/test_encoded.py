"""How a stage lies on the host as it is stored, and what becomes of it."""

from pathlib import Path

import pytest
import torch

from rabbitllm.checkpoint import reader as reader_module
from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.codecs.words import Words
from rabbitllm.checkpoint.reader import Reader, held_bytes
from rabbitllm.checkpoint.tensors import Extent, Joined, TensorEntry, WeightEntry
from rabbitllm.streaming.devices import encoded
from rabbitllm.streaming.devices.cpu import CpuTransfer
from rabbitllm.streaming.devices.encoded import encode, kept_bytes, largest_unit, room_for
from rabbitllm.streaming.weights import Stage, Weight, align, lay_out

FP8 = Scaled("bfloat16", "e4m3", 256, 128, 128, "float32")
OF_ALL = Scaled("bfloat16", "e4m3", 256, 999, 256, "float32")
INT4 = Scaled("bfloat16", "int4", 256, 1, 32, "bfloat16", zeros=True)
GPTQ = Words("bfloat16", 4, 256, 128, "float16", added=1)
ROWS = 304
WHOLE = encoded.PORTION


class Files:
    """Weights in files, as codecs store them, of random bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, WeightEntry] = {}

    def tensor(self, codec: Codec, rows: int = ROWS) -> TensorEntry:
        layout = Layout(torch.bfloat16, (rows, 256))
        file, extents = self.folder / f"{len(list(self.folder.iterdir()))}", []
        with file.open("wb") as stream:
            for stored in codec.stored(layout).values():
                stream.write(b"-" * 13)
                place = stream.tell()
                data = torch.randint(0, 120, (nbytes(stored),), dtype=torch.uint8)
                stream.write(data.numpy().tobytes())
                extents.append(Extent(file, place, len(data)))
        return TensorEntry(tuple(extents), *layout, codec)

    def add(self, *parts: TensorEntry) -> None:
        name = f"w{len(self.entries)}"
        shape = (sum(part.shape[0] for part in parts), 256)
        joined = Joined(parts, torch.bfloat16, shape)
        self.entries[name] = parts[0] if len(parts) == 1 else joined

    def stage(self) -> Stage:
        weights = [
            Weight(name, (), entry.dtype, torch.Size(entry.shape))
            for name, entry in self.entries.items()
        ]
        return Stage("stage", (), lay_out(weights))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    torch.manual_seed(0)
    return Files(tmp_path)


def mixed(files: Files) -> Files:
    """Plain and encoded ones in turns; some in pieces."""
    files.add(files.tensor(PLAIN, 3))
    files.add(files.tensor(FP8))
    files.add(files.tensor(PLAIN), files.tensor(PLAIN, 7))
    files.add(files.tensor(PLAIN))
    files.add(files.tensor(INT4), files.tensor(OF_ALL), files.tensor(PLAIN, 5))
    files.add(files.tensor(GPTQ))
    return files


@pytest.mark.parametrize("portion", [1, 5000, 40_000, WHOLE])
def test_what_crosses_becomes_the_stage(
    files: Files, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    monkeypatch.setattr(encoded, "PORTION", portion)
    stage, reader = mixed(files).stage(), Reader(files.entries)
    laid = encode(stage, files.entries)
    host = torch.full((laid.nbytes,), 0xAA, dtype=torch.uint8)
    reader.fill(host, reader.cut_tensors(laid.reads, direct=False))
    device = torch.full((stage.nbytes,), 0xAA, dtype=torch.uint8)
    room = room_for(largest_unit(files.entries.values()))
    for each in laid.portions:
        arrived = host[each.source]
        if not each.pieces:
            device[each.target] = arrived
            continue
        assert len(arrived) <= room
        for piece in each.pieces:
            sources = [arrived[place] for place in piece.sources]
            piece.codec.decode_on(sources, device[piece.target])
    for weight in stage.weights:
        made = device[weight.offset : weight.offset + weight.nbytes].view(weight.dtype)
        expected = reader.read(weight.name).reshape(-1)
        assert torch.equal(made.view(torch.int16), expected.view(torch.int16)), weight.name


@pytest.mark.parametrize("portion", [1, 5000, WHOLE])
def test_a_plan_knows_the_bytes_of_the_buffer(
    files: Files, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    monkeypatch.setattr(encoded, "PORTION", portion)
    stage = mixed(files).stage()
    kept = {name: kept_bytes(e) for name, e in files.entries.items() if not e.plain}
    assert encode(stage, files.entries).nbytes == stage.stored(kept).stored_nbytes
    assert stage.stored(kept).stored_nbytes < stage.nbytes


def test_a_plain_stage_is_one_copy(files: Files) -> None:
    files.add(files.tensor(PLAIN, 3))
    files.add(files.tensor(PLAIN), files.tensor(PLAIN, 7))
    stage = files.stage()
    (portion,) = encode(stage, files.entries).portions
    assert portion == (slice(0, stage.nbytes), (), slice(0, stage.nbytes))
    assert room_for(largest_unit(files.entries.values())) == 0


def test_many_weights_cross_at_once(files: Files) -> None:
    for _ in range(5):
        files.add(files.tensor(FP8))
    laid = encode(files.stage(), files.entries)
    (portion,) = laid.portions
    assert len(portion.pieces) == 5
    assert laid.nbytes == align(portion.source.stop)


def test_a_reader_holds_few_large_units_at_a_time(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of GPTQ decode whole: what is held of them is what the budget counts."""
    for rows in (304, 512, 256, 1024, 640, 1024, 304, 512):
        files.add(files.tensor(GPTQ, rows))
    files.add(files.tensor(FP8))
    monkeypatch.setattr(reader_module, "OWN", 60_000)
    made: list[int] = []
    mapped = reader_module._mapped

    def counted(nbytes: int) -> Bytes:
        made.append(nbytes)
        return mapped(nbytes)

    monkeypatch.setattr(reader_module, "_mapped", counted)
    reader = Reader(files.entries)
    stage = files.stage()
    buffer = torch.zeros(stage.nbytes, dtype=torch.uint8)
    for _ in range(3):
        reader.fill(buffer, reader.cut(stage.offsets, direct=True))
    for weight in stage.weights:
        found = buffer[weight.offset :][: weight.nbytes]
        assert found.equal(Reader(files.entries).read(weight.name).view(torch.uint8).reshape(-1))
    unit = largest_unit(files.entries.values())
    held = [reader._large.get() for _ in range(reader_module.LARGE)]
    assert reader._large.empty()
    assert 60_000 < sum(len(each) for each in held) <= held_bytes(unit)
    assert CpuTransfer.decoding_bytes(unit) == held_bytes(unit) > 3 * unit
    reader.workers.close()


def test_units_that_threads_have_room_for_are_not_counted_again(files: Files) -> None:
    files.add(files.tensor(FP8))
    unit = largest_unit(files.entries.values())
    assert unit > 0 == held_bytes(unit) == CpuTransfer.decoding_bytes(unit)
