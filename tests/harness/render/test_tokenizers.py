from __future__ import annotations

from harness.judging.tokenizers import told_apart
from harness.render.tokenizers import tokenizers
from tests.harness.judging.test_tokenizers import RIGHT, WRONG, measured


def test_a_line_says_on_which_releases_and_of_which_architectures(cell_record):
    records = [
        measured(cell_record, found, architecture=name, release=release)
        for name in ("llama", "llama2")
        for release, found in (("5.0.0", RIGHT), ("5.10.0", WRONG), ("5.9.0", RIGHT))
    ]
    found = tokenizers(told_apart(records)[len(records) :], ())
    (line,) = found.to_dict(orient="records")
    assert (line["tokenizer"], line["architectures"]) == ("llama2", "llama and llama2")
    assert line["releases"] == "✓ pass up to 5.9.0; ≠ stock wrong on 5.10.0"
    assert "6 of 39 differ" in line["cause"]


def test_nothing_measured_is_no_table():
    assert tokenizers([], ()).empty
