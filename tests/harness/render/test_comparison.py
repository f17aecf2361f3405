from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from harness.judging.changes import compare
from harness.judging.comparison import Comparison, apart
from harness.judging.expected_failures import Expected
from harness.judging.speed import compare_speed
from harness.render.comparison import FORMATS
from harness.tables import build

ENTRY = build(
    Expected,
    {
        "architecture": "llama",
        "backend": "sdpa",
        "transformers": ">=5.1",
        "exception": "",
        "message": "boom",
        "side": "transformers",
        "why": "It goes boom.",
        "link": "https://example.org",
        "expires": date(2099, 1, 1),
    },
    "test",
)


@pytest.fixture
def comparison(cell_record):
    def make(entries=(), **changes):
        old = cell_record(probes={"cache_keyword": "past_key_values"})
        new = replace(cell_record(probes={"cache_keyword": "cache"}, release="5.1.0"), **changes)
        found = compare([old], [new], entries)
        return Comparison("5.0.0", "5.1.0", found, compare_speed(found))

    return make


@pytest.mark.parametrize(
    ("changes", "entries", "status"),
    [
        ({"status": "fail", "message": "boom"}, (), 1),
        ({"status": "not-run"}, (), 1),
        ({"status": "fail", "message": "boom", "check_hash": "0" * 16}, (), 5),
        ({"status": "fail", "message": "boom"}, (ENTRY,), 3),
        ({"status": "fail", "message": "another"}, (ENTRY,), 1),
    ],
)
def test_exit_status(comparison, changes, entries, status):
    assert comparison(entries, **changes, checks={}).exit_status == status


def test_a_slow_down_alone_has_a_status_of_its_own(comparison):
    found = comparison()
    assert found.exit_status == 0
    assert replace(found, speed=replace(found.speed, verdict="slower")).exit_status == 4


def test_text_gives_cause_side_probes_and_the_line_to_run(comparison):
    text = FORMATS["text"](comparison((ENTRY,), status="fail", message="boom", checks={}))
    assert text.startswith("5.0.0 -> 5.1.0: 1 regressed; 1 known failure\n")
    assert "pass, now fail: It goes boom. (message: boom)" in text
    assert "side: transformers (known" in text
    assert "probe cache_keyword: past_key_values -> cache" in text
    assert "--releases 5.1.0 --arch llama --attn sdpa --device cpu --force" in text
    assert "speed: not comparable" in text


def test_markdown_makes_what_a_record_says_inert(comparison):
    hostile = "<script>x</script> | **b** @somebody\n# no"
    text = FORMATS["md"](comparison(status="fail", message=hostile, checks={}))
    assert "<script>" not in text
    assert "@somebody" not in text
    assert "\\| \\*\\*b\\*\\*" in text


def test_what_cannot_be_compared_is_a_line_for_each_reason(cell_record):
    names = ("llama", "qwen2", "mistral")
    other = {"release": "5.1.0", "check_hash": "0" * 16}
    old = [cell_record(architecture=name) for name in names]
    old += [cell_record(architecture=name, device="cuda") for name in names]
    new = [cell_record(architecture=name, **other) for name in names[1:]]
    new.append(cell_record(status="crash", **other))
    changes = compare(old, new)
    found = Comparison("5.0.0", "5.1.0", changes, compare_speed(changes))
    assert apart(changes) == [
        "3 cells cannot be compared: measured by other checks or another recipe; "
        "1 of them with another status than before",
        "3 cells cannot be compared: 5.1.0 was not measured on cuda",
    ]
    for style in ("text", "md"):
        text = FORMATS[style](found)
        assert "mistral" not in text
        assert all(line in text for line in apart(changes))
    assert len(json.loads(FORMATS["json"](found))["changes"]) == 6


def test_json_is_for_programs(comparison):
    found = json.loads(FORMATS["json"](comparison(status="fail", message="boom", checks={})))
    assert found["exit_status"] == 1
    (change,) = found["changes"]
    assert (change["kind"], change["before"], change["after"]) == ("regressed", "pass", "fail")
    assert change["probes"] == {"cache_keyword": ["past_key_values", "cache"]}
    assert found["speed"]["verdict"] == "not comparable"
