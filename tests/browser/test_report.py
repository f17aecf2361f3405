from __future__ import annotations

import pytest

from harness.matrix import load_matrix
from harness.records import CheckResult, Record
from harness.render.pages import documents
from tests.patience import PATIENCE

ROWS = len(load_matrix().architectures)
CELL = "gemma2@5.23.0/sdpa/cpu"
HOSTILE = (
    "</script></pre><img src=x onerror=alert(1)><svg onload=alert(1)>\"' onmouseover=alert(1) "
    "javascript:alert(1) {{7*7}} \u202egnp.exe\u0000\x1b[31m <!--"
)


def shown(page):
    """The architectures in the matrix that is shown."""
    rows = page.locator(".run-on.chosen tr[data-text]:visible th")
    return [text.split()[0] for text in rows.all_inner_texts()]


def cell(page, name):
    return page.locator(f'[id="{name}"]')


def focused(page, name):
    """Wait until a cell has the focus, and fail if it does not get it."""
    api = pytest.importorskip("playwright.sync_api")
    api.expect(cell(page, name)).to_be_focused(timeout=1_000 * PATIENCE)


def test_the_page_opens_with_what_works_and_paints_at_once(page):
    assert page.locator(".lead").first.inner_text().startswith("On cpu, all 13 families work")
    assert page.locator("h2:visible").all_inner_texts() == [
        "Families",
        "In words",
        "Matrix",
        "What changed",
        "What does not pass",
        "How to read it",
    ]
    changed = page.locator(".changes tbody tr").all_inner_texts()
    assert [text.split()[:2] for text in changed] == [["fixed", "chatglm3"]]


def test_the_switch_shows_one_backend(page):
    assert page.locator(".run-on:visible h3").all_inner_texts() == ["sdpa on cpu"]
    page.get_by_role("radio", name="uncompiled flex_attention on cpu").check()
    cell(page, "qwen2@5.23.0/flex_attention/cpu").click()
    title = page.locator("#cell-title").inner_text()
    assert title.endswith("transformers 5.23.0, uncompiled flex_attention on cpu")
    assert page.locator("[aria-current]").inner_text().startswith("✓ uncompiled flex_attention on")
    assert "--attn flex_attention" in page.locator(".command").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="flash_attention_2 on cuda").check()
    assert page.locator(".run-on:visible h3").all_inner_texts() == ["flash_attention_2 on cuda"]
    assert page.locator(".run-on:visible thead th").all_inner_texts()[2].split() == [
        "5.24.0",
        "newest",
    ]


def test_filters_narrow_the_rows_and_say_how_many_are_left(page):
    page.get_by_label("Does my model work?").fill("QWEN moe")
    assert shown(page) == ["qwen3_moe", "qwen3_moe-fp8", "qwen2_moe"]
    assert page.locator("output").inner_text() == f"3 of {ROWS} architectures shown"
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Family").select_option("Mistral")
    assert shown(page) == ["mistral"]
    page.get_by_label("Family").select_option("")
    page.get_by_label("Status").select_option("reference-broken")
    assert shown(page) == ["gemma2", "deepseek_v2-grouped"]
    page.get_by_role("radio", name="eager on cpu").check()
    assert shown(page) == ["deepseek_v2-grouped"]
    page.get_by_role("button", name="Clear").click()
    assert len(shown(page)) == ROWS
    assert page.locator(".run-on:visible h3").inner_text() == "eager on cpu"
    page.get_by_label("Does my model work?").fill("no such model")
    assert shown(page) == []
    assert page.locator("output").inner_text() == f"0 of {ROWS} architectures shown"


def answered(page, typed):
    """What the page says of a model, in lines."""
    page.get_by_label("Does my model work?").fill(typed)
    return page.locator(".answer li").all_inner_texts()


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("Qwen2.5-7B-Instruct", ["qwen2", "qwen2.5-yarn"]),
        ("Qwen/Qwen2.5-14B-Instruct", ["qwen2", "qwen2.5-yarn"]),
        ("Qwen3-14B", ["qwen3"]),
        ("Qwen3-235B-A22B-Instruct-2507", ["qwen3_moe", "qwen3_moe-fp8"]),
        ("meta-llama/Llama-3.1-70B", ["llama3.2"]),
        ("phi3", ["phi3-longrope", "phi4", "phi4-mini", "phi3"]),
        ("Phi3ForCausalLM mini", ["phi3-longrope", "phi4-mini", "phi3"]),
    ],
)
def test_a_model_is_found_by_its_repository_or_type(page, typed, rows):
    said = answered(page, typed)
    assert [line.split()[0] for line in said] == rows
    assert all(line.endswith("(sdpa on cpu)") for line in said)
    assert shown(page) == rows


