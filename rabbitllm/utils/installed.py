"""Which versions are installed, and whether torch and transformers go together.

transformers does without a torch that it finds too old, and then fails somewhere else.
"""

import importlib.metadata


def version_of(distribution: str) -> str:
    """The version of what is installed under this name, without importing it; empty if none is."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def mismatch() -> str:
    """Why torch and transformers do not go together, in a sentence; empty if they do."""
    from transformers.utils.import_utils import is_torch_available

    if is_torch_available() or not version_of("torch"):
        return ""
    return (
        f"torch {version_of('torch')} is too old for transformers {version_of('transformers')}: "
        "install a newer one (pip install --upgrade torch), or an older transformers."
    )


def require_torch() -> None:
    """Checks that transformers takes the torch that is installed.

    Raises:
        ImportError: it is too old, see `mismatch`.
    """
    if why := mismatch():
        raise ImportError(why)
