from __future__ import annotations

import pytest

from harness.render.markdown import markdown_link


def test_a_link_shows_its_text():
    link = markdown_link("the *source*", "https://example.com/a_b?c=d#e")
    assert link == r"[the \*source\*](https://example.com/a_b?c=d#e)"


def test_an_address_cannot_end_its_link():
    link = markdown_link("x", "https://example.com/) [y](https://evil.example")
    assert link == "[x](https://example.com/%29%20%5By%5D%28https://evil.example)"


@pytest.mark.parametrize("address", ["javascript:alert(1)", "http://example.com", "notes.txt", ""])
def test_only_https_is_a_link(address):
    assert "](" not in markdown_link("text", address)
