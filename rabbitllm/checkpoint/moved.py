"""Which layer store stands in for a checkpoint's own shards, and which checkpoints a store serves.

A checkpoint's folder holds a pointer to the store. Anybody can copy such a folder, or bring one
along, so a pointer only says where to read. What may be deleted is decided by what the store
itself holds: a record for each checkpoint that has ever read its weights from there.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from rabbitllm.checkpoint.durable import forget, write_durably
from rabbitllm.checkpoint.plain_json import MALFORMED, read_json
from rabbitllm.errors import CheckpointError

MOVED = "rabbitllm-moved.json"
"""In a checkpoint's folder: where its weights lie since its own shards were deleted."""
DESCRIPTION = "store.json"
"""What a store says about itself."""
USED_BY = ".used-by-"
"""Begins the name of a record in a store."""


@dataclass(frozen=True)
class Shard:
    """An original of which a store was shown to hold everything.

    Attributes:
        name: in the checkpoint's folder.
        nbytes: its size then.
        mtime_ns: when it had been written.
    """

    name: str
    nbytes: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path) -> "Shard":
        """What a file is at present."""
        return cls(file.name, file.stat().st_size, file.stat().st_mtime_ns)

    def is_in(self, folder: Path) -> bool:
        """Whether the folder still holds it as it was."""
        return (folder / self.name).is_file() and Shard.of(folder / self.name) == self


def read_pointer(folder: Path) -> Path | None:
    """The folder that a checkpoint's pointer names; None if it has no pointer.

    Raises:
        CheckpointError: there is one, and it names no place.
    """
    pointer = folder / MOVED
    if not pointer.is_file():
        return None
    try:
        store = Path(read_json(pointer)["store"])
        if not store.is_absolute():
            raise ValueError(f"{str(store)!r} is no absolute path")
        return store.resolve()
    except (OSError, RuntimeError, *MALFORMED) as error:
        raise CheckpointError(
            f"{pointer} does not say where the weights are: {error!r}. Delete it if the "
            "checkpoint's own shards are there; otherwise download the checkpoint again."
        ) from error


def write_pointer(folder: Path, store: Path) -> None:
    """Leaves word in a checkpoint's folder that its weights lie in a store; on disk on return.

    Raises:
        OSError: it cannot be written, or is not there when it is read again.
    """
    write_durably(folder / MOVED, json.dumps({"store": str(store.resolve())}))
    forget(folder / MOVED)
    if read_pointer(folder) != store.resolve():
        raise OSError(f"{folder / MOVED} does not read as it was written. Check the disk.")


def register(store: Path, checkpoint: Path, replaced: list[Shard] | None = None) -> None:
    """Records in a store that a checkpoint reads its weights there; on disk on return.

    Args:
        store: the store's folder.
        checkpoint: the checkpoint's folder.
        replaced: its shards that are about to be deleted; None leaves a record as it is.

    Raises:
        OSError: nothing can be written there.
    """
    record = _record(store, checkpoint)
    if replaced is not None or not record.is_file():
        shards = [[shard.name, shard.nbytes, shard.mtime_ns] for shard in replaced or ()]
        fields = {"checkpoint": str(checkpoint.resolve()), "replaced": shards}
        write_durably(record, json.dumps(fields))


def replaced_shards(store: Path, checkpoint: Path) -> list[Shard]:
    """What `register` recorded of a checkpoint's shards; none if it recorded nothing."""
    try:
        recorded = [Shard(*fields) for fields in read_json(_record(store, checkpoint))["replaced"]]
    except (OSError, *MALFORMED):
        return []
    return [shard for shard in recorded if Path(shard.name).name == shard.name]


def users(store: Path) -> tuple[Path, ...]:
    """The checkpoints whose weights lie in a store, as far as it knows.

    A checkpoint is one of them until its folder is seen to have a pointer to another store, or
    none and the very shards that were to be deleted. A folder that is not there may have been
    moved, or lie on a disk that is not mounted; one that is there with other shards may be new, and
    the old one lie elsewhere. A record that cannot be read stands for a checkpoint as well.
    """
    found = (_user(store, record) for record in sorted(store.glob(f"{USED_BY}*")))
    return tuple(user for user in found if user)


def _user(store: Path, record: Path) -> Path | None:
    """Whom a record stands for, itself if that cannot be read; None if the store is not needed."""
    try:
        checkpoint = Path(read_json(record)["checkpoint"])
        needed = not checkpoint.is_dir() or points_to(checkpoint, store)
        return checkpoint if needed or _bare(store, checkpoint) else None
    except (OSError, *MALFORMED):
        return record


def points_to(checkpoint: Path, store: Path) -> bool:
    """Whether a checkpoint's pointer may lead to a store.

    It does not if it names another store. If it cannot be read, or what it names is gone, it may:
    a store can have followed the one that is named.
    """
    try:
        place = read_pointer(checkpoint)
    except CheckpointError:
        return True
    return place is not None and (place == store.resolve() or not (place / DESCRIPTION).is_file())


def _bare(store: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint has no pointer, and not the shards that it had."""
    if read_pointer(checkpoint):
        return False
    shards = replaced_shards(store, checkpoint)
    return any(not shard.is_in(checkpoint) for shard in shards)


def _record(store: Path, checkpoint: Path) -> Path:
    digest = hashlib.sha256(str(checkpoint.resolve()).encode("utf-8", "surrogateescape"))
    return store / f"{USED_BY}{digest.hexdigest()[:16]}"
