from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.codecs import HEADER, HEADER_UP_TO_FORMAT_3
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import (
    MAX_HEADER_BYTES,
    RAW,
    Extent,
    Joined,
    TensorEntry,
    in_plain_pieces,
    read_header,
)

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(file: Path, header: object, data: int = 24) -> Path:
    """A safetensors file with any header, JSON or bytes, and `data` bytes behind it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return file


def test_metadata_is_no_tensor_and_a_scalar_is_one(tmp_path: Path) -> None:
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [24, 28]}
    file = write(tmp_path / "f", {"__metadata__": {"format": "pt"}, "w": GOOD, "s": scalar}, 28)
    tensors = read_header(file)
    assert tensors.keys() == {"w", "s"}
    assert (tensors["s"].shape, tensors["s"].nbytes) == ((), 4)
    assert tensors["w"].stored[0].offset == file.stat().st_size - 28


@pytest.mark.parametrize(
    ("name", "shape"), [("F4", [6, 8]), ("F6_E2M3", [4, 8]), ("F8_E8M0", [24])]
)
def test_what_nothing_is_made_of_is_bytes(tmp_path: Path, name: str, shape: list[int]) -> None:
    header = {"w": GOOD | {"dtype": name, "shape": shape}}
    assert read_header(write(tmp_path / "f", header))["w"].layout == (RAW, (24,))
    header["w"]["shape"] = [*shape, 2]
    with pytest.raises(CheckpointError, match=f"24 bytes hold no {name}"):
        read_header(write(tmp_path / "f", header))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_too_short_for_a_header_is_named(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x02" + bytes(size - 1) if size else b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("length", [0, 1, 1000, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_length_that_cannot_be_is_refused(tmp_path: Path, length: int) -> None:
    file = tmp_path / "f"
    file.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    with pytest.raises(CheckpointError, match="no safetensors file or is truncated"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xff",
        b"{]",
        pytest.param(b"[" * 100_000, id="deep"),
        [],
        "text",
        3,
        None,
        {"w": None},
        {"w": []},
        {"w": {}},
        {"w": GOOD | {"dtype": "F31"}},
        {"w": GOOD | {"dtype": None}},
        {"w": GOOD | {"dtype": []}},
        {"w": GOOD | {"shape": None}},
        {"w": GOOD | {"shape": 6}},
        {"w": GOOD | {"shape": [[2], 3]}},
        {"w": GOOD | {"shape": [float("nan")]}},
        {"w": GOOD | {"shape": [float("inf")]}},
        {"w": GOOD | {"data_offsets": []}},
        {"w": GOOD | {"data_offsets": [0]}},
        {"w": GOOD | {"data_offsets": [0, 24, 24]}},
        {"w": GOOD | {"data_offsets": [0.0, 24.0]}},
        {"w": GOOD | {"shape": [2.0, 3]}},
        {"w": GOOD | {"shape": "23"}},
        {"w": GOOD | {"shape": {"2": 0, "3": 1}}},
        {"w": GOOD | {"data_offsets": {}}},
        {"w": GOOD | {"data_offsets": ["a", "b"]}},
        {"w": GOOD | {"data_offsets": [0, float("inf")]}},
    ],
    ids=repr,
)
def test_a_malformed_header_is_refused(tmp_path: Path, header: object) -> None:
    file = write(tmp_path / "f", header)
    with pytest.raises(CheckpointError, match="malformed"):
        read_header(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [2**62, 2**62]},
        {"dtype": "F64"},
        {"data_offsets": [24, 0]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [-4, 20]},
        {"data_offsets": [-(2**70), 0]},
        {"data_offsets": [4, 28]},
        {"data_offsets": [2**80, 2**80 + 24]},
        pytest.param({"shape": [10**300] * 50_000}, id="hours to multiply"),
    ],
    ids=repr,
)
def test_a_tensor_whose_place_contradicts_its_shape_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = write(tmp_path / "f", {"w": GOOD | changes})
    with pytest.raises(CheckpointError, match="tensor w has an impossible place or shape"):
        read_header(file)


@pytest.mark.parametrize("places", [([0, 24], [0, 24]), ([0, 24], [20, 44]), ([0, 24], [28, 52])])
def test_tensors_that_overlap_or_leave_holes_are_refused(
    tmp_path: Path, places: tuple[list[int], list[int]]
) -> None:
    header = {key: GOOD | {"data_offsets": place} for key, place in zip("vw", places, strict=True)}
    with pytest.raises(CheckpointError, match="tensor w has an impossible place or shape"):
        read_header(write(tmp_path / "f", header, places[1][1]))


def test_a_tensor_behind_the_end_of_its_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "f", {"v": GOOD, "w": GOOD | {"data_offsets": [24, 48]}})
    with pytest.raises(CheckpointError, match=r"f is truncated: it has \d+ bytes, its header"):
        read_header(file)


def test_an_empty_tensor_takes_no_place(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [24, 24]}
    tensors = read_header(write(tmp_path / "f", {"e": empty, "w": GOOD}))
    assert (tensors["e"].shape, tensors["e"].nbytes) == ((2**40, 0), 0)


@pytest.mark.parametrize("seed", range(8))
def test_a_spoiled_file_is_read_whole_or_refused(
    checkpoint: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    good = (checkpoint() / "model.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", good[:8])[0]
    random = torch.Generator().manual_seed(seed)
    refused = 0
    for _ in range(40):
        spoiled = bytearray(good)
        for place in torch.randint(0, start, (3,), generator=random).tolist():
            spoiled[place] = int(torch.randint(0, 256, (), generator=random))
        file = tmp_path / "model.safetensors"
        file.write_bytes(spoiled)
        try:
            tensors = read_header(file)
        except CheckpointError:
            refused += 1
            continue
        for name, entry in tensors.items():
            (place,) = entry.stored
            assert 8 <= place.offset <= place.offset + place.nbytes <= len(good)
            assert Reader(tensors).read(name).shape == entry.shape
    assert refused > 0


# encoded tensors

LOSSLESS = {"codec": "lossless", "dtype": "BF16", "shape": [2, 3], "lowest": 100, "outliers": 0}


def encoded_header(row: object, key: str = HEADER) -> dict[str, Any]:
    """Of one block of 6 elements in 9 bytes."""
    return {
        "__metadata__": {key: json.dumps({"w": row})},
        "w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]},
    }


@pytest.mark.parametrize(
    "header",
    [encoded_header(LOSSLESS), encoded_header([[2, 3], 100, 0], HEADER_UP_TO_FORMAT_3)],
    ids=["now", "before"],
)
def test_an_encoded_tensor_is_described_as_what_it_stands_for(
    tmp_path: Path, header: object
) -> None:
    entry = read_header(write(tmp_path / "a.safetensors", header, 9))["w"]
    assert (entry.dtype, entry.shape, entry.nbytes) == (torch.bfloat16, (2, 3), 9)
    assert entry.codec == Lossless(100, 0)


@pytest.mark.parametrize(
    "header",
    [
        *(
            encoded_header(LOSSLESS | change)
            for change in (
                {"shape": [2, 4]},
                {"shape": [-2, -3]},
                {"shape": [2**40, 2**40]},
                {"shape": [2**63] * 99},
                {"shape": 6},
                {"dtype": "F16"},
                {"dtype": "F17"},
                {"outliers": 1},
                {"lowest": 250},
                {"lowest": -1},
                {"lowest": "100"},
                {"more": 0},
                {"codec": "zip"},
                {"codec": ["lossless"]},
            )
        ),
        *(
            encoded_header({key: LOSSLESS[key] for key in LOSSLESS if key != gone})
            for gone in LOSSLESS
        ),
        encoded_header(7),
        *(
            encoded_header(row, HEADER_UP_TO_FORMAT_3)
            for row in (6, [], [[2, 3], 100], [[2, 3], 100, 0, 0], [6, 100, 0], [[2, 3], "1", 0])
        ),
        encoded_header(LOSSLESS) | {"__metadata__": {HEADER: json.dumps({"v": LOSSLESS})}},
        encoded_header(LOSSLESS) | {"__metadata__": {HEADER: "[]"}},
        encoded_header(LOSSLESS) | {"__metadata__": {HEADER: "[7]"}},
        encoded_header(LOSSLESS) | {"__metadata__": {HEADER: "{"}},
        encoded_header(LOSSLESS) | {"__metadata__": {HEADER: 7}},
        encoded_header(LOSSLESS) | {"__metadata__": 7},
    ],
)
def test_nothing_else_is_taken_for_an_encoded_tensor(tmp_path: Path, header: object) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_header(write(tmp_path / "a.safetensors", header, 9))


def test_what_a_store_would_only_put_together() -> None:
    def tensor(codec: Codec, shape: tuple[int, ...] = (4,)) -> TensorEntry:
        return TensorEntry((Extent(Path("file"), 0, 16),), torch.float32, shape, codec)

    whole, coded = tensor(PLAIN), tensor(Lossless(1, 0))
    pieces = Joined((tensor(PLAIN), tensor(PLAIN)), torch.float32, (2, 4))
    encoded = Joined((tensor(PLAIN), coded), torch.float32, (2, 4))
    assert in_plain_pieces([whole, pieces])
    assert not any(map(in_plain_pieces, ([], [whole], [pieces, coded], [whole, encoded])))
