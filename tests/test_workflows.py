"""The workflows name only environments and commands that there are."""

from __future__ import annotations

import configparser
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from harness import commands

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SUB_COMMANDS = {found.name.replace("_", "-") for found in pkgutil.iter_modules(commands.__path__)}


@pytest.fixture(scope="module")
def environments():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", "utf-8")
    inherited = {"test"}  # has nothing of its own beyond [testenv]
    return inherited | {name.removeprefix("testenv:") for name in config.sections()}


def steps(path):
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    return [(job, step) for job, table in jobs.items() for step in table["steps"]]


def test_there_are_workflows_for_tests_matrix_canary_and_releases():
    assert [path.stem for path in WORKFLOWS] == ["canary", "matrix", "publish", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_environment_and_sub_command_exists(path, environments):
    text = " ".join(step.get("run", "") for _, step in steps(path))
    named = re.findall(r"tox (?:-qq )?-e (\S+)(?: -- (\S+))?", text)
    assert len(named) == text.count("tox ") - text.count("install tox")
    for environment, first in named:
        assert environment in environments
        if environment == "harness":
            assert first in SUB_COMMANDS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_job_has_tox_before_it_runs_it(path):
    installed = set()
    for job, step in steps(path):
        run = step.get("run", "")
        if "pip install tox" in run:
            installed.add(job)
        elif "tox " in run:
            assert job in installed


def test_the_merge_job_asks_for_every_shard():
    table = yaml.safe_load((ROOT / ".github" / "workflows" / "matrix.yml").read_text("utf-8"))
    numbers = table["jobs"]["shard"]["strategy"]["matrix"]["number"]
    count = len(numbers)
    assert numbers == list(range(1, count + 1))
    lines = [step.get("run", "") for job in table["jobs"].values() for step in job["steps"]]
    assert any(f"--shard ${{{{ matrix.number }}}}/{count} " in line for line in lines)
    assert any(f"shards/records-{{1..{count}}} " in line for line in lines)


def test_only_the_job_that_publishes_has_an_identity_and_it_runs_no_code_of_the_checkout():
    trusted = [
        (path.stem, name, job)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items()
        if "id-token" in job.get("permissions", {})
    ]
    ((workflow, name, job),) = trusted
    assert (workflow, name, job["environment"]["name"]) == ("publish", "publish", "pypi")
    assert not [step for step in job["steps"] if "run" in step or "checkout" in step["uses"]]
    assert job["steps"][-1]["with"] == {"attestations": True}


def test_a_tag_of_another_version_is_not_published():
    build = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
    (line,) = [s["run"] for s in build["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in str(s)]
    assert line == 'test -f "dist/rabbitllm-${GITHUB_REF_NAME#v}-py3-none-any.whl"'
