from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rabbitllm import CheckpointError
from rabbitllm.checkpoint import reader as reader_module
from rabbitllm.checkpoint import reads
from rabbitllm.checkpoint.codecs import to_header
from rabbitllm.checkpoint.codecs.lossless import BLOCK, Lossless
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import DECODERS, Reader
from rabbitllm.checkpoint.tensors import read_header
from rabbitllm.streaming.weights import ALIGNMENT, Stage, Weight

Tensors = dict[str, torch.Tensor]
UNTOUCHED = 0xA5


@pytest.fixture
def tensors() -> Tensors:
    """Sizes below, at and above a block of 4096 bytes, in three dtypes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3,), "b": (1024,), "c": (70, 61), "d": (5, 7, 11), "e": ()}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["h"] = torch.randn(33, 1025, generator=generator).bfloat16()
    made["i"] = torch.randint(0, 255, (4097,), generator=generator, dtype=torch.uint8)
    return made


def write(tensors: Tensors, folder: Path, files: int = 2) -> Reader:
    """The tensors in turn in some files, read by their headers."""
    entries = {}
    for n in range(files):
        file = folder / f"model-{n}.safetensors"
        save_file({k: t for i, (k, t) in enumerate(tensors.items()) if i % files == n}, file)
        entries |= read_header(file)
    return Reader(entries)


def lay_out(tensors: Tensors) -> Stage:
    weights, offset = [], 0
    for name, tensor in tensors.items():
        weights.append(Weight(name, (), tensor.dtype, tensor.shape, offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return Stage("stage", (), tuple(weights))


def check(stage: Stage, buffer: torch.Tensor, tensors: Tensors) -> None:
    """Every weight is in its place, and nothing else was written to."""
    expected = torch.full_like(buffer, UNTOUCHED)
    for weight in stage.weights:
        data = tensors[weight.name].reshape(-1).view(torch.uint8)
        expected[weight.offset : weight.offset + weight.nbytes] = data
    assert torch.equal(buffer, expected)


def bring(reader: Reader, stage: Stage, buffer: torch.Tensor, direct: bool) -> None:
    reader.fill(buffer, reader.cut(stage.offsets, direct))


def buffer_for(stage: Stage) -> torch.Tensor:
    return torch.full((stage.nbytes + 1000,), UNTOUCHED, dtype=torch.uint8)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("files", [1, 2, 8])
@pytest.mark.parametrize("chunk", [4096, 3 * 4096, 4 << 20])
@pytest.mark.parametrize("gap", [0, 5000, 256 << 10])
def test_a_stage_is_read_to_its_places(
    tensors: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    direct: bool,
    files: int,
    chunk: int,
    gap: int,
) -> None:
    monkeypatch.setattr(reads, "CHUNK", chunk)
    monkeypatch.setattr(reads, "GAP", gap)
    reader = write(tensors, tmp_path, files)
    for names in (list(tensors), list(tensors)[::-1], ["c", "h"]):  # any order, or a part
        stage = lay_out({name: tensors[name] for name in names})
        for _ in range(2):
            buffer = buffer_for(stage)
            bring(reader, stage, buffer, direct)
            check(stage, buffer, tensors)


def test_an_empty_tensor_takes_nothing(tensors: Tensors, tmp_path: Path) -> None:
    empty = "a"
    tensors = {"b": tensors["b"]} | {empty: torch.zeros(0, 4)}
    reader, stage = write(tensors, tmp_path, 1), lay_out(tensors)
    buffer = buffer_for(stage)
    bring(reader, stage, buffer, False)
    check(stage, buffer, tensors)
    assert reader.view(empty).shape == (0, 4)


def test_no_read_is_longer_than_a_chunk(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    preadv = os.preadv

    def spy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        asked.append((sum(map(len, buffers)), offset))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    monkeypatch.setattr(reads, "CHUNK", 8192)
    stage = lay_out(tensors)
    reader = write(tensors, tmp_path)
    bring(reader, stage, buffer_for(stage), True)
    assert max(size for size, _ in asked) <= 8192
    assert all(size % 4096 == 0 and offset % 4096 == 0 for size, offset in asked)
    assert len(asked) < 40


def test_what_is_read_in_parts_is_read_whole(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def some(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][:4096]], offset)

    monkeypatch.setattr(os, "preadv", some)
    stage = lay_out(tensors)
    buffer = buffer_for(stage)
    bring(write(tensors, tmp_path), stage, buffer, False)
    check(stage, buffer, tensors)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("left", [0, 1, 5000, 8192, -1])
def test_a_file_that_became_shorter_is_named(
    tensors: Tensors, tmp_path: Path, direct: bool, left: int
) -> None:
    reader = write(tensors, tmp_path, 1)
    file = tmp_path / "model-0.safetensors"
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    stage = lay_out(tensors)
    with pytest.raises(CheckpointError, match=rf"{file.name} ends at byte [\d,]+, in the middle"):
        bring(reader, stage, buffer_for(stage), direct)


def test_a_file_that_is_gone_is_an_os_error(tensors: Tensors, tmp_path: Path) -> None:
    reader = write(tensors, tmp_path, 1)
    (tmp_path / "model-0.safetensors").unlink()
    stage = lay_out(tensors)
    for direct in (False, True):
        with pytest.raises(FileNotFoundError, match=r"model-0\.safetensors"):
            bring(reader, stage, buffer_for(stage), direct)


def test_without_direct_reads_the_page_cache_serves(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open, refused = os.open, []

    def refuse(file: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            refused.append(file)
            raise OSError(22, "Invalid argument")
        return plain_open(file, flags)

    monkeypatch.setattr(os, "open", refuse)
    stage = lay_out(tensors)
    buffer = buffer_for(stage)
    bring(write(tensors, tmp_path), stage, buffer, True)
    check(stage, buffer, tensors)
    assert refused


def test_a_failed_read_leaves_no_other_one_running(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, late = threading.Event(), []

    def read(self: Reader, chunk: object, buffer: torch.Tensor, direct: bool) -> None:
        if chunk is asked.chunks[0]:
            raise CheckpointError("the first read fails")
        late.append(raised.wait(0.2))

    monkeypatch.setattr(Reader, "_read", read)
    monkeypatch.setattr(reads, "CHUNK", 64 << 10)
    stage, reader = lay_out(tensors), write(tensors, tmp_path)
    asked = reader.cut(stage.offsets, False)
    with pytest.raises(CheckpointError, match="the first read fails"):
        reader.fill(buffer_for(stage), asked)
    raised.set()
    reader.workers.close()
    assert late == [False] * (len(asked.chunks) - 1)


@pytest.fixture
def misaligned(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A file whose float tensor begins at an odd byte, as nothing but our care forbids."""
    file, tensor = tmp_path / "odd.safetensors", torch.randn(4, 5)
    header = b'{"w":{"dtype":"F32","shape":[4,5],"data_offsets":[0,80]}}'
    header += b" " * (1 - len(header) % 2)
    file.write_bytes(len(header).to_bytes(8, "little") + header + tensor.numpy().tobytes())
    return file, tensor


