"""Running the command in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rabbitllm.cli import STEPS, main


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Leaves the loggers as they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    for name in STEPS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`command("plan", folder)` -> exit status, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
