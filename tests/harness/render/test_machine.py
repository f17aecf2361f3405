from __future__ import annotations

import json
from importlib.resources import files
from typing import get_args

import jsonschema
import pytest

from harness.matrix import ROOT, Device
from harness.records.record import Status
from harness.render.frames import Rows, cells
from harness.render.machine import SCHEMA, badge, compatibility

ROWS = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def test_cells_are_lines_in_the_promised_order(record, three_releases):
    cuda = record(architecture="gemma2", family="Gemma 2 / 3", device="cuda", release="5.1.0")
    text = compatibility(cells([cuda, *three_releases], ROWS))
    found = json.loads(text)
    assert found["schema"] == 1
    assert text.endswith("\n")
    keys = [
        (c["device"], c["attention"], c["transformers"], c["architecture"]) for c in found["cells"]
    ]
    places = [("cpu", "cuda"), ("eager", "sdpa"), ("5.0.0", "5.1.0", "5.23.0"), ROWS.architectures]
    ranked = [tuple(p.index(part) for p, part in zip(places, key, strict=True)) for key in keys]
    assert ranked == sorted(ranked)
    assert len(keys) == len(set(keys)) == 19
    assert sum('"status"' in line for line in text.splitlines()) == 19


def test_the_table_is_as_the_published_schema_has_it(three_releases):
    schema = json.loads(files("rabbitllm").joinpath("compatibility.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    table = jsonschema.Draft202012Validator(schema)
    found = json.loads(compatibility(cells(three_releases, ROWS)))
    table.validate(found)
    table.validate(json.loads((ROOT / "reports" / "compatibility.json").read_text("utf-8")))
    of_cell = schema["properties"]["cells"]["items"]["properties"]
    assert tuple(of_cell["status"]["enum"]) == get_args(Status)
    assert tuple(of_cell["device"]["enum"]) == get_args(Device)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    found["cells"][0]["status"] = "good"
    with pytest.raises(jsonschema.ValidationError):
        table.validate(found)


def test_only_what_does_not_pass_has_a_reason_of_one_short_line(three_releases):
    found = json.loads(compatibility(cells(three_releases, ROWS)))["cells"]
    (failing,) = (cell for cell in found if cell["status"] != "pass")
    assert (failing["architecture"], failing["status"]) == ("gemma2", "xfail")
    assert failing["reason"] == "ValueError: no sdpa"
    assert not any("reason" in cell for cell in found if cell["status"] == "pass")


def test_a_reason_is_at_most_160_characters(record):
    frame = cells([record(status="fail", message="x" * 1000, checks={})])
    (cell,) = json.loads(compatibility(frame))["cells"]
    assert len(cell["reason"]) == 160


def test_ranges_are_in_words(three_releases):
    found = json.loads(compatibility(cells(three_releases, ROWS)))["ranges"]
    verdicts = {(r["architecture"], r["attention"]): r["verdict"] for r in found}
    assert verdicts["llama", "sdpa"] == "pass on all"
    assert verdicts["gemma2", "sdpa"] == "pass up to 5.1.0; known failure on 5.23.0"
    assert len(found) == 6


def test_what_ran_uncompiled_is_not_called_by_the_name_that_users_give(record):
    rows = Rows(uncompiled={"flex_attention": ("cpu",)})
    frame = cells([record(backend="flex_attention"), record(backend="eager")], rows)
    found = json.loads(compatibility(frame))
    for part in ("cells", "ranges"):
        assert [row["attention"] for row in found[part]] == ["eager", "uncompiled flex_attention"]
    assert badge(frame)["title"] == (
        "transformers 5.0.0: 1 of 1 families work, with eager or uncompiled flex_attention"
    )


def test_the_badge_counts_families_on_the_newest_release(record):
    records = [record(), record(release="5.1.0")]
    assert badge(cells(records))["message"] == "1 of 1 families work"
    broken = record(architecture="qwen", family="QWen v1", release="5.1.0", status="crash")
    said = badge(cells([*records, broken]))
    assert said["label"] == "transformers 5.1.0"
    assert (said["message"], said["good"]) == ("1 of 2 families work", False)
    unrun = badge(cells([record(status="not-run")]))
    assert (unrun["message"], unrun["good"]) == ("not measured", False)
    assert unrun["title"] == "transformers 5.0.0: not measured"
