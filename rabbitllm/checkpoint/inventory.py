"""The layer stores that lie on disk: what each is of, whether it is whole, and whom it serves.

Listing and removing them waits for neither torch nor transformers, which take seconds to import.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from rabbitllm.checkpoint.durable import TEMPORARY
from rabbitllm.checkpoint.moved import DESCRIPTION, MOVED, USED_BY, points_to, read_pointer, users
from rabbitllm.checkpoint.naming import LOCK, store_name
from rabbitllm.checkpoint.plain_json import MALFORMED, read_json
from rabbitllm.errors import CheckpointError

if TYPE_CHECKING:
    from rabbitllm.checkpoint.tensors import TensorEntry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreInfo:
    """One layer store.

    Attributes:
        folder: where it lies; its name is the store's.
        source: the checkpoint's folder; None if the store does not say.
        dtypes: of what it holds, as in "bfloat16".
        codecs: what stores its weights, besides the plain ones.
        nbytes: that it takes on disk.
        complete: it holds everything; otherwise the next load or split goes on with it.
        held: the files of weights that it holds or will hold; none if it does not say.
        filled_from: the folder of the files that it was made of; None if it does not say.
        ours: it lies under the name that its own description gives it, so this program made it.
        users: the checkpoints whose own shards were deleted in its favour.
    """

    folder: Path
    source: Path | None
    dtypes: tuple[str, ...]
    codecs: tuple[str, ...]
    nbytes: int
    complete: bool
    held: tuple[Path, ...]
    filled_from: Path | None
    ours: bool
    users: tuple[Path, ...]

    @property
    def only_copy(self) -> bool:
        """Whether a checkpoint has no other weights."""
        return bool(self.users)

    def entries(self) -> "dict[str, TensorEntry]":
        """Where each of its tensors lies.

        Raises:
            CheckpointError: a file is no safetensors file, or truncated.
        """
        from rabbitllm.checkpoint.tensors import read_header

        return {key: entry for file in self.held for key, entry in read_header(file).items()}


def find_stores(root: Path) -> list[StoreInfo]:
    """The stores below `root`, by name; empty when the folder is not there."""
    return [describe(path.parent) for path in sorted(root.glob(f"*/{DESCRIPTION}"))]


def describe(folder: Path) -> StoreInfo:
    """What the store in `folder` says about itself, and what is really there."""
    fields: dict[str, Any] = {}
    with suppress(OSError, *MALFORMED):  # cut off
        fields = dict(read_json(folder / DESCRIPTION))
    source, filled_from = (
        Path(fields[key]) if isinstance(fields.get(key), str) else None
        for key in ("checkpoint", "source")
    )
    try:
        dtypes = tuple(str(name).removeprefix("torch.") for name in fields["dtypes"])
        codecs = _codecs(fields)
        held = tuple(_file(folder, stem) for stem in fields["holds"])
        identity = {key: fields[key] for key in fields.keys() - {"checkpoint", "holds"}}
        ours = not folder.is_symlink() and folder.name == store_name(identity)
    except MALFORMED:  # of another version: worth no more than an incomplete one
        dtypes, codecs, held, ours = (), (), (), False
    serves = users(folder)
    # A store of before there were records: its maker's pointer is one.
    if source and not serves and source.is_dir() and points_to(source, folder):
        serves = (source,)
    files = [path for path in folder.iterdir() if path.is_file()]
    return StoreInfo(
        folder=folder,
        source=source,
        dtypes=dtypes,
        codecs=codecs,
        nbytes=sum(path.stat().st_size for path in files),
        complete=bool(held) and all(path.is_file() for path in held),
        held=held,
        filled_from=filled_from,
        ours=ours,
        users=serves,
    )


def find_moved(folder: Path) -> StoreInfo | None:
    """The store that a checkpoint's pointer leads to; None if it has no pointer.

    Where that store has given way to another with the same weights, beside it, it is the other.

    Raises:
        CheckpointError: the pointer leads to no whole store.
    """
    place = read_pointer(folder)
    if place is None:
        return None
    again = f"Bring it back, or download the checkpoint again and delete {folder / MOVED}."
    try:
        if not (place / DESCRIPTION).is_file() and (follower := _follower(place)):
            place = follower
        if not place.is_dir():
            raise CheckpointError(
                f"The weights of {folder} were moved to {place}, which is gone. {again}"
            )
        store = describe(place)
    except OSError as error:
        raise CheckpointError(
            f"The weights of {folder} were moved to {place}, which cannot be read: {error}. {again}"
        ) from error
    if not store.held:
        raise CheckpointError(
            f"{folder / MOVED} names {place}, which is no layer store. Delete it if the "
            "checkpoint's own shards are there; otherwise download the checkpoint again."
        )
    if not store.complete:
        lost = next(file for file in store.held if not file.is_file())
        raise CheckpointError(
            f"The weights of {folder} were moved to {place}, where {lost.name} is missing. {again}"
        )
    return store


def damaged(store: StoreInfo) -> list[Path]:
    """The files of a store that no longer hold what was written to them; reads every byte."""
    from rabbitllm.checkpoint.store_file import is_sound

    held = [file for file in store.held if file.is_file()]
    found = held or sorted(store.folder.glob("*.safetensors"))  # if it does not say what it holds
    return [file for file in found if not is_sound(file)]


def check_removable(store: StoreInfo) -> None:
    """Raises ValueError if a store holds weights that a checkpoint may have nowhere else."""
    if store.users:
        names = ", ".join(map(str, store.users))
        gone = "" if all(user.exists() for user in store.users) else " (or is gone, or moved)"
        raise ValueError(
            f"{store.folder.name} holds the only weights of {names}, whose own were "
            f"deleted{gone}. --force removes it all the same."
        )


def remove(store: StoreInfo, force: bool = False) -> None:
    """Deletes a store: the files that are its own, and its folder if nothing else is in there.

    Args:
        store: what to delete.
        force: even if it holds the only weights of a checkpoint.

    Raises:
        ValueError: it does, or it is being filled at the moment.
    """
    try:
        with FileLock(store.folder / LOCK).acquire(timeout=0):
            if not force:
                check_removable(describe(store.folder))
            remove_files(store)
    except Timeout as error:
        raise ValueError(f"{store.folder} is being filled by another process.") from error


def remove_files(store: StoreInfo) -> None:
    """Deletes a store whose lock is held."""
    folder = store.folder
    weights = store.held or tuple(folder.glob("*.safetensors"))
    patterns = (f"{TEMPORARY}*", f"{USED_BY}*", DESCRIPTION, LOCK)
    for file in [*weights, *(path for pattern in patterns for path in folder.glob(pattern))]:
        file.unlink(missing_ok=True)
    if others := sorted(path.name for path in folder.iterdir()):
        logger.warning("%s stays, for it holds what is no store's: %s", folder, others[0])
    else:
        folder.rmdir()


def _codecs(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The codecs that a description names; raises one of `MALFORMED` if it names none."""
    if "packed" in fields:  # up to format 3
        return ("lossless",) * bool(fields["packed"])
    return tuple(map(str, fields["codecs"]))


def _file(folder: Path, stem: str) -> Path:
    """The file of a stem; raises one of `MALFORMED` if that is not one of the folder's."""
    name = stem + ".safetensors"
    if Path(name).name != name:
        raise ValueError(f"{stem!r} is no name of a file")
    return folder / name


def _follower(place: Path) -> Path | None:
    """The store beside `place` that was made of the one there, and took over its checkpoint."""
    stores = find_stores(place.parent)
    return next((s.folder for s in stores if s.filled_from == place and s.users), None)
