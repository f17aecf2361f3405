"""What a hub repository would bring, without its weights.

Of a quantised one the small tensors come that say how others are to be read.
"""

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, says its documentation
    build_hf_headers,
    hf_raise_for_status,
)

from rabbitllm.checkpoint import quantised
from rabbitllm.checkpoint.config import read_fields
from rabbitllm.checkpoint.hub import fetch_settings, hub_errors
from rabbitllm.checkpoint.index import Asked, is_index, shard_names
from rabbitllm.checkpoint.mistaken import refuse_mistaken
from rabbitllm.checkpoint.moved import MOVED
from rabbitllm.checkpoint.plain_json import MALFORMED
from rabbitllm.checkpoint.tensors import MAX_HEADER_BYTES, Extent, parse_header, read_header
from rabbitllm.errors import CheckpointError, summary
from rabbitllm.utils.workers import Workers

MOST_BYTES = 8 + MAX_HEADER_BYTES
"""Of a safetensors file in front of its data."""
MOST_TELLING = 4 << 20
"""Bytes of a tensor that tells how others are to be read: a number for each column, at most."""
REQUESTS = 8
"""At the same time: such tensors are small, and a large model has a thousand of them."""


def fetch_headers(repo: str, token: str | None, trust_remote_code: bool, folder: Path) -> None:
    """Makes a folder that looks as the repository does, but for the values of its weights.

    Of each weight file only the header is fetched, and what tells how the others are quantised; the
    rest is a hole that takes no space. What is in the hub's cache already is used as it is.

    Args:
        repo: the repository's id.
        token: as for `resolve`.
        trust_remote_code: fetch Python files too.
        folder: an empty one.

    Raises:
        CheckpointError: as `resolve`, and for a repository without weights in safetensors files.
    """
    with hub_errors(repo):
        settings = fetch_settings(repo, token, trust_remote_code)
        refuse_mistaken(settings)
        for file in settings.iterdir():
            if file.is_file():
                shutil.copyfile(file, folder / file.name)  # Windows asks for rights to link it
        if not (settings / MOVED).is_file():
            whole = set(folder.iterdir())
            _fetch_hollow(repo, token, folder)
            _fetch_telling(repo, token, folder, set(folder.rglob("*.safetensors")) - whole)


def _fetch_hollow(repo: str, token: str | None, folder: Path) -> None:
    """Makes the weight files to take, hollow; those that `folder` has already stay."""
    names = Asked(use_safetensors=True).names(folder)
    for name in names:
        if is_index(name) and (folder / name).is_file():
            return _make_hollow_shards(repo, token, folder, name)
        if not is_index(name):
            with suppress(EntryNotFoundError):
                return _make_hollow(repo, token, folder / name, name)
    raise CheckpointError(
        f"{repo} has no {' and no '.join(names)}, and of other weights the header cannot be "
        f"fetched alone. Fetch them, `hf download {repo}`, and plan the folder."
    )


def _make_hollow_shards(repo: str, token: str | None, folder: Path, name: str) -> None:
    """Makes the shards that an index names."""
    shard = name
    try:
        for shard in shard_names(folder, name):
            _make_hollow(repo, token, folder / shard, shard)
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repo} has no {shard}, which its {name} names.") from error


def _make_hollow(repo: str, token: str | None, file: Path, name: str) -> None:
    """Makes a weight file, hollow; raises EntryNotFoundError if the repository has none."""
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_hollow(file, _fetch_header(repo, name, token))
    except MALFORMED as error:
        raise CheckpointError(
            f"{name} of {repo} is not in the safetensors format ({summary(error)})."
        ) from error


def _fetch_header(repo: str, name: str, token: str | None) -> bytes:
    """The beginning of a weight file, up to its data. Raises as huggingface_hub, or ValueError."""
    with _stream(repo, name, token, f"bytes=0-{MOST_BYTES - 1}") as response:
        begun = bytearray()
        for chunk in response.iter_bytes():
            begun += chunk
            if len(begun) < 8:
                continue
            end = 8 + struct.unpack("<Q", begun[:8])[0]
            if end <= len(begun):
                return bytes(begun[:end])
            if end > MOST_BYTES:
                break
    raise ValueError(f"{name} has no header")


@contextmanager
def _stream(repo: str, name: str, token: str | None, asked: str) -> Iterator[Any]:
    """Part of a file as it comes.

    To be left as soon as it is there: not every server knows ranges, and one that does not would
    send weights until memory is full.

    Args:
        repo: the repository's id.
        name: of the file.
        token: as for `resolve`.
        asked: a "Range".
    """
    headers = build_hf_headers(token=token) | {"Range": asked}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", hf_hub_url(repo, name), headers=headers, timeout=timeout
    ) as response:
        hf_raise_for_status(response)
        yield response


def _fetch_telling(repo: str, token: str | None, folder: Path, hollow: set[Path]) -> None:
    """Fetches into hollow files the tensors that tell how others are to be read."""
    quantisation = quantised.find(read_fields(folder), folder, repo) if hollow else None
    if quantisation is None:
        return
    entries = {key: entry for file in hollow for key, entry in read_header(file).items()}
    places = [entries[key].stored[0] for key in quantisation.telling(entries)]
    workers = Workers(REQUESTS, "rabbitllm-fetch")
    try:
        tasks = [
            workers.submit(_fetch_extent, repo, token, folder, place)
            for place in places
            if 0 < place.nbytes <= MOST_TELLING
        ]
        for task in tasks:
            task.result()
    finally:
        workers.close()


def _fetch_extent(repo: str, token: str | None, folder: Path, place: Extent) -> None:
    """Fetches some bytes of a weight file. Raises as huggingface_hub, or CheckpointError."""
    name = place.file.relative_to(folder).as_posix()
    asked = f"bytes={place.offset}-{place.offset + place.nbytes - 1}"
    data = bytearray()
    with _stream(repo, name, token, asked) as response:
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= place.nbytes:
                    break
    if len(data) != place.nbytes:
        raise CheckpointError(
            f"The hub does not give {name} of {repo} in parts, and without some of it nobody knows "
            f"how the weights are quantised. Fetch it, `hf download {repo}`, and plan the folder."
        )
    with place.file.open("r+b") as file:
        file.seek(place.offset)
        file.write(data)


def _write_hollow(file: Path, head: bytes) -> None:
    """Writes a file with this beginning and a hole for its data; raises one of `MALFORMED`."""
    file.write_bytes(head)
    fields = parse_header(head[8:])
    fields.pop("__metadata__", None)
    data = max((field["data_offsets"][1] for field in fields.values()), default=0)
    try:
        os.truncate(file, len(head) + data)
    except OSError as error:
        raise ValueError(f"no file system has files of {data:,} bytes") from error
    read_header(file)