@pytest.mark.parametrize("typed", ["falcon", "tiiuae/falcon-7b", "Falcon-40B-instruct"])
def test_of_a_model_without_a_row_the_page_says_what_the_sweep_knows(page, typed):
    swept, ask = answered(page, typed)
    assert (
        "the model type falcon, built small, on a CPU with transformers 5.24.0: bit-equal" in swept
    )
    assert ask.endswith(f"rabbitllm plan {typed if '/' in typed else 'REPO'}")


def test_of_a_type_that_fails_in_the_sweep_the_page_says_why(page):
    assert "fails, it divides weights in place" in answered(page, "rwkv-4-169m")[0]


def test_of_a_model_that_nobody_tried_the_page_says_how_to_ask(page):
    unknown, ask = answered(page, "some/Thing-7B")
    assert unknown == "Neither the matrix nor the sweep has a model of that name."
    assert ask.endswith("rabbitllm plan some/Thing-7B")
    assert answered(page, "") == []


@pytest.mark.parametrize("size", [(375, 667), (1000, 700), (1600, 900)])
def test_the_page_opens_with_the_colours_of_the_family_table(opened, report, size):
    page = opened(report, viewport={"width": size[0], "height": size[1]})
    coloured = page.locator(".families td:is(.good, .known, .bad, .none)")
    boxes = [cell.bounding_box() for cell in coloured.all()]
    assert sum(box["y"] + box["height"] < size[1] for box in boxes) >= 2


@pytest.mark.parametrize("width", [375, 1000, 1600])
def test_what_is_cut_off_at_the_edge_has_a_sign(opened, report, width):
    page = opened(report, viewport={"width": width, "height": 900})
    for box in page.locator(".box:visible").all():
        wide = box.locator(".wide").evaluate("wide => wide.scrollWidth > wide.clientWidth + 1")
        sign = box.evaluate("box => getComputedStyle(box, '::after').content")
        assert (sign != "none") == wide


def test_the_sign_goes_at_the_end(opened, report):
    page = opened(report, viewport={"width": 1000, "height": 900})
    box = page.locator(".run-on.chosen .box.more")
    assert box.count() == 1
    box.locator(".wide").evaluate("wide => wide.scrollTo(wide.scrollWidth, 0)")
    box.wait_for(state="detached")


def test_no_pill_runs_into_the_text_beside_it(page):
    for entry in page.locator(".legend div").all():
        pill, text = (entry.locator(part).bounding_box() for part in (".badge", "dd"))
        assert pill["x"] + pill["width"] <= text["x"]


def test_a_cell_opens_its_drawer_and_gives_the_focus_back(page):
    cell(page, CELL).click()
    drawer = page.get_by_role("dialog")
    assert drawer.get_by_role("heading", level=2).inner_text().startswith("gemma2")
    text = drawer.inner_text()
    for words in (
        "stock fails",
        "The fault of transformers: Gemma 2 softcaps",
        "max abs 0",
        "NMSE 0",
        "layer returns",
        "2.13.0+cpu",
        "cpu x86_64 AVX512 2 cores",
        "2026-11-24",
        "Stale: measured with an older engine",
        "tox -e matrix -- --force --releases 5.23.0 --arch gemma2 --attn sdpa",
    ):
        assert words in text
    link = drawer.get_by_role("link", name="Source")
    assert link.get_attribute("href").startswith("https://github.com/")
    assert page.url.endswith(f"#{CELL}")
    page.keyboard.press("Escape")
    focused(page, CELL)
    assert not drawer.is_visible()
    assert "#" not in page.url


def test_the_drawer_shows_speed_of_the_row_and_leads_to_its_neighbours(page):
    cell(page, "qwen3@5.24.0/eager/cuda").evaluate("link => location.hash = link.hash")
    drawer = page.get_by_role("dialog")
    drawer.wait_for()
    assert drawer.locator("svg.chart circle.streamed").count() == 4
    assert "of stock" in drawer.inner_text()
    assert "--device cuda" in drawer.inner_text()
    drawer.get_by_role("link", name="5.23.0").click()
    assert "transformers 5.23.0, eager on cuda" in drawer.inner_text()
    drawer.get_by_role("link", name="sdpa on cpu").click()
    assert "transformers 5.23.0, sdpa on cpu" in drawer.inner_text()
    page.go_back()
    assert "transformers 5.23.0, eager on cuda" in drawer.inner_text()
    drawer.get_by_role("button", name="Close").click()
    assert not drawer.is_visible()


@pytest.mark.parametrize("name", [CELL, "llama@5.24.0/flash_attention_2/cuda"])
def test_an_address_with_a_cell_opens_it(opened, report, name):
    page = opened(f"{report}#{name}")
    drawer = page.get_by_role("dialog")
    assert drawer.is_visible()
    architecture, rest = name.split("@")
    release, backend, device = rest.split("/")
    assert drawer.get_by_role("heading", level=2).inner_text().split() == [
        *(architecture, "transformers", f"{release},", backend, "on", device)
    ]
    assert page.locator(".run-on:visible h3").inner_text() == f"{backend} on {device}"
    page.keyboard.press("Escape")
    focused(page, name)


