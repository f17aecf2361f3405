from __future__ import annotations

import json
from pathlib import Path

import pytest

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.hub import local_folder
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.mistaken import refuse_mistaken


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.gguf", b"", "is a GGUF file, .* Give the repository or folder that it was made from"),
        ("M.Q4_K_M.GGUF", b"", "is a GGUF file"),
        ("sha256-6a0746a1ec1a", b"GGUF\3\0\0\0", "is a GGUF file"),
        ("pytorch_model.bin", b"PK\3\4", "is a file of pickled weights"),
        ("consolidated.00.pth", b"", "is a file of pickled weights"),
        ("model.safetensors", b"", "is one file of weights. Give the folder that it lies in"),
        ("config.json", b"{}", "is a file of settings. Give the folder"),
        ("model.zip", b"PK\3\4", "is an archive. Unpack it"),
        ("model.tar.gz", b"\x1f\x8b", "is an archive. Unpack it"),
        ("model", b"PK\3\4", "is an archive"),
        ("weights", b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        ("notes.txt", b"Hi", "is a file. Give the folder"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} {said}"):
        local_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "adapter_config.json",
            json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-7B"}),
            r"is an adapter \(LoRA\) for Qwen/Qwen2.5-7B, not a model",
        ),
        ("adapter_config.json", "broken", r"is an adapter \(LoRA\) for its base model"),
        ("model_index.json", "{}", "is a pipeline of diffusers"),
        ("store.json", '{"checkpoint": "/models/a"}', "is a layer store. Give /models/a:"),
        ("snapshots/3f2a/config.json", "{}", "is a folder of the hub's cache. .*snapshots/3f2a"),
        ("model.Q8_0.gguf", "GGUF", "holds model.Q8_0.gguf, a GGUF file"),
    ],
)
def test_a_folder_of_something_else_is_called_what_it_is(
    tmp_path: Path, file: str, content: str, said: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=said):
        refuse_mistaken(tmp_path)


@pytest.mark.parametrize("settings", [True, False])
def test_a_repository_of_gguf_files_is_called_so(tmp_path: Path, settings: bool) -> None:
    """Nothing but settings is fetched of it: its name tells."""
    snapshot = tmp_path / "models--some--Llama-3-8B-GGUF" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    said = "is, by its name, a repository of GGUF files.* without -GGUF"
    if not settings:
        with pytest.raises(CheckpointError, match=said):
            refuse_mistaken(snapshot)
        return
    (snapshot / "config.json").write_text("{}")
    refuse_mistaken(snapshot)
    with pytest.raises(CheckpointError, match=said):
        read_index(snapshot)
    (snapshot / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds m\.gguf, a GGUF file"):
        read_index(snapshot)


def test_a_checkpoint_may_hold_other_formats_as_well(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "model.gguf"):
        (tmp_path / name).write_text("{}")
    assert local_folder(tmp_path) == tmp_path
