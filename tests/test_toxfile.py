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
    made = toxfile.tox_extend_envs()
    assert made == [*(f"tf{release}" for release in listed), *toxfile.surroundings()]
    assert "tf5.0.0-lowest" in made


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


def test_other_surroundings_have_their_python_and_none_of_the_pins(root):
    row = {"id": "torch2.4", "python": "3.10", "release": "5.1.0", "torch": "2.4.0"}
    settings = toxfile.surrounded_environment(row, (), root)
    assert settings["base_python"] == ["python3.10"]
    deps = settings["deps"].splitlines()
    assert deps[-2:] == ["transformers==5.1.0", "torch==2.4.0"]
    assert "gguf" not in deps
    assert "UV_NO_CONFIG=1\nUV_RESOLUTION=highest" in settings["set_env"]
    assert settings["labels"] == {"environments"}


def test_the_lowest_versions_are_what_uv_is_asked_for(root):
    row = {"id": "lowest", "python": "3.10", "release": "5.1.0", "lowest": True}
    settings = toxfile.surrounded_environment(row, (), root)
    assert "UV_RESOLUTION=lowest-direct" in settings["set_env"]
    assert settings["deps"].splitlines()[-1] == "transformers==5.1.0"


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
