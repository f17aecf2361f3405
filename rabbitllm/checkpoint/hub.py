"""Where a model's files come from: a folder, or the hub."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    RevisionNotFoundError,
)

from rabbitllm.checkpoint.index import ANY, Asked, is_index, shard_names, total_size
from rabbitllm.checkpoint.mistaken import refuse_mistaken
from rabbitllm.checkpoint.moved import MOVED
from rabbitllm.errors import CheckpointError, first_line, summary
from rabbitllm.utils.memory import format_size

logger = logging.getLogger(__name__)

CONFIG_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
CODE_PATTERNS = ("*.py",)


@dataclass(frozen=True)
class Download:
    """How a repository is fetched: arguments of huggingface_hub's `snapshot_download`.

    Attributes:
        revision: a branch, a tag or a commit; None is the main branch.
        cache_dir: where snapshots lie; None is the place that HF_HOME or HF_HUB_CACHE names.
        force_download: fetch what is in the cache already, too.
        local_files_only: take what is in the cache, and ask no hub.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    force_download: bool = False
    local_files_only: bool = False


CACHED = Download()
"""The main branch, of which the cache keeps what it has."""


def resolve(
    model: str | os.PathLike[str],
    token: str | bool | None,
    trust_remote_code: bool,
    download: Download = CACHED,
    subfolder: str = "",
    asked: Asked = ANY,
) -> Path:
    """The folder with a model's files: `model` itself, or the snapshot of a hub repository.

    Of a repository only configuration, tokenizer and the weight files are fetched that stock would
    take, and Python files if `trust_remote_code`. HF_TOKEN and HF_HUB_OFFLINE are honoured by
    huggingface_hub.

    Args:
        model: a folder, or a repository's id.
        token: as huggingface_hub takes it; False sends none.
        trust_remote_code: fetch Python files too.
        download: which revision, and from where.
        subfolder: where in the folder or repository the model's files lie.
        asked: which weight files.

    Raises:
        CheckpointError: neither a folder nor a repository that can be reached, a gated one, or one
            that the hub refuses.
    """
    if folder := local_folder(model, subfolder):
        return folder
    repo = os.fspath(model)
    with hub_errors(repo, download.revision):
        settings = fetch_settings(repo, token, trust_remote_code, download, subfolder)
        if (settings / MOVED).is_file():  # do not fetch again what was deleted on purpose
            return settings
        return _fetch_weights(repo, token, settings, trust_remote_code, download, subfolder, asked)


def local_folder(model: str | os.PathLike[str], subfolder: str = "") -> Path | None:
    """The folder that `model` is, or that lies in it; None if it can only be a hub repository.

    Raises:
        CheckpointError: it is a path, and no folder of a checkpoint is there.
    """
    folder = Path(model).expanduser()
    if subfolder and folder.is_dir():
        # Absolute, for no repository's id is: one that is not there is not sought on the hub.
        folder = folder.absolute() / subfolder
    refuse_mistaken(folder)
    if folder.is_dir():
        return folder
    name = os.fspath(model)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(
            f"No such folder: {folder}. Give a folder with config.json, or a hub id."
        )
    return None


def fetch_settings(
    repo: str,
    token: str | bool | None,
    trust_remote_code: bool,
    download: Download = CACHED,
    subfolder: str = "",
) -> Path:
    """Fetches everything but the weights; the snapshot's folder. Raises as huggingface_hub."""
    return _fetch(repo, token, _patterns(trust_remote_code), download, subfolder)


def resolve_settings(
    model: str | os.PathLike[str], token: str | bool | None, trust_remote_code: bool
) -> Path:
    """As `resolve`, of a model whose weights are not wanted; its config.json may be named, too.

    Raises:
        CheckpointError: as `resolve`.
    """
    path = Path(model).expanduser()
    if path.name == "config.json" and path.is_file():
        return path.parent
    if folder := local_folder(model):
        return folder
    repo = os.fspath(model)
    with hub_errors(repo):
        return fetch_settings(repo, token, trust_remote_code)


def fetch_if_there(
    repo: str,
    name: str,
    beside: str,
    token: str | bool | None,
    download: Download = CACHED,
    subfolder: str = "",
) -> Path | None:
    """The snapshot's folder with a file of a repository, if settings of another name are beside it.

    Raises:
        CheckpointError: as `resolve`.
    """
    with hub_errors(repo, download.revision):
        settings = fetch_settings(repo, token, False, download, subfolder)
        if not (settings / beside).is_file():
            return None
        return _fetch(repo, token, [*_patterns(False), name], download, subfolder)


def _fetch_weights(
    repo: str,
    token: str | bool | None,
    settings: Path,
    trust_remote_code: bool,
    download: Download,
    subfolder: str,
    asked: Asked,
) -> Path:
    """Fetches the weight files to take; where there are none, what looks for them says so."""
    names = [
        name for name in asked.names(settings) if not is_index(name) or (settings / name).is_file()
    ]
    for name in names:
        files = shard_names(settings, name) if is_index(name) else [name]
        # A single file that wins over an index is rarely there.
        if name == names[-1] or is_index(name):
            _announce(repo, settings, name, files)
        snapshot = _fetch(repo, token, [*_patterns(trust_remote_code), *files], download, subfolder)
        if is_index(name) or (snapshot / name).is_file():
            return snapshot
    return settings


def _announce(repo: str, settings: Path, name: str, files: list[str]) -> None:
    """Says what is going to come, and where there has to be room for it."""
    if all((settings / file).exists() for file in files):
        return
    nbytes = total_size(settings, name) if is_index(name) else None
    logger.info(
        "Fetching %s: %s of weights into %s, where %s are free",
        repo,
        format_size(nbytes) if nbytes else "a file",
        settings.parents[2],
        format_size(shutil.disk_usage(settings).free),
    )


def _fetch(
    repo: str, token: str | bool | None, names: list[str], download: Download, subfolder: str
) -> Path:
    snapshot = snapshot_download(
        repo,
        allow_patterns=[f"{subfolder}/{name}" if subfolder else name for name in names],
        # Only our own word of another place for the weights counts, never a repository's.
        ignore_patterns=[MOVED, f"*/{MOVED}"],
        token=token,
        **vars(download),
    )
    return Path(snapshot) / subfolder


def _patterns(trust_remote_code: bool) -> list[str]:
    """Of the files of a repository, those that are fetched besides the weights."""
    return list(CONFIG_PATTERNS + (CODE_PATTERNS if trust_remote_code else ()))


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a CheckpointError that names the way out."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated. Accept its terms at https://huggingface.co/{repo}, then pass "
            "token=... or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo} has no revision {revision!r}. Its branches, tags and commits are listed at "
            f"https://huggingface.co/{repo}/commits."
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
