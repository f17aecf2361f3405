from __future__ import annotations

from harness.judging.changes import compare
from harness.render.stock import MOST, page, pages
from harness.stock.differences import Difference
from harness.stock.store import write


def test_a_page_names_cells_that_changed_with_their_backends(cell_record):
    before = [cell_record(release="5.20.2", backend=b) for b in ("eager", "sdpa")]
    after = [cell_record(release="5.21.1", backend="eager")]
    after.append(cell_record(release="5.21.1", backend="sdpa", status="fail"))
    text = page("5.20.2", "5.21.1", compare(before, after), [])
    assert "# What changed for models in transformers 5.21.1\n\nSince 5.20.2." in text
    assert "## Worse answers" in text
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert line.startswith(f"- {after[0].architecture} (sdpa on cpu)")


def test_architectures_that_changed_alike_are_one_line(cell_record):
    sides = [
        [cell_record(release=r, architecture=a, status=s) for a in ("gemma2", "llama")]
        for r, s in (("5.0.0", "fail"), ("5.1.0", "pass"))
    ]
    text = page("5.0.0", "5.1.0", compare(*sides), [])
    (line,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert line.startswith("- gemma2, llama (")


def test_where_nothing_changed_the_page_says_so(cell_record):
    same = [cell_record(release=release) for release in ("5.0.0", "5.1.0")]
    text = page("5.0.0", "5.1.0", compare(same[:1], same[1:]), [])
    assert "Every cell of the matrix is as it was." in text
    assert "## Interfaces" not in text


def test_types_that_changed_alike_are_one_line_and_long_lists_are_cut():
    alike = [Difference(t, f"layer {t}Layer", "without a|b") for t in ("gemma", "llama")]
    many = [Difference("caches", f"C{n}", "new") for n in range(MOST + 2)]
    text = page("5.0.0", "5.1.0", [], [*alike, *many])
    assert "- gemma, llama: layers: without a\\|b" in text
    assert "- and 2 more: `tox -e harness -- diff`" in text


def test_of_many_parameters_that_come_together_one_is_named():
    many = [Difference("gemma3", f"parameter tower.{n}", "new") for n in range(5)]
    text = page("5.0.0", "5.1.0", [], [*many, Difference("gemma3", "parameter head", "gone")])
    assert "- gemma3: 5 parameters: new, such as tower.0\n" in text
    assert "- gemma3: parameter head: gone\n" in text


def test_only_releases_with_a_snapshot_and_one_before_have_a_page(tmp_path, cell_record):
    order = ["5.0.0", "5.1.0", "5.2.0"]
    for release in order[1:]:
        write(release, {"attention: eager": "there"}, tmp_path / "stock")
    made = pages(tmp_path, [cell_record(release=r) for r in order], order, [])
    assert list(made) == [tmp_path / "stock" / "5.2.0.md"]


def test_a_page_names_who_answers_otherwise_and_says_where_all_is_as_it_was():
    off = [Difference("logits", name, "off by 0.3") for name in ("phi", "phi with a cache")]
    text = page("5.0.0", "5.1.0", [], off)
    assert "## Token ids\n\nAll are as they were.\n" in text
    assert "## Golden logits\n\n- phi, phi with a cache: off by 0.3\n" in text
