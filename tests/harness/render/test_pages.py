from __future__ import annotations

import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import get_type_hints

import pytest

from harness.records import CheckResult, Record
from harness.render.pages import figure, render
from harness.render.tables import Order

HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{ 7*7 }}{% raw %}\n"
    "| a | b |\n# heading\n[click](javascript:alert(1)) ![x](http://evil.example/x.png) `code`\n"
    "<!-- \x1b[31m\x00 --> http://evil.example @someone"
)


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value)
            if name == "popovertarget":
                self.targets.append(value)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def pages(tmp_path):
    def make(records, order=None):
        return [path.read_text("utf-8") for path in render(records, tmp_path, order)]

    return make


def test_hostile_strings_add_no_tag_and_no_attribute_to_the_page(pages, record):
    def filled(text):
        strings = [name for name, kind in get_type_hints(Record).items() if kind is str]
        check = CheckResult(text, {text: text}, 1.0, text, text, text)
        tables = {"checks": {text: check}, "probes": {text: text}, "versions": {text: text}}
        return record(**dict.fromkeys((*strings, "status"), text), **tables)

    got, want = (Tags(pages([filled(text)])[1]) for text in (HOSTILE, "calm"))
    assert got.tags == want.tags
    assert got.attributes == want.attributes
    assert "<script>alert(1)" in got.text


def test_hostile_strings_stay_text_in_markdown(pages, record):
    markdown, _ = pages([record(status="fail", message=HOSTILE, architecture=HOSTILE)])
    calm, _ = pages([record(status="fail", message="calm", architecture="calm")])
    assert markdown.count("\n") == calm.count("\n")
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert not re.search(r"(?<!\\)\[click", markdown)
    assert "http://" not in markdown
    assert "@someone" not in markdown
    assert "\x1b" not in markdown

    def bars(text):
        return len(re.findall(r"(?<!\\)\|", text))

    assert bars(markdown) == bars(calm)


def test_the_page_needs_no_network(pages, three_releases):
    _, html = pages(three_releases)
    assert "http" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)
    assert not {"link", "img", "iframe"} & set(Tags(html).tags)
    assert "src" not in Tags(html).attributes


def test_every_cell_opens_its_own_details(pages, three_releases):
    found = Tags(pages(three_releases)[1])
    assert len(found.ids) == len(set(found.ids))
    assert set(found.targets) <= set(found.ids)
    assert len(set(found.targets)) == len(three_releases)


def test_the_page_says_how_to_run_a_cell_again(pages, record):
    line = "tox -e matrix -- --releases 5.0.0 --arch llama --attn sdpa"
    assert f"{line}</pre>" in pages([record()])[1]
    assert f"{line} --device cuda</pre>" in pages([record(device="cuda")])[1]


def test_the_order_of_records_does_not_change_the_pages(pages, three_releases):
    order = Order(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))
    first = pages(three_releases, order)
    shuffled = random.Random(0).sample(three_releases, len(three_releases))
    assert pages(shuffled, order) == first


def test_times_do_not_change_the_markdown(pages, three_releases):
    first, _ = pages(three_releases)
    later = {"seconds": 9.0, "cpu_seconds": 9.0, "time": "2027-01-01T00:00:00Z"}
    assert pages([replace(made, **later) for made in three_releases])[0] == first


def test_no_records_is_an_error_that_says_what_to_do(pages):
    with pytest.raises(ValueError, match="tox -e matrix"):
        pages([])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000123456, "0.0001235"),
        (True, "yes"),
        (None, "none"),
        ([1.0, 2.0, 3.0, 4.0, 100.0], "5 values, median 3"),
        ({"a": 1.5}, "a 1.5"),
        ("text", "text"),
    ],
)
def test_figures_are_short(value, text):
    assert figure(value) == text