def test_a_misaligned_tensor_is_copied_for_a_view(misaligned: tuple[Path, torch.Tensor]) -> None:
    file, tensor = misaligned
    reader = Reader(read_header(file))
    assert reader.entries["w"].stored[0].offset % 4
    assert torch.equal(reader.view("w"), tensor)
    assert reader.view("w").data_ptr() % 4 == 0


@pytest.mark.parametrize("direct", [False, True])
def test_a_misaligned_tensor_is_read(misaligned: tuple[Path, torch.Tensor], direct: bool) -> None:
    file, tensor = misaligned
    stage = lay_out({"w": tensor})
    buffer = buffer_for(stage)
    bring(Reader(read_header(file)), stage, buffer, direct)
    check(stage, buffer, {"w": tensor})


def test_views_show_the_file_and_copy_nothing(tensors: Tensors, tmp_path: Path) -> None:
    reader = write(tensors, tmp_path, 1)
    for name, tensor in tensors.items():
        assert torch.equal(reader.view(name), tensor)
        assert reader.view(name).dtype == tensor.dtype
    b, c = reader.view("b"), reader.view("c")
    distance = reader.entries["c"].stored[0].offset - reader.entries["b"].stored[0].offset
    assert c.data_ptr() - b.data_ptr() == distance
    assert reader.view("b").data_ptr() == b.data_ptr()


