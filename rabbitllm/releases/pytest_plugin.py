"""For tests of libraries that wrap models: pytest loads it by itself where rabbitllm is installed.

`@pytest.mark.releases("5.0", "newest")` skips a test on other releases of transformers, and the
fixture `streamed_model` loads models that stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from rabbitllm.utils.installed import version_of

if TYPE_CHECKING:
    from rabbitllm import StreamedModel

NEWEST = "newest"
SMALLEST = {"device": "cpu", "host_memory": "min", "show_layer_progress": False}
"""How a model streams most: of its layers none stays in memory."""


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers",
        "releases(first, last): run on these releases of transformers only, both included; 5.0 as "
        "the last means every patch of it, newest that there is no last",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that another release of transformers is meant for."""
    for marker in item.iter_markers("releases"):
        if why := _elsewhere(version_of("transformers"), *_ends(marker)):
            pytest.skip(why)


def _ends(marker: pytest.Mark) -> tuple[str, str]:
    """The two ends that a marker names.

    Raises:
        UsageError: it does not name two.
    """
    if marker.kwargs or len(marker.args) != 2 or not all(isinstance(v, str) for v in marker.args):
        raise pytest.UsageError('Write two releases: @pytest.mark.releases("5.0", "newest")')
    first, last = marker.args
    return first, last


def _elsewhere(installed: str, first: str, last: str) -> str:
    """Why a test does not run with the installed release; empty if it does.

    Raises:
        UsageError: an end is no release.
    """
    from packaging.version import InvalidVersion, Version

    if not installed:
        return "transformers is not installed"
    try:
        low = Version(first)
        high = None if last == NEWEST else Version(last)
    except InvalidVersion as error:
        raise pytest.UsageError(f"{error}: a release is such as 5.13, 5.13.1 or newest") from error
    here = Version(installed)
    # As much of the installed version as the end states: 5.13.1 is in 5.13.
    beyond = high is not None and here.release[: len(high.release)] > high.release
    if here < low or beyond:
        return f"transformers {installed} is not in {first} to {last}"
    return ""


@pytest.fixture
def streamed_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StreamedModel]:
    """`streamed_model(folder_or_repository, **options)` loads a model that streams every layer.

    Options are those of `rabbitllm.AutoModel.from_pretrained`. Layer stores go to a folder of the
    test run.
    """
    from rabbitllm import AutoModel

    def load(model: str | os.PathLike[str], **options: Any) -> StreamedModel:
        stores = tmp_path_factory.mktemp("stores")
        usual = {**SMALLEST, "layer_shards_saving_path": stores}
        return AutoModel.from_pretrained(model, **{**usual, **options})

    return load
