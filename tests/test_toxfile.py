from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace

import pytest

toxfile = pytest.importorskip("toxfile", reason="tox is not installed")

PYPROJECT = """\
[project]
dependencies = ["torch>=2.4", "transformers>=5"]
[project.optional-dependencies]
harness = ["pandas"]
smollm2 = ["gguf"]
"""
RELEASES = """\
[[release]]
version = "5.0.0"
sentinel = true
[[release]]
version = "5.1.0"
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "matrix").mkdir()
    (tmp_path / "matrix" / "releases.toml").write_text(RELEASES)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path


def test_each_release_in_the_table_has_an_environment():
    listed = toxfile.releases()
    assert listed
    assert toxfile.tox_extend_envs() == [f"tf{release}" for release in listed]


def test_releases_keep_the_order_of_the_table(root):
    assert toxfile.releases(root) == ["5.0.0", "5.1.0"]


def test_an_environment_holds_its_release_and_what_the_package_needs(root):
    settings = toxfile.cell_environment("5.1.0", root=root)
    assert settings["deps"].splitlines() == [
        "torch>=2.4",
        "transformers>=5",
        "pandas",
        "gguf",
        "transformers==5.1.0",
    ]
    assert settings["labels"] == {"cells"}
    assert settings["package"] == "skip"
    assert settings["set_env"] == f"PYTHONPATH={root}"


def test_tests_run_on_the_newest_release_of_the_table(root):
    assert toxfile.newest(root).startswith("transformers==5.1.0;")


def test_arguments_reach_the_command_as_they_are(root):
    (command,) = toxfile.cell_environment("5.1.0", "", ["--arch", "a b"], root)["commands"]
    assert command.args[-4:] == ["--release", "5.1.0", "--arch", "a b"]


def test_the_harness_extra_brings_what_tox_needs_inside_tox():
    assert {"tox", "tox-uv"} <= {name.split(">")[0] for name in toxfile.requirements("harness")}


def test_a_candidate_has_a_folder_beside_that_of_the_table_s_row(monkeypatch, tmp_path):
    newest = toxfile.releases()[-1]
    monkeypatch.setenv("MATRIX_CANDIDATES", json.dumps({newest: "transformers @ file:///a.whl"}))
    loaders = defaultdict(list)
    state = SimpleNamespace(
        conf=SimpleNamespace(memory_seed_loaders=loaders, pos_args=lambda _: ())
    )
    toxfile.tox_add_core_config({"work_dir": tmp_path}, state)
    (of_newest,), (of_oldest,) = loaders[f"tf{newest}"], loaders["tf5.0.0"]
    assert of_newest.raw["env_dir"].parent == tmp_path
    assert of_newest.raw["env_dir"].name.startswith(f"tf{newest}-")
    assert "transformers @ file:///a.whl" in of_newest.raw["deps"].splitlines()
    assert "env_dir" not in of_oldest.raw
