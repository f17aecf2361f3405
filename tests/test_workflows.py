"""The workflows name only environments and commands that there are."""

from __future__ import annotations

import configparser
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from harness import commands
from rabbitllm.cli import _parser

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


def test_there_are_workflows_for_tests_matrix_canary_nights_and_releases():
    assert [path.stem for path in WORKFLOWS] == ["canary", "matrix", "nightly", "publish", "tests"]


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


# the action for others

ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
SCRIPT = ROOT / ".github" / "action" / "check.sh"


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Run the action's script with a `rabbitllm` that writes its arguments, and ends as told."""
    program = tmp_path / "bin" / "rabbitllm"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > asked\necho asked >&2\nmkdir -p out\n'
        '[[ "$STATUS" == 2 ]] || echo table > out/check.md\n'
        '[[ "$STATUS" != 1 ]] || echo title > out/issue.md\nexit "$STATUS"\n'
    )
    program.chmod(0o755)

    def run(status, **inputs):
        files = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary", "REPORTS": "out"}
        path = f"{program.parent}:/usr/bin:/bin"
        variables = {"PATH": path, "STATUS": str(status), **files, **inputs}
        variables = {name: value for name, value in variables.items() if value is not None}
        command = ["bash", "-c", '"$0"; status=$?; echo over >&2; exit $status', SCRIPT]
        with (tmp_path / "err").open("w") as err:
            done = subprocess.run(command, cwd=tmp_path, env=variables, stderr=err)
        run.err = (tmp_path / "err").read_text()
        return done.returncode, (tmp_path / "asked").read_text().split("\n")[:-1]

    return run


def test_the_action_hands_every_input_to_its_script():
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "check"]
    handed = " ".join(step["env"].values())
    assert all(f"inputs.{name} " in handed for name in ACTION["inputs"])
    script = SCRIPT.read_text("utf-8")
    assert all(f"${{{name}:-" in script for name in step["env"] if name != "UV_TORCH_BACKEND")


def test_inputs_become_options(run_script):
    model = "my model; rm -rf /"
    switches = {"TRUST_REMOTE_CODE": "true", "SHRINK": "true", "PRE": "true"}
    status, asked = run_script(
        0, MODEL=model, RELEASES="5.0", PACKAGES="einops\n  tiktoken>=0.7 *\n", **switches
    )
    assert status == 0
    assert asked[:3] == ["check", "--releases", "5.0"]
    assert asked[7:] == [
        "--trust-remote-code",
        "--shrink",
        "--pre",
        *("--with", "einops", "--with", "tiktoken>=0.7", "--with", "*"),
        *("--", model),
    ]
    parser = _parser()
    parser.parse_args(asked)
    assert run_script(0)[1][1:] == [
        *("--releases", ACTION["inputs"]["releases"]["default"]),
        *("--reports", "out", "--golden", ACTION["inputs"]["golden"]["default"]),
        *("--", "."),
    ]


def test_a_switch_that_is_neither_true_nor_false_is_refused(run_script, tmp_path):
    (tmp_path / "asked").touch()
    assert run_script(0, SHRINK="True") == (2, [])
    assert (tmp_path / "output").read_text() == "status=2\nissue=\n"
    assert run_script.err == 'shrink is "True": give "true" or "false".\nover\n'


def test_by_hand_the_status_is_said(run_script):
    assert run_script(3, GITHUB_OUTPUT=None, GITHUB_STEP_SUMMARY=None)[0] == 3
    # Into a file, which others write to as well.
    assert run_script.err == "asked\nstatus=3\nissue=\nover\n"


NEWER = {
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "associative arrays, references": r"\b(declare|local|typeset)\s+-[a-z]*[Ang]",
    "changed case": r"\$\{\w+(\[[@*]\])?(,|\^|@[A-Za-z]\})",
    "places from the end": r"\$\{\w+\[-|\$\{\w+:[^-=?+}]*:\s*-",
    "redirection of both": r"&>>|\|&",
    "whether a variable is set": r"\[\[?\s+-v\s",
    "falling through": r";;?&",
    "newer variables": r"\$\{?(EPOCH\w+|BASHPID|SRANDOM)",
    "wait for any": r"\bwait\s+-n",
    "time as text": r"printf\s.*%\(",
}
"""What bash 3.2, that of macOS, does not have."""


def too_new(script):
    """What a script of bash holds that bash 3.2 does not have, or fails at under `set -u`."""
    code = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in script.splitlines())
    found = [name for name, pattern in NEWER.items() if re.search(pattern, code)]
    return found + [f"{name} is empty" for name in re.findall(r"(\w+)=\(\s*\)", code)]


def test_the_script_runs_with_the_bash_of_macos():
    assert too_new(SCRIPT.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mapfile -t lines", "mapfile"),
        ("local -A by_name", "associative arrays, references"),
        ('echo "${name,,}"', "changed case"),
        ('echo "${words[-1]}"', "places from the end"),
        ("make &>> log", "redirection of both"),
        ("[[ -v MODEL ]]", "whether a variable is set"),
        ("words=()", "words is empty"),
    ],
)
def test_what_is_too_new_for_it_would_be_found(line, found):
    assert too_new(f"echo a  # mapfile\n{line}\n") == [found]


def test_a_model_that_looks_like_an_option_is_none(run_script):
    assert _parser().parse_args(run_script(0, MODEL="--shrink")[1]).model == "--shrink"


@pytest.mark.parametrize(
    ("status", "issue", "summary"),
    [(0, "", "table\n"), (1, "out/issue.md", "table\n"), (2, "", None), (3, "", "table\n")],
)
def test_the_status_comes_out_with_the_report(run_script, tmp_path, status, issue, summary):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "issue.md").write_text("of last week")
    assert run_script(status)[0] == status
    assert (tmp_path / "output").read_text() == f"status={status}\nissue={issue}\n"
    found = tmp_path / "summary"
    assert (found.read_text() if found.exists() else None) == summary
