from __future__ import annotations

from harness.records import CheckResult
from harness.render.formats import CHECK, NOT_QUANTISED, formats
from tests.harness.render.conftest import make_record

ALONE = "this release cannot read it by itself (ImportError: Loading it requires a package)"


def records(architecture, results):
    return [
        make_record(
            architecture=architecture,
            release=release,
            checks={CHECK: CheckResult(status, {}, 0.1, message=message)},
        )
        for release, (status, message) in results.items()
    ]


def test_a_line_says_on_which_releases_stock_reads_a_checkpoint_itself():
    found = formats(
        records(
            "llama-awq",
            {"5.0.0": ("not-run", ALONE), "5.1.0": ("pass", ""), "5.23.0": ("stock-wrong", "off")},
        )
    )
    assert found.to_dict(orient="records") == [
        {
            "checkpoint": "llama-awq",
            "stock reads it by itself": "on 5.1.0; on 5.23.0, to other values",
            "only here": "on 5.0.0",
            "for want of": "ImportError: Loading it requires a package",
        }
    ]


def test_what_stock_never_reads_is_said_once():
    releases = ("5.0.0", "5.1.0")
    found = formats(records("llama-nf4", dict.fromkeys(releases, ("not-run", ALONE))))
    (line,) = found.to_dict(orient="records")
    assert line["stock reads it by itself"] == "never"
    assert line["only here"] == "on every release measured"
    assert line["for want of"].count("package") == 1


def test_other_checkpoints_are_no_lines():
    plain = records("llama", {"5.0.0": ("not-run", NOT_QUANTISED)})
    assert formats([*plain, make_record()]).empty


def test_lines_have_the_order_of_the_matrix():
    both = [
        *records("llama-nf4", {"5.0.0": ("pass", "")}),
        *records("llama-awq", {"5.0.0": ("pass", "")}),
    ]
    found = formats(both, ["llama-nf4", "llama-awq"])
    assert found["checkpoint"].tolist() == ["llama-nf4", "llama-awq"]
