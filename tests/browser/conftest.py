"""The report of the whole matrix in the system's Chromium, if there is one."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from harness.judging.expected_failures import judge
from harness.render import changes
from harness.render.frames import load_rows
from harness.render.pages import documents
from tests.full_matrix import full_matrix
from tests.patience import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def chromium():
    """The browser, without a window.

    Not for the session: as long as it is open an event loop runs, and other tests start their own.
    """
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian's package is called chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The page of the whole matrix, as a file."""
    rows = load_rows()
    records = full_matrix()
    later = [replace(r, status="pass") if r.architecture == "chatglm3" else r for r in records]
    changed = changes.contents(records, later, rows.expected)
    swept = {
        "release": "5.24.0",
        "types": {
            "falcon": ["bit-equal", ""],
            "llama": ["bit-equal", ""],
            "rwkv": ["fails", "it divides weights in place"],
        },
        "meanings": {"bit-equal": "the bits are stock's"},
    }
    judged = [judge(record, rows.expected) for record in records]
    texts = documents(judged, rows, changed, swept=swept)
    path = tmp_path_factory.mktemp("report") / "compatibility.html"
    path.write_text(texts["compatibility.html"], encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(chromium):
    """Open a page in a context of its own; what it says on the console, or fetches, is an error."""
    said: list[str] = []
    contexts = []

    def make(address, **options):
        context = chromium.new_context(**options)
        context.set_default_timeout(1_000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: said.append(request.url) if request.url != address.split("#")[0] else 0,
        )
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def page(opened, report):
    return opened(report)
