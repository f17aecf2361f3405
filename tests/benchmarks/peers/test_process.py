from __future__ import annotations

import importlib.metadata
import sys

import pytest

from benchmarks.peers.process import ProcessError, figures_of, is_met, python_of
from tests.patience import PATIENCE

WRITE = 'import sys, pathlib; pathlib.Path(sys.argv[2]).write_text(\'{"peer": "a"}\')'


def test_a_requirement_is_met_by_the_right_version_alone() -> None:
    version = importlib.metadata.version("torch")
    assert is_met(f"torch=={version.partition('+')[0]}")
    assert not is_met("torch==0.1")
    assert not is_met("no-such-distribution")


def test_a_peer_whose_requirements_are_met_runs_in_this_environment() -> None:
    assert python_of(()) == [sys.executable]
    assert python_of(("torch",)) == [sys.executable]


def test_another_gets_one_with_this_environments_torch_and_transformers() -> None:
    command = python_of(("no-such-distribution==4.0.0",))
    assert command[:2] == ["uv", "run"]
    assert command[-1] == "python"
    wanted = [command[i + 1] for i, word in enumerate(command) if word == "--with"]
    assert wanted[-1] == "no-such-distribution==4.0.0"
    assert f"transformers=={importlib.metadata.version('transformers')}" in wanted
    assert all("+" not in word for word in wanted)  # no index knows the build of this machine


def test_figures_are_what_the_process_writes() -> None:
    assert figures_of([sys.executable, "-c", WRITE], PATIENCE) == {"peer": "a"}


def test_a_process_that_fails_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no room')"]
    with pytest.raises(ProcessError, match="ended with 1: no room"):
        figures_of(command, PATIENCE)


def test_a_process_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ProcessError, match=r"took longer than 0\.1 s"):
        figures_of([sys.executable, "-c", "import signal; signal.pause()"], 0.1)
