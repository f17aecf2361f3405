from __future__ import annotations

import pytest

from harness.matrix import ROOT
from harness.render.throughput import expected, rate, section

RECORDS = ROOT / "reports" / "benchmarks"


def test_what_fits_is_measured_and_not_computed():
    assert expected("7B", 15.2, 50.0, 1.0) is None


def test_what_comes_from_ram_takes_the_link():
    found = expected("a", 30.0, 50.0, 1.0)
    assert (found.from_ram, found.from_disk, found.rate) == (10.0, 0.0, 5.0)


def test_what_comes_from_disk_takes_the_disk():
    found = expected("a", 96.0, 50.0, 1.0)
    assert (found.from_ram, found.from_disk, found.rate) == (56.0, 20.0, 1 / 20)


@pytest.mark.parametrize(
    ("value", "text"), [(122.4, "122"), (39.59, "39.6"), (3.846, "3.8"), (0.4721, "0.47")]
)
def test_rates_have_few_digits(value, text):
    assert rate(value) == text


def test_the_section_names_what_is_computed_and_keeps_to_one_state_of_the_cache():
    text = section(RECORDS)
    rows = [line for line in text.splitlines() if line.startswith(("| 7B", "| 14B", "| 72B"))]
    assert ["measured" in row for row in rows] == [True, False, False]
    assert ["computed" in row for row in rows] == [False, True, True]
    assert "accelerate\n0.47" in text
    assert "accelerate on disk" not in text.split("On two CPU cores")[0]


def test_records_that_are_missing_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        section(tmp_path)
