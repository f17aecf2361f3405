"""The layer stores that lie on disk: what each is of, and whether it is whole."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from rabbitllm.checkpoint.source import MALFORMED, MOVED
from rabbitllm.checkpoint.store import CHECKSUM, DESCRIPTION, LOCK, checksum


@dataclass(frozen=True)
class StoreInfo:
    """One layer store.

    Attributes:
        folder: where it lies; its name is the store's.
        source: the checkpoint's folder; None if the store does not say.
        dtypes: of what it holds, as in "bfloat16".
        packed: the weights that can be are packed.
        nbytes: that it takes on disk.
        complete: it holds everything; otherwise the next load or split goes on with it.
        only_copy: the checkpoint's own shards were deleted in its favour.
    """

    folder: Path
    source: Path | None
    dtypes: tuple[str, ...]
    packed: bool
    nbytes: int
    complete: bool
    only_copy: bool


def find_stores(root: Path) -> list[StoreInfo]:
    """The stores below `root`, by name; empty when the folder is not there."""
    return [describe(path.parent) for path in sorted(root.glob(f"*/{DESCRIPTION}"))]


def describe(folder: Path) -> StoreInfo:
    """What the store in `folder` says about itself, and what is really there."""
    fields: dict[str, Any] = {}
    with suppress(*MALFORMED):  # cut off
        fields = dict(json.loads((folder / DESCRIPTION).read_text()))
    # By itself, so that nothing else that is odd there makes an only copy look like one of two.
    source = Path(fields["checkpoint"]) if isinstance(fields.get("checkpoint"), str) else None
    try:
        dtypes = tuple(str(name).removeprefix("torch.") for name in fields["dtypes"])
        packed = bool(fields["packed"])
        held = [folder / f"{stem}.safetensors" for stem in fields["holds"]]
    except MALFORMED:  # of another version: worth no more than an incomplete one
        dtypes, packed, held = (), False, []
    files = [path for path in folder.iterdir() if path.is_file()]
    return StoreInfo(
        folder=folder,
        source=source,
        dtypes=dtypes,
        packed=packed,
        nbytes=sum(path.stat().st_size for path in files),
        complete=bool(held) and all(path.is_file() for path in held),
        only_copy=source is not None and _stands_in_for(folder, source),
    )


def damaged(store: StoreInfo) -> list[Path]:
    """The files of a store that no longer hold what was written to them; reads every byte."""
    return [file for file in sorted(store.folder.glob("*.safetensors")) if not _sound(file)]


def remove(store: StoreInfo) -> None:
    """Deletes a store.

    Raises:
        ValueError: it is being filled at the moment.
    """
    lock = FileLock(store.folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(store.folder)
    except Timeout as error:
        raise ValueError(f"{store.folder} is being filled by another process.") from error


def _sound(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as held:
            tensors = ((name, held.get_tensor(name)) for name in sorted(held.keys()))
            return bool((held.metadata() or {}).get(CHECKSUM) == checksum(tensors))
    except SafetensorError:  # its header is damaged
        return False


def _stands_in_for(folder: Path, source: Path) -> bool:
    """Whether the checkpoint in `source` was told to read its weights from `folder`."""
    try:
        return bool(json.loads((source / MOVED).read_text())["store"] == str(folder.resolve()))
    except (OSError, *MALFORMED):
        return False
