"""The viewer of the report's page in headless Chromium: it draws, turns, restores a link, and can be used by all."""

import re
import time

import numpy as np
import pytest

from tests.browser import (
    axe_serious,
    click_canvas,
    drag_canvas,
    inked,
    pixels,
    screenshot,
    scrolls_sideways,
    settle,
    wait_until,
)
from tools.report.page import GalleryItem, write_report

CAMERA = "() => galleryView.items.map((item) => [item.yaw, item.pitch, item.zoom])"
KEEP_CONTEXT = """
  const get = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, options) {
    const made = get.call(this, kind, options);
    if (kind === "webgl2") window.context = made;
    return made;
  };"""


def torus(count: int, seed: int = 0) -> np.ndarray:
    a, b = np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, count))
    ring = 1 + 0.4 * np.cos(b)
    return np.stack([ring * np.cos(a), 0.4 * np.sin(b), ring * np.sin(a)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    points = torus(1024)
    items = [
        GalleryItem("torus", {"input": points, "rebuilt": torus(2048, 1)}, values={"input": points[:, 0]}, value_name="error"),
        GalleryItem("turned", {"input": points}, "z", frames={"input": [(f"epoch {i}", points[:, i]) for i in range(3)]}),
    ]  # fmt: skip
    return write_report(tmp_path_factory.mktemp("report"), config={"seed": 1}, gallery=items)


def changed(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before.astype(int) - after).mean())


def test_it_draws_turns_and_a_link_restores_the_view(report, browser_page):
    page = browser_page(report)
    first = pixels(page)
    assert inked(first) > 0.1 and page.evaluate("document.documentElement.dataset.renderer") == "2d"
    drag_canvas(page, across=120, down=30)
    turned = pixels(page)
    assert changed(first, turned) > 5 and changed(first, pixels(page, 1)) > 5  # clouds of a row turn together
    for key in ("ArrowLeft", "ArrowDown", "+"):
        page.keyboard.press(key)
    page.get_by_label("colour by").select_option("height")
    page.get_by_label("point size").fill("1.5")
    settle(page)
    shown, cameras = pixels(page), page.evaluate(CAMERA)
    assert changed(turned, shown) > 5 and cameras[0] != cameras[1]
    wait_until(page, "location.hash.includes('camera0') && location.hash.includes('size')")
    other = browser_page(report, fragment=page.evaluate("location.hash"))
    assert np.allclose(other.evaluate(CAMERA), cameras, atol=1e-3)
    other.wait_for_timeout(100)
    assert changed(shown, pixels(other)) < 1
    # All rows turn together when asked to, and 0 resets.
    page.get_by_label("turn all rows together").check()
    page.locator(".clouds").nth(1).focus()
    page.keyboard.press("ArrowUp")
    one, two = page.evaluate(CAMERA)
    assert one[:2] == two[:2] != cameras[0][:2]
    page.keyboard.press("0")
    assert page.evaluate(CAMERA)[0] == browser_page(report).evaluate(CAMERA)[0]


def test_webgl_and_the_plain_drawing_agree(report, browser_page):
    plain = browser_page(report, fragment="#2d", width=500)
    fast = browser_page(report, fragment="#webgl2", width=500, script=KEEP_CONTEXT)
    assert [page.evaluate("document.documentElement.dataset.renderer") for page in (plain, fast)] == ["2d", "webgl2"]
    one, two = pixels(plain), pixels(fast)
    assert inked(one) == pytest.approx(inked(two), abs=0.03) and inked(one) > 0.1
    assert changed(one, two) < 6 < changed(one, two[:, ::-1])
    # Without its context the page goes on in plain drawing, and with it again when it is restored.
    fast.evaluate(
        "() => { window.lose = context.getExtension('WEBGL_lose_context'); lose.loseContext(); galleryView.touch(); }"
    )
    wait_until(fast, "document.documentElement.dataset.renderer === '2d'")
    settle(fast)
    assert changed(one, pixels(fast)) < 1
    fast.evaluate("() => lose.restoreContext()")
    wait_until(fast, "galleryView.touch() || document.documentElement.dataset.renderer === 'webgl2'")
    settle(fast)
    assert changed(two, pixels(fast)) < 1
    fast.problems = [text for text in fast.problems if "CONTEXT_LOST" not in text]


def test_webgl_fills_the_canvases_of_a_narrow_page(report, browser_page):
    """They are smaller than a new canvas is wide, and larger than it is high: what it did not hold was black."""
    page = browser_page(report, fragment="#webgl2", width=320)
    assert page.evaluate("document.documentElement.dataset.renderer") == "webgl2"
    assert 150 < page.evaluate("document.querySelector('canvas').width") < 300
    assert not (pixels(page) == 0).all(-1).any()


def test_values_of_a_row_are_shown_one_after_another(report, browser_page):
    page = browser_page(report)
    row, label = page.locator(".item").nth(1), page.locator("#view-frame-label")
    assert label.text_content() == row.locator(".frame").text_content() == "epoch 2"
    last = pixels(page, 2)
    row.locator(".clouds").focus()
    page.keyboard.press(",")
    settle(page)
    assert label.text_content() == row.locator(".frame").text_content() == "epoch 1"
    assert changed(last, pixels(page, 2)) > 5
    wait_until(page, "location.hash === '#frame=1'")
    page.keyboard.press(".")
    settle(page)
    assert changed(last, pixels(page, 2)) < 0.1


def test_the_legend_follows_the_colours(report, browser_page):
    page = browser_page(report)
    legend, heights = page.locator(".item").first.locator(".ramp:visible"), page.locator("section > .ramp:visible")
    assert re.fullmatch(r"error: -1\.\d+1\.\d+", legend.text_content()) and heights.count() == 0
    page.get_by_label("colour by").select_option("height")
    assert heights.text_content().startswith("height, in the unit of the cloud: lowest")
    assert legend.text_content() == "height -0.4 to 0.4"
    page.get_by_label("colour by").select_option("cloud")
    assert legend.count() == heights.count() == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everybody_can_use_it(report, browser_page, dark):
    page = browser_page(report, dark=dark)
    assert not axe_serious(page)
    screenshot(page, f"report-{'dark' if dark else 'light'}")
    if dark:
        assert pixels(page)[0, 0].max() < 64


def test_on_a_phone(report, browser_page):
    page = browser_page(report, width=390, height=800, touch=True)
    assert not scrolls_sideways(page)
    screenshot(page, "report-phone")
    click_canvas(page)  # a row with the focus must let the page scroll as well
    settle(page)
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    cameras, top = page.evaluate(CAMERA), page.evaluate("scrollY")
    swipe(page, [[(x, y - 10 * step)] for step in range(12)])
    wait_until(page, f"scrollY > {top + 40}")  # another thread scrolls
    before = None
    while before != (now := page.evaluate("scrollY")):  # and goes on for a moment after the swipe
        before = now
        time.sleep(0.2)
    assert np.allclose(page.evaluate(CAMERA), cameras, atol=0.3)
    page.evaluate("(top) => scrollTo(0, top)", top)
    cameras = page.evaluate(CAMERA)
    swipe(page, [[(x + 5 * step, y)] for step in range(12)])
    turned = page.evaluate(CAMERA)
    assert turned[0][0] > cameras[0][0] + 0.3 and page.evaluate("scrollY") == top
    swipe(page, [[(x - 20 - 3 * step, y - 3 * step), (x + 20 + 3 * step, y + 3 * step)] for step in range(12)])
    assert page.evaluate(CAMERA)[0][2] > 1.5 * turned[0][2]
    assert page.evaluate("[visualViewport.scale, scrollY]") == [1, top]


def swipe(page, places):
    """Move one or two fingers over a list of places of each."""
    device = page.context.new_cdp_session(page)
    for number, fingers in enumerate([*places, []]):
        kind = "touchStart" if number == 0 else "touchMove" if fingers else "touchEnd"
        device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in fingers]})
    settle(page)


def test_a_page_without_its_clouds_is_small(report):
    text = re.sub(r'(?s)id="gallery-data">.*?</script>', "", report.read_text(encoding="utf-8"))
    assert len(text) < 150_000


@pytest.mark.slow
def test_a_million_points_can_be_turned(tmp_path, browser_page):
    path = write_report(tmp_path, config={}, gallery=[GalleryItem("scan", {"input": torus(1_000_000)})])
    assert path.stat().st_size < 8_500_000
    page = browser_page(path)
    first = pixels(page)
    assert inked(first) > 0.1
    drag_canvas(page, across=120)
    page.wait_for_timeout(2000)
    assert changed(first, pixels(page)) > 5
    assert page.locator(".count").text_content() == "1,000,000"
    screenshot(page, "report-million")
