"""Weights that torch.save wrote: found where they lie, and nothing of a pickle runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint.codecs.strided import Strided
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.pickles import read_pickle
from rabbitllm.checkpoint.reader import Reader

TENSORS = {
    "float": torch.arange(600.0).reshape(20, 30),
    "half": torch.arange(64.0).half(),
    "brain": torch.arange(64.0).bfloat16().reshape(8, 8),
    "transposed": torch.arange(600.0).reshape(20, 30).T,
    "sliced": torch.arange(600.0).reshape(20, 30)[3:9],
    "stepped": torch.arange(600.0).reshape(20, 30)[::3, 1::2],
    "repeated": torch.arange(5.0).expand(4, 5),
    "scalar": torch.tensor(7.0),
    "empty": torch.empty(0, 3),
    "integers": torch.arange(9),
    "parameter": torch.nn.Parameter(torch.ones(3, 3)),
}


def written(file: Path, value: object, **options: Any) -> Path:
    torch.save(value, file, **options)
    return file


def test_every_tensor_is_read_as_torch_loads_it(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = TENSORS | {"shared": shared, "again": shared, "part": shared[4:8].view(2, 2)}
    entries = read_pickle(written(tmp_path / "a.bin", tensors | {"epoch": 3}))
    assert list(entries) == list(tensors)
    reader = Reader(entries)
    for name, tensor in tensors.items():
        found = reader.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor.detach())
        assert entries[name].codec.in_place == tensor.is_contiguous()
    assert entries["shared"] == entries["again"]


def test_what_is_saved_with_a_pointer_to_no_tensor_is_no_confusion(tmp_path: Path) -> None:
    nested = {"w": torch.ones(64), "optimizer": {"w": torch.zeros(64)}}
    entries = read_pickle(written(tmp_path / "a.bin", nested))
    assert torch.equal(Reader(entries).read("w"), torch.ones(64))


class Code:
    """What a pickle can hold: a call, here of one that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


def _among_tensors(file: Path, code: Code) -> None:
    torch.save({"w": torch.ones(2), "x": code}, file)


def _alone(file: Path, code: Code) -> None:
    file.write_bytes(pickle.dumps(code, 2))


def _in_an_archive(file: Path, code: Code) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": code}, 2))
        archive.writestr("archive/version", "3\n")


def _of_before_archives(file: Path, code: Code) -> None:
    torch.save({"w": torch.ones(2), "x": code}, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [_among_tensors, _alone, _in_an_archive, _of_before_archives])
def test_a_pickle_with_code_is_refused_before_any_of_it_runs(
    tmp_path: Path, write: Callable[[Path, Code], None]
) -> None:
    file, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    write(file, Code(trace))
    with pytest.raises(CheckpointError, match=str(file)):
        read_index(tmp_path)
    assert not trace.exists()


def test_the_refusal_of_code_says_that_it_did_not_run(tmp_path: Path) -> None:
    _among_tensors(tmp_path / "a.bin", Code(tmp_path / "trace"))
    with pytest.raises(CheckpointError, match=r"a pickle of more than weights: .* was not run"):
        read_pickle(tmp_path / "a.bin")


def test_the_environment_does_not_make_torch_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    _among_tensors(tmp_path / "a.bin", Code(tmp_path / "trace"))
    with pytest.raises(CheckpointError, match="was not run"):
        read_pickle(tmp_path / "a.bin")
    assert not (tmp_path / "trace").exists()


def test_a_torch_that_runs_pickles_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ValueError

    monkeypatch.setattr("rabbitllm.checkpoint.pickles.check_torch_load_is_safe", refuse)
    with pytest.raises(CheckpointError, match=r"cannot keep one from running code: from 2\.6 on"):
        read_pickle(written(tmp_path / "a.bin", {"w": torch.ones(2)}))


def test_an_older_format_says_how_to_write_the_newer(tmp_path: Path) -> None:
    file = written(tmp_path / "a.bin", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before torch 1\.6.*torch\.save\(torch\.load"):
        read_pickle(file)


def _repacked(file: Path, change: Callable[[str, bytes], bytes], compression: int) -> Path:
    data = file.read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as before,
        zipfile.ZipFile(file, "w", compression) as after,
    ):
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return file


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (lambda name, data: data, zipfile.ZIP_DEFLATED, "is compressed"),
        (
            lambda name, data: b"big" if name.endswith("byteorder") else data,
            zipfile.ZIP_STORED,
            "big-endian",
        ),
        (
            lambda name, data: data[:-8] if "/data/" in name else data,
            zipfile.ZIP_STORED,
            "damaged",
        ),
    ],
    ids=["compressed", "big-endian", "short"],
)
def test_an_archive_that_torch_does_not_write_is_refused(
    tmp_path: Path, change: Callable[[str, bytes], bytes], compression: int, message: str
) -> None:
    file = written(tmp_path / "a.bin", {"w": torch.arange(1000.0)})
    with pytest.raises(CheckpointError, match=message):
        read_pickle(_repacked(file, change, compression))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_says_so(tmp_path: Path, share: float) -> None:
    file = written(tmp_path / "a.bin", {"w": torch.arange(1000.0)})
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"a\.bin is truncated or damaged"):
        read_pickle(file)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, 3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, device="meta"),
    ],
    ids=["sparse", "quantised", "meta"],
)
def test_tensors_of_other_kinds_are_named(tmp_path: Path, value: torch.Tensor) -> None:
    file = written(tmp_path / "a.bin", {"w": torch.ones(4), "odd": value})
    with pytest.raises(CheckpointError, match=r"a\.bin"):
        read_pickle(file)


def test_a_file_without_names_is_none_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a list, not tensors by name"):
        read_pickle(written(tmp_path / "a.bin", [torch.ones(2)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_weights_decode(dtype: torch.dtype) -> None:
    whole = torch.arange(120.0).to(dtype).reshape(4, 5, 6)
    view = whole.permute(2, 0, 1)[1:]
    codec = Strided.of(view)
    begin = view.storage_offset() * view.element_size()
    memory = whole.view(torch.uint8).reshape(-1).numpy()[begin : begin + codec.span]
    target = np.empty(view.numel() * view.element_size(), np.uint8)
    codec.decode([memory], target, np.empty(0, np.uint8))
    assert torch.equal(torch.from_numpy(target).view(dtype).view(view.shape), view)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_checkpoint_of_pickles_streams_as_stock_runs_it(
    copied: Callable[..., Path],
    stock: Callable[..., Any],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    parts: int,
) -> None:
    folder = copied()
    weights = dict(stock(folder).state_dict())
    weights["model.layers.1.mlp.up_proj.weight"] = (
        weights["model.layers.1.mlp.up_proj.weight"].T.contiguous().T
    )
    (folder / "model.safetensors").unlink()
    in_shards(folder, weights, parts)
    with torch.no_grad():
        expected, found = stock(folder)(prompt).logits, streamed(folder)(prompt).logits
    assert torch.equal(found, expected)


def in_shards(folder: Path, weights: dict[str, torch.Tensor], parts: int) -> None:
    """Writes pytorch_model.bin, or so many shards of it and their index."""
    import json

    if parts == 1:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    names = [f"pytorch_model-{n + 1:05d}-of-{parts:05d}.bin" for n in range(parts)]
    for n, name in enumerate(names):
        torch.save({key: weights[key] for key in list(weights)[n::parts]}, folder / name)
    weight_map = {key: names[n % parts] for n, key in enumerate(weights)}
    fields = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(fields))
