from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, get_type_hints
from xml.etree import ElementTree

import pytest

from harness.judging.expected_failures import judge
from harness.records import CheckResult, Record
from harness.render.frames import Rows, load_rows
from harness.render.pages import documents
from tests.full_matrix import full_matrix

HOSTILE = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{ 7*7 }}\n"
    "| a | b |\n# heading\n[click](javascript:alert(1)) ![x](http://evil.example/x.png) `code`\n"
    "<!-- \x1b[31m\x00 --> http://evil.example @someone \u202egnp.exe"
)
ORDER = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


class Tags(HTMLParser):
    """Every tag and attribute of a page, its links, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)

    def handle_data(self, data):
        self.text += data
        if self.ids[-1:] == ["data"] and self.tags[-1] == "script" and not self.data:
            self.data = data


def filled(record, text):
    """A record with the same text in every place that takes one."""
    strings = [name for name, kind in get_type_hints(Record).items() if kind is str]
    check = CheckResult(text, {text: text}, 1.0, message=text, exception=text, fingerprint=text)
    tables = {"checks": {text: check}, "probes": {text: text}, "versions": {text: text}}
    return record(**dict.fromkeys((*strings, "status"), text), **tables)


def test_hostile_strings_add_no_tag_and_no_attribute_to_the_page(record):
    got, want = (
        Tags(documents([filled(record, text)])["compatibility.html"]) for text in (HOSTILE, "calm")
    )
    assert got.tags == want.tags
    assert got.attributes == want.attributes
    assert "<script>alert(1)" in got.text
    assert "\u202e" not in got.text
    assert r"\u202egnp.exe" in json.loads(got.data)["message"]["values"][0]


def test_a_comment_cannot_hide_the_end_of_the_data(record):
    page = documents([record(message="<!--<script>")])["compatibility.html"]
    assert "<!--<script>" not in page
    assert json.loads(Tags(page).data)["message"]["values"] == ["<!--<script>"]


def test_hostile_strings_stay_text_in_markdown(record):
    hostile = record(status="fail", message=HOSTILE, architecture=HOSTILE, family=HOSTILE)
    markdown = documents([hostile])["compatibility.md"]
    calm = record(status="fail", message="calm", architecture="calm", family="calm")
    calm_markdown = documents([calm])["compatibility.md"]
    assert markdown.count("\n") == calm_markdown.count("\n")
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert not re.search(r"(?<!\\)\[click", markdown)
    assert "http://" not in markdown
    assert "@someone" not in markdown
    assert "\x1b" not in markdown
    assert "\u202e" not in markdown

    def bars(text):
        return len(re.findall(r"(?<!\\)\|", text))

    assert bars(markdown) == bars(calm_markdown)


def test_hostile_strings_stay_text_in_the_json_and_the_badge(record):
    made = documents([filled(record, HOSTILE)])
    (cell,) = json.loads(made["compatibility.json"])["cells"]
    assert cell["architecture"] == HOSTILE.replace("\x1b", r"\u001b").replace(
        "\x00", r"\u0000"
    ).replace("\u202e", r"\u202e")
    assert len(ElementTree.fromstring(made["compatibility.svg"]).findall(".//*")) == 6


def test_the_page_needs_no_network(three_releases):
    page = documents(three_releases)["compatibility.html"]
    found = Tags(page)
    assert not {"link", "img", "iframe"} & set(found.tags)
    assert "src" not in found.attributes
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r"url\(|@import|fetch\(|innerHTML|import\(", page)


def test_every_cell_has_an_anchor_that_a_link_names(three_releases):
    found = Tags(documents(three_releases)["compatibility.html"])
    assert len(found.ids) == len(set(found.ids))
    cells = [link for link in found.links if link.startswith("#") and "@" in link]
    assert {link[1:] for link in cells} <= set(found.ids)
    assert len(set(cells)) == len(three_releases)


def test_the_page_reads_without_scripts(three_releases):
    text = Tags(documents(three_releases, ORDER)["compatibility.html"]).text
    assert "gemma2 needs eager on 5.23.0" in text
    assert "pass up to 5.1.0; known failure on 5.23.0" in text


def test_a_row_names_its_model_type_and_checkpoints_that_are_like_it(three_releases):
    named = {"model_types": {"llama": "llama"}, "examples": {"llama": ("meta/Llama-9", "x/y")}}
    pages = documents(three_releases, Rows(**named))
    assert "| llama | llama | meta/Llama-9, x/y |" in pages["compatibility.md"]
    assert 'data-checkpoints="meta/Llama-9 x/y"' in pages["compatibility.html"]
    assert "llama: Llama-9" in Tags(pages["compatibility.html"]).text


def test_the_page_has_what_the_sweep_knows_of_other_types(three_releases):
    swept = {"release": "5.24.0", "types": {"falcon": ["bit-equal", ""]}, "meanings": {}}
    page = documents(three_releases, ORDER, swept=swept)["compatibility.html"]
    assert json.loads(Tags(page).data)["swept"] == swept


def test_a_cause_links_to_its_source(record):
    made = record(
        architecture="deepseek_v2-grouped",
        status="reference-broken",
        exception="AttributeError",
        message="'DeepseekV2Moe' object has no attribute 'num_experts'",
        checks={},
    )
    rows = load_rows()
    pages = documents([judge(made, rows.expected)], rows)
    assert re.search(r"\[transformers\]\(https://github\.com/[^)]+\)", pages["compatibility.md"])
    links = Tags(pages["compatibility.html"]).links
    assert any(link.startswith("https://github.com/") for link in links)


def test_what_changed_is_shown_if_it_is_known(three_releases):
    line = {
        "kind": "regressed",
        "cells": {"llama<b>": ["5.1.0"]},
        "backend": "sdpa",
        "device": "cpu",
        "before": "pass",
        "after": "fail",
        "why": "it broke",
        "side": "rabbitllm",
    }
    changed: dict[str, Any] = {
        "before": "then",
        "after": "now",
        "counts": {"regressed": 1, "same": 17},
    }
    changed |= {"changes": [line], "apart": ["2 cells cannot be compared: other <checks>"]}
    page = documents(three_releases, ORDER, changed)["compatibility.html"]
    assert "1 regressed, 17 same." in page
    assert "2 cells cannot be compared: other &lt;checks&gt;." in page
    assert "llama&lt;b&gt;" in page
    assert "What changed" not in documents(three_releases, ORDER)["compatibility.html"]


def test_the_order_of_records_changes_nothing(three_releases):
    shuffled = random.Random(0).sample(three_releases, len(three_releases))
    assert documents(shuffled, ORDER) == documents(three_releases, ORDER)


def test_times_do_not_change_the_markdown(three_releases):
    later = {"seconds": 9.0, "cpu_seconds": 9.0, "time": "2027-01-01T00:00:00Z"}
    again = documents([replace(made, **later) for made in three_releases])
    assert again["compatibility.md"] == documents(three_releases)["compatibility.md"]


def test_no_records_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="tox -e matrix"):
        documents([])


def test_the_whole_matrix_fits():
    rows = load_rows()
    made = documents([judge(record, rows.expected) for record in full_matrix()], rows)
    assert len(made["compatibility.html"].encode()) < 2_000_000
    assert made["compatibility.md"].count("\n") < 8 * len({c.architecture for c in full_matrix()})
    page = Tags(made["compatibility.html"])
    assert len(page.ids) == len(set(page.ids)) > 2800
