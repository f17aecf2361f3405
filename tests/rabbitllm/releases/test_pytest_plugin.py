from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rabbitllm.releases.pytest_plugin import _elsewhere

HEAD = "import pytest\n"


@pytest.fixture
def run(tmp_path):
    """Run a file of tests with the plugin alone and strict markers; return what pytest prints."""

    def pytest_prints(text):
        (tmp_path / "test_it.py").write_text(HEAD + text)
        plugin = ("-p", "rabbitllm.releases.pytest_plugin", "--strict-markers", "-rs", "-q")
        command = [sys.executable, "-m", "pytest", *plugin, "--rootdir", tmp_path, tmp_path]
        variables = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, env=variables, capture_output=True, text=True).stdout

    return pytest_prints


@pytest.mark.parametrize(
    ("first", "last", "runs"),
    [
        ("5.0", "newest", True),
        ("5.13", "5.13", True),
        ("5.13.1", "5.13.1", True),
        ("5.13.2", "newest", False),
        ("5.0", "5.13.0", False),
        ("5.0", "5.12", False),
        ("5.14", "newest", False),
        ("5", "5", True),
    ],
)
def test_both_ends_are_included_and_a_minor_is_every_patch_of_it(first, last, runs):
    assert (_elsewhere("5.13.1", first, last) == "") == runs


def test_a_release_candidate_comes_before_its_release():
    assert _elsewhere("5.13.0rc1", "5.13", "newest")
    assert not _elsewhere("5.13.0.dev0", "5.12", "newest")
    assert _elsewhere("", "5.0", "newest") == "transformers is not installed"


def test_a_test_runs_on_its_releases_and_is_skipped_elsewhere(run):
    said = run(
        '@pytest.mark.releases("5.0", "newest")\ndef test_here(): pass\n'
        '@pytest.mark.releases("4.0", "4.57")\ndef test_there(): assert False\n'
    )
    assert "1 passed, 1 skipped" in said
    assert "is not in 4.0 to 4.57" in said


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('releases("5.0")', "Write two releases"),
        ("releases(5.0, 5.1)", "Write two releases"),
        ('releases("old", "newest")', "a release is such as 5.13"),
    ],
)
def test_a_marker_that_says_something_else_is_an_error(run, marker, said):
    assert said in run(f"@pytest.mark.{marker}\ndef test_here(): pass\n")


def test_the_fixture_loads_a_model_that_streams(run, checkpoint):
    said = run(
        "import torch\n"
        "def test_it(streamed_model):\n"
        f"    model = streamed_model({str(checkpoint())!r})\n"
        "    model(torch.tensor([[5]]))\n"
        "    before = model.streaming_stats()['bytes_from_disk']\n"
        "    model(torch.tensor([[5]]))\n"
        "    assert model.streaming_stats()['bytes_from_disk'] > before > 0\n"
        f"    other = streamed_model({str(checkpoint())!r}, host_memory='1GiB')\n"
        "    assert other.device.type == 'cpu'\n"
    )
    assert "1 passed" in said, said
