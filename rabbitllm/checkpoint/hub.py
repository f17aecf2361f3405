"""Where a model's files come from: a folder, or the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from rabbitllm.checkpoint.index import shard_names
from rabbitllm.checkpoint.mistaken import refuse_mistaken
from rabbitllm.checkpoint.moved import MOVED
from rabbitllm.errors import CheckpointError, first_line, summary

CONFIG_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
CODE_PATTERNS = ("*.py",)


def resolve(model: str | os.PathLike[str], token: str | None, trust_remote_code: bool) -> Path:
    """The folder with a model's files: `model` itself, or the snapshot of a hub repository.

    Of a repository only configuration, tokenizer and safetensors files are fetched, and Python
    files if `trust_remote_code`. HF_TOKEN and HF_HUB_OFFLINE are honoured by huggingface_hub.

    Raises:
        CheckpointError: neither a folder nor a repository that can be reached, a gated one, or one
            that the hub refuses.
    """
    if folder := local_folder(model):
        return folder
    repo = os.fspath(model)
    with hub_errors(repo):
        settings = fetch_settings(repo, token, trust_remote_code)
        if (settings / MOVED).is_file():  # do not fetch again what was deleted on purpose
            return settings
        return _fetch(repo, token, [*_patterns(trust_remote_code), *shard_names(settings)])


def local_folder(model: str | os.PathLike[str]) -> Path | None:
    """The folder that `model` is; None if it can only be a hub repository.

    Raises:
        CheckpointError: it is a path, and no folder of a checkpoint is there.
    """
    folder = Path(model).expanduser()
    refuse_mistaken(folder)
    if folder.is_dir():
        return folder
    name = os.fspath(model)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"No such folder: {folder}. Give a folder with config.json, or a hub id."
        )
    return None


def fetch_settings(repo: str, token: str | None, trust_remote_code: bool) -> Path:
    """Fetches everything but the weights; the snapshot's folder. Raises as huggingface_hub."""
    return _fetch(repo, token, _patterns(trust_remote_code))


def _fetch(repo: str, token: str | None, patterns: list[str]) -> Path:
    # Only our own word of another place for the weights counts, never a repository's.
    return Path(
        snapshot_download(repo, allow_patterns=patterns, ignore_patterns=MOVED, token=token)
    )


def _patterns(trust_remote_code: bool) -> list[str]:
    """Of the files of a repository, those that are fetched besides the weights."""
    return list(CONFIG_PATTERNS + (CODE_PATTERNS if trust_remote_code else ()))


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a CheckpointError that names the way out."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated. Accept its terms at https://huggingface.co/{repo}, then pass "
            "token=... or set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"No folder and no hub repository named {repo!r}. Check the spelling; a private "
            "repository needs token=... "
            "or HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repo} is not, or not whole, in the local cache, and the hub does not give it: "
            f"{first_line(error.__cause__ or error).rstrip('.')}. Check the network, "
            "HF_HUB_OFFLINE and the token, then load it again."
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"The hub refuses {repo}: {first_line(error)}. An expired token, in token=... or "
            "HF_TOKEN, is one cause."
        ) from error
    except HTTPError as error:
        raise CheckpointError(
            f"The connection to the hub broke while {repo} was fetched: {summary(error)}. Load it "
            "again: the files that have arrived are kept."
        ) from error
