"""Which files hold a checkpoint's weights, by the rules of stock's `from_pretrained`; their index.

Stock's own function fetches what it chooses, and reads whatever an index holds; here a choice can
be made of a repository's names alone, and what comes from strangers is read within bounds.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from pathlib import Path, PurePosixPath, PureWindowsPath

from transformers.modeling_utils import _add_variant

from rabbitllm.checkpoint.mistaken import said_of_gguf
from rabbitllm.checkpoint.pickles import read_pickle
from rabbitllm.checkpoint.plain_json import MALFORMED, parse, read_bytes, read_settings
from rabbitllm.checkpoint.tensors import MAX_HEADER_BYTES, TensorEntry, read_header
from rabbitllm.errors import CheckpointError, summary

MOST_TENSORS = 250_000
"""In a checkpoint. Those of the largest, each expert apart and quantised, are near to it."""
OTHERS = ("*.bin", "*.pt", "*.pth", "*.safetensors")
"""Of weights under names that stock does not look for."""


@dataclass(frozen=True)
class Format:
    """What weight files are called.

    Attributes:
        single: the one file of a checkpoint that is in no shards.
        suffix: what shards end in.
        read: finds a file's tensors without reading their data.
    """

    single: str
    suffix: str
    read: Callable[[Path], dict[str, TensorEntry]]

    @property
    def index(self) -> str:
        """The file that names the shards."""
        return f"{self.single}.index.json"


SAFETENSORS = Format("model.safetensors", ".safetensors", read_header)
PICKLES = Format("pytorch_model.bin", ".bin", read_pickle)
FORMATS = (SAFETENSORS, PICKLES)


@dataclass(frozen=True)
class Asked:
    """Arguments of stock's `from_pretrained` that choose among weight files.

    Attributes:
        variant: stands in the files' names, such as "fp16".
        use_safetensors: True takes no .bin files, False nothing else.
    """

    variant: str | None = None
    use_safetensors: bool | None = None

    def names(self, folder: Path) -> list[str]:
        """The files to look for, in this order; the first that is there holds or names the weights.

        Args:
            folder: with config.json, which may name the one to take.

        Raises:
            CheckpointError: what config.json names is no safetensors file in the folder.
        """
        if named := _named(folder):
            return [named]
        formats = [form for form in FORMATS if self.use_safetensors in (None, form is SAFETENSORS)]
        return [
            _add_variant(name, self.variant)
            for form in formats
            for name in (form.single, form.index)
        ]


ANY = Asked()
"""Whatever files there are, without a variant."""


def tensors_in(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one weight file, without reading their data.

    Raises:
        CheckpointError: it is malformed, or no weight file.
    """
    return _format(file.name).read(file)


def is_index(name: str) -> bool:
    """Whether a weight file of that name only names others."""
    return name.endswith(".json")


def shard_names(folder: Path, name: str) -> list[str]:
    """The shards that an index names, whether they are there or not.

    Raises:
        CheckpointError: the index is malformed, or names files elsewhere.
    """
    return sorted(set(_weight_map(folder, name).values()))


def total_size(folder: Path, name: str) -> int | None:
    """Bytes of a checkpoint's weights, if its index says that."""
    try:
        text = read_bytes(folder / name, MAX_HEADER_BYTES)
        return index(parse(text, MOST_TENSORS)["metadata"]["total_size"])
    except MALFORMED:
        return None


def read_index(folder: Path, asked: Asked = ANY) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in `folder`, by its key, from the headers alone.

    In the order in which stock looks for the first floating point one: by files, and in a
    safetensors file by names.

    Raises:
        CheckpointError: no weights, a missing or truncated shard, a malformed header.
    """
    names = asked.names(folder)
    chosen = next((name for name in names if (folder / name).is_file()), None)
    if chosen is None:
        raise CheckpointError(_no_weights(folder, names))
    if not is_index(chosen):
        return _sorted(folder / chosen)
    weight_map = _weight_map(folder, chosen)
    tensors: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        if not _is_there(folder, shard):
            missing = sum(1 for s in weight_map.values() if s == shard)
            raise CheckpointError(
                f"Shard {shard} ({missing} tensors) is missing from {folder}. Download the "
                "checkpoint again."
            )
        tensors |= _sorted(folder / shard)
        if len(tensors) > MOST_TENSORS:
            raise CheckpointError(
                f"{folder} has more than {MOST_TENSORS:,} tensors: no model is stored like that."
            )
    return tensors


def orphans(folder: Path) -> Iterator[Path]:
    """The indices in a folder that name no file that is there."""
    for path in sorted(folder.glob("*.index*.json")):
        with suppress(CheckpointError):
            if not any(_is_there(folder, shard) for shard in shard_names(folder, path.name)):
                yield path


def _sorted(file: Path) -> dict[str, TensorEntry]:
    form = _format(file.name)
    tensors = form.read(file)
    return dict(sorted(tensors.items())) if form is SAFETENSORS else tensors


def _format(name: str) -> Format:
    """The format of a weight file, or of those that an index names."""
    return PICKLES if name.partition(".index")[0].endswith(PICKLES.suffix) else SAFETENSORS


def _is_there(folder: Path, name: str) -> bool:
    # Names are compared, not tried: an index may hold some that no file system takes.
    for part in PurePosixPath(name).parts:
        if not folder.is_dir() or part not in {path.name for path in folder.iterdir()}:
            return False
        folder /= part
    return folder.is_file()


def _leads_out(name: str) -> bool:
    """Whether a name is of no file in the folder that it stands in."""
    return any(
        not path.parts or path.is_absolute() or path.anchor or ".." in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _named(folder: Path) -> str | None:
    """The file that config.json names as that of the weights."""
    path = folder / "config.json"
    try:
        name = dict(read_settings(path)).get("transformers_weights")
    except (OSError, *MALFORMED):
        return None  # what reads the config says what is wrong with it
    if name is None:
        return None
    known = isinstance(name, str) and name.endswith(
        (SAFETENSORS.suffix, SAFETENSORS.suffix + ".index.json")
    )
    if not known or _leads_out(name):
        raise CheckpointError(
            f"{path} names {name!r} as transformers_weights, which is no safetensors file of that "
            "folder, and no index of some."
        )
    return str(name)


def _weight_map(folder: Path, name: str) -> dict[str, str]:
    """Tensor key -> shard name; a name may not lead out of the folder."""
    path = folder / name
    try:
        text = read_bytes(path, MAX_HEADER_BYTES)
        weight_map = dict(parse(text, MOST_TENSORS)["weight_map"])
    except MALFORMED as error:
        raise CheckpointError(f"{path} is no index of shards: {summary(error)}.") from error
    suffix = _format(name).suffix
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard.endswith(suffix) or _leads_out(shard):
            raise CheckpointError(
                f"{path} names {shard!r}, which is no {suffix[1:]} file of that folder."
            )
    return weight_map


def _no_weights(folder: Path, names: list[str]) -> str:
    found = [path.name for pattern in OTHERS for path in sorted(folder.glob(pattern))]
    if not found and (said := said_of_gguf(folder)):
        return f"{folder} {said}"
    if not found:
        there = "Weights in another format must be converted: model.save_pretrained(...) with "
        return f"{folder} holds none of {', '.join(names)}. {there}transformers."
    return (
        f"{folder} holds none of {', '.join(names)}, but {found[0]}. variant= names that of the "
        "files, as fp16 in model.fp16.safetensors; use_safetensors= chooses the format."
    )
