from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import pytest

from rabbitllm.releases import report
from rabbitllm.releases.checkup import Break, Row
from rabbitllm.releases.report import Report
from rabbitllm.releases.verdicts import CHECKS, Result

GOOD = Row("5.3.0", [Result(name, "pass") for name in CHECKS], day="2026-03-04")
BAD = Row(
    "5.4.0",
    [
        Result("load", "pass"),
        Result("logits", "fail", "0.5 <b>|</b> apart"),
        Result("chat", "skip", "there is none"),
    ],
    versions={"torch": "2.13.0"},
)
ABSENT = Row("5.5.0", reason="needs a newer Python")
FOUND = Report(
    "./m",
    "float32",
    False,
    "5.3.0",
    [GOOD, BAD, ABSENT],
    [Break(("logits", "tokens"), "5.3.0", "5.4.0", ("5.4.0rc1",), "apart")],
)


def of(*rows, **changes):
    values = {"shrunk": False, "golden": "5.3.0", "breaks": (), **changes}
    return Report("./m", "float32", rows=rows, **values)


@pytest.mark.parametrize(
    ("rows", "status"),
    [((GOOD,), "good"), ((GOOD, ABSENT), "not-run"), ((GOOD, ABSENT, BAD), "bad")],
)
def test_the_status_is_the_worst_of_all_releases(rows, status):
    assert of(*rows).status == status


@pytest.mark.parametrize("found", [FOUND, of(GOOD), of(ABSENT, golden="", shrunk=True)])
def test_json_is_as_the_published_schema_has_it(found):
    schema = json.loads(files("rabbitllm.releases").joinpath("check.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    contents = json.loads(report.as_json(found))
    validator.validate(contents)
    assert schema["properties"]["version"]["const"] == report.VERSION
    names = schema["properties"]["releases"]["items"]["properties"]["checks"]["propertyNames"]
    assert names["enum"] == list(CHECKS)
    assert not validator.is_valid({**contents, "version": report.VERSION + 1})


def test_the_table_has_a_sign_for_each_check_and_what_is_wrong():
    text = report.markdown(FOUND)
    lines = [line for line in text.splitlines() if line.startswith("| 5.")]
    assert lines[0] == f"| 5.3.0 | {' | '.join(['✓'] * len(CHECKS))} |  |"
    assert lines[1].startswith("| 5.4.0 | ✓ | · | ✗ | · |")
    assert lines[1].endswith(r"| logits: 0.5 &lt;b&gt;\|&lt;/b&gt; apart |")
    assert lines[2].endswith("| needs a newer Python |")
    assert "1 of 3 releases good; logits, tokens broke in 5.4.0 (last good: 5.3.0)" in text


def test_what_a_checkpoint_says_is_no_markdown():
    said = Result("chat", "fail", "a\n| b ![x](https://example.org) @me")
    text = report.issue(of(GOOD, Row("5.4.0", [said])), None)
    assert "\n| b" not in text
    assert "![" not in text
    assert "@" not in text


def test_the_note_of_an_environment_is_in_its_row():
    noted = Row("5.3.0", GOOD.results, note="no dates")
    assert "| no dates |" in report.markdown(of(noted))
    assert report.machine(of(noted))["releases"][0]["note"] == "no dates"


def test_tiny_layers_and_a_lack_of_good_releases_are_said():
    text = report.markdown(of(BAD, shrunk=True, golden=""))
    assert "Of tiny layers" in text
    assert "No release is good" in text
    assert "Of tiny layers" not in report.markdown(FOUND)


def test_the_page_escapes_what_a_checkpoint_says():
    page = report.html(FOUND)
    assert "&lt;b&gt;|&lt;/b&gt;" in page
    assert "<b>" not in page
    assert page.count("<tr") == 4


@pytest.mark.parametrize(
    ("row", "message"), [(GOOD, "works"), (BAD, "broken"), (ABSENT, "not run")]
)
def test_the_badge_is_of_the_newest_release(row, message):
    found = json.loads(report.badge(of(GOOD, row)))
    assert (found["label"], found["message"]) == (f"transformers {row.release}", message)


def test_an_issue_names_what_changed_and_there_is_none_if_nothing_did():
    before = json.loads(report.as_json(FOUND))
    assert report.issue(FOUND, before) == ""
    assert report.issue(of(GOOD), None) == ""
    text = report.issue(of(GOOD, GOOD.__class__("5.4.0", GOOD.results)), before)
    assert text.startswith("./m: 1 of 2 transformers releases changed\n\n- 5.4.0: bad -> good\n")
    text = report.issue(FOUND, None)
    assert "- 5.4.0: new -> bad (logits: 0.5" in text
    assert "- 5.5.0: new -> not-run (needs a newer Python)" in text
