"""Deleting what a layer store stands in for, once that is shown to hold all of it.

What is needed stays whole at every moment: the store and its record of the checkpoint are on disk
before the pointer to it is, and the pointer before the first file goes.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from rabbitllm.checkpoint.durable import forget, sync_folder
from rabbitllm.checkpoint.index import orphans
from rabbitllm.checkpoint.inventory import StoreInfo, damaged, describe, remove_files
from rabbitllm.checkpoint.moved import (
    Shard,
    read_pointer,
    register,
    replaced_shards,
    write_pointer,
)
from rabbitllm.checkpoint.naming import LOCK
from rabbitllm.errors import CheckpointError

logger = logging.getLogger(__name__)


def replace_originals(
    folder: Path,
    files: Iterable[Path],
    store: Path,
    earlier: StoreInfo | None,
    check: Callable[[], None],
) -> None:
    """Deletes a checkpoint's shards in favour of a store, and leaves word of its place.

    Where a shard is a link, what it links to goes only if it is a blob of the hub's own cache that
    no revision needs.

    Args:
        folder: the checkpoint's.
        files: the shards, or the files of `earlier`.
        store: the folder of a complete store.
        earlier: the store that has stood in for the shards so far, if one has. It goes as well,
            unless something speaks for keeping it.
        check: raises CheckpointError unless the store holds whatever the files hold.

    Raises:
        CheckpointError: a store is damaged, or `check` says so; nothing was deleted.
        OSError: something cannot be written or deleted. What is left is whole.
    """
    with FileLock(store / LOCK):
        if read_pointer(folder) == store.resolve():  # another process was faster
            return
        _check_sound(store)
        if earlier:
            _check_sound(earlier.folder)
        shards = [] if earlier else [Shard.of(file) for file in sorted(files)]
        check()
        register(store, folder, shards)
        write_pointer(folder, store)
        _delete(folder, shards)
    if earlier:
        _retire(earlier, folder, store)


def finish(folder: Path, store: Path) -> None:
    """Deletes those shards that `replace_originals` was stopped before; raises as that does."""
    if any(shard.is_in(folder) for shard in replaced_shards(store, folder)):
        with FileLock(store / LOCK):
            _check_sound(store)
            write_pointer(folder, store)
            _delete(folder, replaced_shards(store, folder))


def _check_sound(store: Path) -> None:
    """Everything in a store is on disk, and reads from there as it was written."""
    sync_folder(store)
    found = describe(store)
    for file in found.held:
        forget(file)
    if not found.complete or (spoiled := damaged(found)):
        place = store if not found.complete else spoiled[0]
        raise CheckpointError(
            f"{place} is damaged, so nothing is deleted. `rabbitllm cache check` says what to do."
        )


def _delete(folder: Path, shards: list[Shard]) -> None:
    """Deletes shards, unless they were changed since they were looked at."""
    for shard in shards:
        file = folder / shard.name
        if not shard.is_in(folder):
            continue
        logger.info("Deleting %s: the layer store has its weights", file)
        blob = file.resolve()
        file.unlink()
        if _is_free_blob(blob, folder):
            blob.unlink(missing_ok=True)
    for index in orphans(folder):
        index.unlink(missing_ok=True)


def _is_free_blob(file: Path, folder: Path) -> bool:
    """Whether a file is one of the hub's cache, for a snapshot, that no snapshot links to now."""
    snapshots = folder.resolve().parent
    return (
        snapshots.name == "snapshots"
        and file.parent == snapshots.parent / "blobs"
        and not any(path.is_symlink() and path.resolve() == file for path in snapshots.rglob("*"))
    )


def _retire(earlier: StoreInfo, folder: Path, store: Path) -> None:
    """Deletes a store that another has followed, if it is certain that nobody else needs it.

    A copy of the checkpoint's folder that was never loaded is in no record. Its pointer finds the
    follower, but only beside the store that it names.
    """
    others = [user for user in describe(earlier.folder).users if user != folder.resolve()]
    if not earlier.ours or earlier.source != folder.resolve():
        reason = f"it was made for {earlier.source or 'something else'}"
    elif others:
        reason = f"{others[0]} still has its weights there"
    elif earlier.folder.parent != store.resolve().parent:
        reason = "copies of the checkpoint's folder may still read it"
    else:
        with FileLock(earlier.folder / LOCK):
            return remove_files(earlier)
    logger.warning(
        "%s stays, although %s has followed it: %s. `rabbitllm cache rm` removes it.",
        earlier.folder,
        store,
        reason,
    )
