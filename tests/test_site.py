"""The site that `make docs` builds: whole, strict, without other hosts, and usable in a browser that opens it as a file."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import axe_serious, screenshot, scrolls_sideways

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site; a broken link or anchor ends the build."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "nbconvert", "nbclient", "ipykernel", "onnx"):
        pytest.importorskip(package, reason="needs requirements-docs.txt")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_pages_and_search(site):
    text = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "tasks.html", "contributing.html", "tour/start.html", "api/m2ae.html"} <= set(text)
    assert 'id="m2ae.create_model"' in text["api/m2ae.html"] and "Raises" in text["api/m2ae.html"]
    ops = importlib.import_module("extensions.m2ae_ops").__all__
    assert [op for op in ops if not re.search(rf'id="m2ae_ops\.({op}\.)?{op}"', text["api/ops.html"])] == []
    assert "same class" in text["tour/start.html"] and len(list((site / "tour").rglob("*.png"))) >= 10
    assert not (site / "hooks").exists()
    loaded = r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?:|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*https?:"
    assert [name for name, page in text.items() if re.search(loaded, page)] == []
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("chamfer_loss" in entry["text"] + entry["title"] for entry in index["docs"])


@pytest.mark.parametrize("name", ["index.html", "api/m2ae.html", "tour/start.html"])
def test_a_page_in_a_browser(site, name, browser_page):
    page = browser_page(site / name)
    assert axe_serious(page) == []
    assert not scrolls_sideways(browser_page(site / name, width=390, height=800))
    screenshot(page, f"site-{Path(name).stem}")


def test_search_finds_a_word(site, browser_page):
    page = browser_page(site / "index.html")
    page.locator("[data-md-component=search-query]").fill("few-shot")
    page.locator(".md-search-result__link").first.wait_for()
    assert "few-shot" in page.locator(".md-search-result__list").inner_text().lower()