def test_writing_to_a_view_leaves_the_file_as_it_is(tensors: Tensors, tmp_path: Path) -> None:
    reader = write(tensors, tmp_path, 1)
    before = (tmp_path / "model-0.safetensors").read_bytes()
    reader.view("b").zero_()
    assert (tmp_path / "model-0.safetensors").read_bytes() == before


def test_a_copy_is_in_memory_of_its_own(tensors: Tensors, tmp_path: Path) -> None:
    reader = write(tensors, tmp_path)
    copies = {name: reader.read(name) for name in tensors}
    for file in tmp_path.iterdir():
        os.truncate(file, 0)
    for name, tensor in tensors.items():
        assert torch.equal(copies[name], tensor)
        with pytest.raises(CheckpointError, match="ends at byte"):
            reader.read(name)


def test_rows_are_read_by_their_numbers(tmp_path: Path) -> None:
    table = torch.randn(50, 3, 2)
    reader = write({"a": torch.randn(7), "table": table}, tmp_path, 1)
    for ids in ([], [49], [0, 3, 4, 5, 49], [7, 7]):
        chosen = torch.tensor(ids, dtype=torch.long)
        assert torch.equal(reader.read_rows("table", chosen), table[chosen])
    for number in (-1, 50):
        with pytest.raises(IndexError, match=f"table has no row {number}: it has 50"):
            reader.read_rows("table", torch.tensor([0, number]))


def test_weights_are_compared_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "PART", 16)
    a = torch.randn(10, 10)
    last, nan = a.clone(), a.clone()
    last[9, 9] += 1
    nan[0, 0] = torch.nan
    tensors = {"a": a, "same": a.clone(), "flat": a.reshape(-1).clone(), "last": last, "nan": nan}
    reader = write(tensors, tmp_path)
    found = {name: reader.equal("a", name) for name in tensors}
    assert found == {"a": True, "same": True, "flat": False, "last": False, "nan": False}
    assert not reader.equal("nan", "nan")  # as torch.equal has it


@pytest.mark.parametrize("direct", [False, True])
def test_a_file_that_was_written_to_since_its_header_was_read_is_named(
    tensors: Tensors, tmp_path: Path, direct: bool
) -> None:
    reader, stage = write(tensors, tmp_path, 1), lay_out(tensors)
    file = tmp_path / "model-0.safetensors"
    os.utime(file, ns=(0, 1))
    calls: list[Callable[[], object]] = [
        lambda: bring(reader, stage, buffer_for(stage), direct),
        lambda: reader.read("b"),
        lambda: reader.read_rows("b", torch.tensor([0])),
        lambda: reader.view("b"),
        lambda: reader.equal("b", "b"),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match=f"{file} was changed while it was in use"):
            call()


def test_files_are_closed_with_the_reader(
    tensors: Tensors, tmp_path: Path, open_files: Callable[[], set[str]]
) -> None:
    reader = write(tensors, tmp_path)
    stage = lay_out(tensors)
    bring(reader, stage, buffer_for(stage), True)
    bring(reader, stage, buffer_for(stage), False)
    assert len([name for name in open_files() if name.startswith(str(tmp_path))]) == 2
    del reader
    assert not [name for name in open_files() if name.startswith(str(tmp_path))]


