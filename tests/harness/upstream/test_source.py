from __future__ import annotations

import tarfile

import pytest

from harness.upstream import source as module
from harness.upstream.source import source as place_of
from harness.upstream.source import version_of


def test_a_folder_is_used_where_it_lies(source):
    folder = source()
    with place_of(folder, "5.0.0") as place:
        assert place == folder
    assert version_of(folder) == "5.0.0"


def test_an_archive_is_unpacked_for_a_while(source, tmp_path):
    folder = source()
    archive = tmp_path / "v5.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, arcname="transformers-5.0.0")
    with place_of(archive, "5.0.0") as place:
        assert (place / "tests" / "models" / "llama").is_dir()
        assert place.name == "transformers-5.0.0"
    assert not place.exists()


def test_without_a_place_the_release_is_fetched(source, tmp_path, monkeypatch):
    archive = tmp_path / "v9.9.9.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(source(), arcname="transformers-9.9.9")
    monkeypatch.setattr(module, "ADDRESS", f"file://{tmp_path}/v{{release}}.tar.gz")
    with place_of(None, "9.9.9") as place:
        assert version_of(place) == "5.0.0"


def test_a_source_without_tests_of_models_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="holds no tests/models"),
        place_of(tmp_path, "5.0.0"),
    ):
        pass


def test_a_source_that_says_no_version_is_unknown(tmp_path):
    assert version_of(tmp_path) == "unknown"