def test_keys_move_between_cells_and_open_one(page):
    cell(page, "llama@5.24.0/sdpa/cpu").focus()
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "llama3.2@5.23.0/sdpa/cpu"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.id") == "llama3.2@5.0.0/sdpa/cpu"
    page.keyboard.press("Enter")
    assert "transformers 5.0.0" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.run-on')") is None
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "llama3.2@5.0.0/sdpa/cpu"


def test_headers_stay_in_sight(page):
    box = page.locator(".run-on.chosen .tall")
    box.evaluate("box => box.scrollTo(400, 600)")
    edge = box.bounding_box()
    column = page.locator(".run-on.chosen thead th").nth(2).bounding_box()
    row = cell(page, "phi@5.0.0/sdpa/cpu").locator("xpath=ancestor::tr/th").bounding_box()
    assert abs(column["y"] - edge["y"]) < 3
    assert abs(row["x"] - edge["x"]) < 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(opened, report, scheme):
    page = opened(report, color_scheme=scheme)
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map((text) => text.match(/\\d+/g).map(Number).reduce((sum, part) => sum + part))"
    )
    assert (ground > ink) == (scheme == "light")


def test_a_phone_shows_all_without_scrolling_the_page_sideways(opened, report):
    page = opened(f"{report}#{CELL}", viewport={"width": 375, "height": 700}, has_touch=True)
    width = "[document.documentElement.scrollWidth, document.querySelector('dialog').scrollWidth]"
    assert max(page.evaluate(width)) <= 375
    page.get_by_role("button", name="Close").click()
    newest = cell(page, "llama@5.24.0/sdpa/cpu")
    newest.scroll_into_view_if_needed()
    box = newest.bounding_box()
    assert box["x"] + box["width"] < 375
    assert box["height"] >= 24


def test_without_scripts_every_backend_is_there(opened, report):
    page = opened(report, java_script_enabled=False)
    assert page.locator(".run-on h3:visible").count() == 6
    assert not page.locator(".controls").is_visible()


def test_print_has_no_controls_and_no_boxes_that_scroll(opened, report):
    # A sheet across, less its margins.
    page = opened(report, viewport={"width": 1040, "height": 700})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1040
    assert not page.locator(".controls").is_visible()
    assert page.locator(".tall:visible").evaluate("box => box.scrollHeight <= box.clientHeight + 1")


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [("light", ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]), ("dark", ["wcag2aa"])],
)
def test_nothing_bars_people(opened, report, scheme, rules):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(report, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    # A few rows are as all are, and take seconds.
    page.get_by_label("Does my model work?").fill("gemma")
    whole = {"exclude": [[".run-on:not(.chosen)"], ["tr[hidden]"]]}
    checks = {"resultTypes": ["violations"], "runOnly": rules}
    for part in (whole, {"include": [["dialog"]]}):
        violations = axe.Axe().run(page, part, checks).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
        if not page.get_by_role("dialog").is_visible():
            cell(page, CELL).click()


def test_hostile_records_are_text(opened, tmp_path):
    check = CheckResult("fail", {HOSTILE: HOSTILE}, 0.1, message=HOSTILE, exception=HOSTILE)
    record = Record(
        architecture=HOSTILE,
        family=HOSTILE,
        family_class=HOSTILE,
        model_class=HOSTILE,
        dtype="float32",
        release=HOSTILE,
        backend=HOSTILE,
        device="cpu",
        status="fail",
        message=HOSTILE * 1000,
        exception=HOSTILE,
        explanation=HOSTILE,
        traceback=HOSTILE * 1000,
        stderr=HOSTILE,
        checks={HOSTILE: check},
        probes={HOSTILE: {HOSTILE: HOSTILE}},
        versions={HOSTILE: HOSTILE},
        hardware=HOSTILE,
        time=HOSTILE,
    )
    path = tmp_path / "page.html"
    path.write_text(documents([record])["compatibility.html"], encoding="utf-8")
    page = opened(path.as_uri())
    page.locator("a[data-cell]").click()
    drawer = page.get_by_role("dialog")
    for fold in drawer.locator("summary").all():
        fold.click()
    text = drawer.inner_text()
    assert "</script></pre><img src=x onerror=alert(1)>" in text
    assert "{{7*7}} \\u202egnp.exe\\u0000\\u001b[31m" in text
    assert "\u202e" not in page.content()
    assert page.locator("img, [onerror], [onload], [onmouseover]").count() == 0
    assert page.locator('a[href^="javascript"]').count() == 0
