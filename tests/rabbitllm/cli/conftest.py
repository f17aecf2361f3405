"""Running the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rabbitllm.cli import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`command("plan", folder)` -> exit status, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
