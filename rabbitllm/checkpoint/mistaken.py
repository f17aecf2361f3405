"""What people give in place of a checkpoint's folder: what it is, and what to do.

Nothing here waits for torch: the command asks before it loads anything.
"""

from pathlib import Path
from typing import Any, NamedTuple

from rabbitllm.checkpoint.moved import DESCRIPTION
from rabbitllm.checkpoint.plain_json import MALFORMED, read_settings
from rabbitllm.errors import CheckpointError

FOLDER = "Give the folder that it lies in, beside config.json, or a hub repository."
ORIGINAL = (
    "Give the repository or folder that it was made from, whose weights are safetensors or .bin."
)
UNPACK = "Unpack it, and give the folder with config.json."


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        name: with its article.
        remedy: what to do.
    """

    name: str
    remedy: str


GGUF = Kind(
    "a GGUF file, weights as llama.cpp stores them",
    f"{ORIGINAL} Its name is most often the same without -GGUF.",
)
ARCHIVE = Kind("an archive", UNPACK)
PICKLE = Kind("a file of pickled weights", FOLDER)
SUFFIXES = {
    ".gguf": GGUF,
    ".ggml": Kind("a GGML file, weights as llama.cpp stored them", GGUF.remedy),
    ".onnx": Kind("an ONNX graph", ORIGINAL),
    ".safetensors": Kind("one file of weights", FOLDER),
    ".json": Kind("a file of settings", FOLDER),
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), PICKLE),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), ARCHIVE),
}
"""How a file's name ends -> what it is."""
BEGINNINGS = {
    b"GGUF": GGUF,
    b"PK\x03\x04": ARCHIVE,
    b"\x1f\x8b": ARCHIVE,
    b"version https://git-lfs": Kind(
        "a pointer of Git LFS, without what it stands for",
        "Run `git lfs pull` beside it, and give the folder.",
    ),
}
"""How a file begins whose name does not say -> what it is."""
UNKNOWN = Kind("a file", FOLDER)

ADAPTER = "adapter_config.json"
"""The file that says that a folder is of an adapter, and of what model."""


def refuse_mistaken(path: Path) -> None:
    """Says what a path is that cannot be a checkpoint's folder, and what to do.

    Raises:
        CheckpointError: it is a file, or a folder of something else.
    """
    if path.is_file():
        kind = _kind(path)
        raise CheckpointError(f"{path} is {kind.name}. {kind.remedy}")
    if path.is_dir() and not (path / "config.json").is_file() and (said := _folder(path)):
        raise CheckpointError(f"{path} {said}")


def said_of_gguf(path: Path) -> str | None:
    """What to say of a folder that has GGUF files, or of a repository of them; None if it is none.

    Of a repository nothing but the settings is there: its name tells.
    """
    if files := sorted(path.glob("*.gguf")):
        return f"holds {files[0].name}, {GGUF.name}. {GGUF.remedy}"
    if any(part.lower().endswith("-gguf") for part in path.parts):
        return f"is, by its name, a repository of GGUF files. {GGUF.remedy}"
    return None


def _kind(file: Path) -> Kind:
    if kind := SUFFIXES.get(file.suffix.lower()):
        return kind
    with file.open("rb") as stream:
        start = stream.read(32)
    return next((kind for begins, kind in BEGINNINGS.items() if start.startswith(begins)), UNKNOWN)


def _folder(path: Path) -> str | None:
    """What a folder without config.json holds; None if that does not show."""
    if (path / ADAPTER).is_file():
        base = _field(path / ADAPTER, "base_model_name_or_path") or "its base model"
        return (
            f"is an adapter (LoRA) for {base}, not a model. With peft (pip install peft) one "
            "loads with its model: by AutoModel.from_pretrained, and by rabbitllm run, chat "
            "and serve. Otherwise load that model, then the adapter by "
            f"peft.PeftModel.from_pretrained(model, {str(path)!r})."
        )
    if (path / "model_index.json").is_file():
        return "is a pipeline of diffusers. Language models are what runs here."
    if (path / DESCRIPTION).is_file():
        source = _field(path / DESCRIPTION, "checkpoint") or "the checkpoint that it was made of"
        return f"is a layer store. Give {source}: the store is found by itself."
    if snapshots := sorted((path / "snapshots").glob("*/config.json")):
        return f"is a folder of the hub's cache. Give the repository, or {snapshots[-1].parent}."
    return said_of_gguf(path)


def _field(file: Path, name: str) -> Any:
    """A field of a JSON file; None if it has none, or is none."""
    try:
        return dict(read_settings(file)).get(name)
    except (OSError, *MALFORMED):
        return None