@pytest.fixture
def open_files() -> Callable[[], set[str]]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs procfs to list open files")

    def names() -> set[str]:
        found = set()
        for descriptor in Path("/proc/self/fd").iterdir():
            if descriptor.is_symlink():
                found.add(os.readlink(descriptor) if descriptor.exists() else "")
        return found

    return names


# encoded tensors

CHUNKS = [51 * 4096, 4 << 20]
"""Bytes: two blocks of encoded elements and more."""


@pytest.fixture
def mixed(tensors: Tensors) -> Tensors:
    """Plain tensors, and two that are going to be encoded; their blocks begin at any byte."""
    generator = torch.Generator().manual_seed(1)
    long = torch.randn(50 * BLOCK + 3, generator=generator).bfloat16()
    return tensors | {"p": long, "q": torch.randn(3, 201, generator=generator).bfloat16()}


def write_encoded(tensors: Tensors, file: Path) -> Reader:
    stored, how = dict(tensors), {}
    for name in ("p", "q"):
        codec, made = Lossless.encode(tensors[name]) or pytest.fail("not encoded")
        stored |= {name + suffix: tensor for suffix, tensor in made.items()}
        how[name] = codec, {"dtype": "BF16", "shape": list(tensors[name].shape)}
    save_file(stored, file, to_header(how))
    return Reader(read_header(file))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_encoded_is_decoded_to_its_place(
    mixed: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool, chunk: int
) -> None:
    monkeypatch.setattr(reads, "CHUNK", chunk)
    reader, stage = write_encoded(mixed, tmp_path / "a.safetensors"), lay_out(mixed)
    for _ in range(2):
        buffer = buffer_for(stage)
        bring(reader, stage, buffer, direct)
        check(stage, buffer, mixed)
    for name, tensor in mixed.items():
        assert torch.equal(reader.view(name), tensor)


def test_reading_what_is_encoded_moves_less(mixed: Tensors, tmp_path: Path) -> None:
    encoded = write_encoded(mixed, tmp_path / "a.safetensors")
    plain = write(mixed, tmp_path)
    for name, tensor in mixed.items():
        assert plain.entries[name].nbytes == tensor.nbytes
        saved = tensor.nbytes - encoded.entries[name].nbytes
        assert saved == pytest.approx(tensor.nbytes / 4 if name in "pq" else 0, rel=1e-2)


def test_damage_to_what_is_encoded_is_named(mixed: Tensors, tmp_path: Path) -> None:
    mixed["q"][0, 0] = 1e30  # an outlier, whose position is going to be spoiled
    file, stage = tmp_path / "a.safetensors", lay_out(mixed)
    entry = write_encoded(mixed, file).entries["q"]
    assert isinstance(entry.codec, Lossless)
    assert entry.codec.outliers
    with file.open("r+b") as stream:
        stream.seek(entry.stored[0].offset + entry.nbytes - 3 * entry.codec.outliers)
        stream.write(b"\xff\xff")
    reader = Reader(read_header(file))
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged behind byte"):
        reader.view("q")
    for _ in range(2 * DECODERS):  # nor is it an error to wait forever for what one had
        with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged behind byte"):
            bring(reader, stage, buffer_for(stage), True)


def test_neighbours_are_read_together_up_to_a_chunk(tmp_path: Path) -> None:
    file, chunk = tmp_path / "a.safetensors", reads.CHUNK

    def piece(start: int, stop: int, *others: int) -> reads.Piece:
        spans = tuple(reads.Span(file, a, a + stop - start) for a in (start, *others))
        return reads.Piece(PLAIN, spans, start, stop - start)

    first = piece(100, 200)
    assert reads._together([first], piece(200, 300))
    assert reads._together([first, piece(200, 300)], piece(300, chunk))
    assert not reads._together([first], piece(200, chunk + 1))
    assert not reads._together([first], piece(201 + reads.GAP, chunk))
    assert not reads._together([first], piece(200, 300, 700))
    assert not reads._together([piece(100, 200, 600)], piece(200, 300, 700))
