from __future__ import annotations

import pytest

from harness.render.readme import families_of, marks, with_part

BEGIN, END = marks("families")
SECTION = "| family |\n| --- |\n| Llama |\n\nA note."
REPORT = f"# Compatibility\n\n## Families\n\n{SECTION}\n\n## On cpu\n\n| x |\n"


def test_the_section_stands_between_the_marks():
    text = f"# Name\n\n{BEGIN}\nold\n{END}\n\nrest\n"
    want = f"# Name\n\n{BEGIN}\n\n{SECTION}\n\n{END}\n\nrest\n"
    assert with_part(text, "families", families_of(REPORT), "README.md") == want
    assert with_part(want, "families", families_of(REPORT), "README.md") == want


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_document_without_its_marks_is_named(text):
    with pytest.raises(ValueError, match=r"README\.md needs one line <!-- families: begin"):
        with_part(text, "families", families_of(REPORT), "README.md")
