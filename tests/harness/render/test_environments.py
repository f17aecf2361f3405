from __future__ import annotations

import pytest

from harness.matrix import Surroundings, load_matrix, load_surroundings
from harness.records import Store
from harness.render.environments import environments
from harness.render.pages import documents

ROWS = [
    Surroundings("lowest", "3.10", "5.0.0", ("llama",), lowest=True, notes="the lowest"),
    Surroundings("newest", "3.13", "5.1.0", ("llama",), torch="2.15.0"),
]
VERSIONS = {"python": "3.10.13", "torch": "2.4.0"}


@pytest.fixture
def table(tmp_path, record):
    """Records of row "lowest" with these changes -> the table."""

    def made(*changes):
        for change in changes:
            values = {"release": "5.0.0", "versions": VERSIONS} | change
            Store(tmp_path / "lowest", values["release"]).put([record(**values)])
        return environments(tmp_path, ROWS, ())

    return made


def test_a_row_that_ran_says_with_which_versions_and_what_came_of_it(table):
    (line,) = table({}, {"architecture": "qwen2"}).to_dict(orient="records")
    assert line == {
        "environment": "lowest: the lowest",
        "Python": "3.10.13",
        "torch": "2.4.0",
        "transformers": "5.0.0",
        "result": "all 2 cells pass",
    }


def test_what_does_not_pass_is_named(table):
    broken = {"status": "reference-broken", "backend": "eager"}
    (result,) = table({}, broken, broken | {"architecture": "qwen2"})["result"]
    assert result == "1 of 3 cells pass; llama/eager and qwen2/eager stock fails"


def test_records_of_another_release_than_the_row_s_do_not_count(table):
    assert table({"release": "5.0.1"}).empty


def test_documents_have_the_table_if_there_is_one(table, record):
    made = documents([record(versions=VERSIONS)], environments=table({}))
    for page in ("compatibility.md", "compatibility.html"):
        assert "Python and torch" in made[page]
        assert "lowest: the lowest" in made[page]
        assert "Python and torch" not in documents([record()])[page]
    assert "measured with Python 3.10.13 and torch 2.4.0" in made["compatibility.md"]


def test_rows_are_of_architectures_and_backends_that_there_are():
    rows = load_surroundings()
    assert len({row.id for row in rows}) == len(rows) > 1
    for row in rows:
        cells = load_matrix().cells([row.release], row.architectures, row.backends)
        assert len(cells) == len(row.architectures) * len(row.backends) > 0
