"""Each diagram of the documentation is drawn by Mermaid itself, in a real Chromium with no network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT

try:
    from playwright.sync_api import Error, Page, sync_playwright
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("playwright is not installed; pip install playwright", allow_module_level=True)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIAGRAMS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DRAW = "async (text) => { await mermaid.parse(text); return (await mermaid.render('diagram', text)).svg; }"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    script, chromium = _find_mermaid(), shutil.which("chromium") or shutil.which("chromium-browser")
    if script is None or chromium is None:
        missing = "chromium" if chromium is None else "mermaidx, which has Mermaid's script in it,"
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing")
        pytest.skip(f"{missing} is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(offline=True)
        page.add_script_tag(path=script)
        page.evaluate("mermaid.initialize({ startOnLoad: false })")
        yield page
        browser.close()


def _find_mermaid() -> Path | None:
    """The published script, in a package for Python: the test has the locks and hashes that all others have."""
    spec = importlib.util.find_spec("mermaidx")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "assets" / "mermaid.js"


@pytest.mark.parametrize("text", DIAGRAMS)
def test_diagram_is_drawn(page: Page, text: str) -> None:
    assert page.evaluate(DRAW, text).startswith("<svg")


@pytest.mark.parametrize("text", ["flowchart LR\n  a -->\n", "sequenceDiagram\n  alt a\n", "flowchrt LR\n  a --> b\n"])
def test_mistake_is_found(page: Page, text: str) -> None:
    with pytest.raises(Error):
        page.evaluate(DRAW, text)
