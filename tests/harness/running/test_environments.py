from __future__ import annotations

import json
import subprocess

import pytest

from harness.running import environments
from harness.running.environments import Environment


@pytest.fixture
def tox_reports(monkeypatch):
    """Stand in for tox: write a report of environments, return an exit status."""

    def stand_in(reported, status=0):
        def run(command, **_):
            if reported is not None:
                path = command[command.index("--result-json") + 1]
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"testenvs": reported}, file)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(environments.subprocess, "run", run)

    return stand_in


FINE = {
    "result": {"success": True},
    "setup": [{"retcode": 0, "output": "", "err": ""}],
    "python": {"version_info": [3, 11, 7, "final", 0]},
    "installed_packages": ["huggingface-hub==1.33.0", "torch==2.13.0+cpu", "uv==0.9", "rabbitllm"],
}


def test_an_environment_has_versions_or_the_reason_for_which_it_could_not_be_made(tox_reports):
    step = {"retcode": 1, "output": "", "err": "\x1b[31merror\x1b[39m: no version 5.99.0\n"}
    broken = {"result": {"success": False}, "setup": [*FINE["setup"], step]}
    tox_reports({"tf5.0.0": FINE, "tf5.99.0": broken, "lint": {}}, status=1)
    made = environments.make_environments(["5.0.0", "5.99.0"], {})
    assert made == {
        "5.0.0": Environment(
            versions={"python": "3.11.7", "huggingface_hub": "1.33.0", "torch": "2.13.0+cpu"}
        ),
        "5.99.0": Environment(reason="error: no version 5.99.0"),
    }


def test_an_environment_that_tox_does_not_mention_is_an_error(tox_reports):
    tox_reports({"tf5.0.0": FINE})
    with pytest.raises(environments.OrchestrationError, match=r"tf5\.1\.0"):
        environments.make_environments(["5.0.0", "5.1.0"], {})


def test_an_environment_of_unknown_packages_is_an_error(tox_reports):
    tox_reports({"tf5.0.0": {key: FINE[key] for key in FINE.keys() - {"installed_packages"}}})
    with pytest.raises(environments.OrchestrationError, match=r"installed in .* tf5\.0\.0"):
        environments.make_environments(["5.0.0"], {})


def test_tox_without_a_report_is_an_error(tox_reports):
    tox_reports(None, status=2)
    with pytest.raises(environments.OrchestrationError, match="exit status 2"):
        environments.make_environments(["5.0.0"], {})


def test_surroundings_have_an_environment_of_their_own(tox_reports):
    tox_reports({"tf5.0.0-lowest": FINE})
    assert list(environments.make_environments(["5.0.0"], {}, "lowest")) == ["5.0.0"]


def test_candidates_reach_the_toxfile(tox_reports, monkeypatch):
    toxfile = pytest.importorskip("toxfile", reason="tox is not installed")
    asked = {"5.99.0": "transformers @ file:///wheels/transformers.whl"}
    monkeypatch.setenv(
        environments.CANDIDATES, environments.variables(asked)[environments.CANDIDATES]
    )
    assert toxfile.candidates() == asked
    assert "tf5.99.0" in toxfile.tox_extend_envs()
    settings = toxfile.cell_environment("5.99.0", asked["5.99.0"])
    assert settings["deps"].splitlines()[-1] == asked["5.99.0"]
