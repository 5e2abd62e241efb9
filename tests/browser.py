"""Pages in headless Chromium: the fixture `browser_page`, and what tests do with a page.

One browser serves the whole session. Each test module connects to it anew, as Playwright keeps an event loop in the thread
while it is connected, and tests of other modules may need their own.
"""

import io
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars",
    # WebGL2 without a graphics card.
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
LONGEST = 60  # seconds for one step of a browser on a busy machine
SETTLE = """async () => {
  const waits = () => window.galleryView && (!document.documentElement.dataset.renderer ||
    galleryView.items.some((item) => item.onScreen && item.dirty));
  for (let i = 0; i < 2 || (i < 30 && waits()); i++) await new Promise(requestAnimationFrame);
}"""
TALLEST = 8000  # pixels of a screenshot; Chromium begins anew after 8,192
SCREENSHOTS = Path(__file__).parent / "screenshots"  # ignored by git


@pytest.fixture(scope="session")
def browser_address(tmp_path_factory):
    """Start the browser of the session; returns the address of its debugging port."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    profile = tmp_path_factory.mktemp("browser")
    command = [BROWSER, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = profile / "DevToolsActivePort"
        until = time.monotonic() + LONGEST
        while not (port.is_file() and port.read_text().strip()):
            assert process.poll() is None and time.monotonic() < until, "Chromium did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text().split()[0]}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser(browser_address):
    """Connect to the browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.connect_over_cdp(browser_address, timeout=1000 * LONGEST)


@pytest.fixture
def browser_page(browser):
    """Give a function that opens a file offline; the test fails if a page logs an error or asks for anything else.

    `browser_page(path, width=1280, height=900, fragment="", dark=False, touch=False, script="")` returns Playwright's page;
    `fragment` starts with #, `script` runs before those of the page. Messages are in `page.problems`; a test that expects
    some empties the list.
    """
    contexts = []

    def opened(path, *, width=1280, height=900, fragment="", dark=False, touch=False, script=""):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            offline=True,
        )
        page = context.new_page()
        contexts.append((context, page))
        page.set_default_timeout(1000 * LONGEST)
        page.problems = []
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: message.type in ("error", "warning") and page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith("http") and page.problems.append(f"asked for {sent.url}"))
        page.goto(Path(path).resolve().as_uri() + fragment)
        settle(page)
        return page

    yield opened
    problems = [problem for _, page in contexts for problem in page.problems]
    for context, _ in contexts:
        context.close()
    assert not problems


def settle(page):
    """Wait until the page has drawn what it was asked to."""
    page.evaluate(SETTLE)


def wait_until(page, condition):
    """Wait until a JavaScript expression is true; Playwright's own way needs `eval`, which the pages forbid themselves."""
    until = time.monotonic() + LONGEST
    while not page.evaluate(f"() => Boolean({condition})"):
        assert time.monotonic() < until, f"{condition}: still not so after {LONGEST} seconds"
        time.sleep(0.03)


def click_canvas(page, index=0, x=0.5, y=0.5):
    """Click canvas number `index` of the page at shares (x, y) of its width and height."""
    canvas = page.locator("canvas").nth(index)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    settle(page)


def drag_canvas(page, index=0, across=80, down=0):
    """Drag the middle of canvas number `index` by so many pixels."""
    canvas = page.locator("canvas").nth(index)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y + down, steps=4)
    page.mouse.up()
    settle(page)


def pixels(page, index=0):
    """Return what canvas number `index` shows, (height, width, 3) uint8."""
    from PIL import Image

    shot = page.locator("canvas").nth(index).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def inked(image):
    """Return the share of pixels that differ from the corner's: 0 is blank."""
    return float((np.abs(image.astype(int) - image[0, 0]).max(axis=2) > 24).mean())


def scrolls_sideways(page):
    """Say whether the page is wider than its window."""
    return page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")


def axe_serious(page):
    """Return the violations of accessibility that axe calls serious or critical: rule, elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # Without preloading, which asks for the style sheets of a page that is a file, and is refused.
    violations = axe.Axe().run(page, options={"preload": False}).response["violations"]
    return [
        (entry["id"], [node["html"][:160] for node in entry["nodes"][:4]])
        for entry in violations
        if entry["impact"] in ("serious", "critical")
    ]


def screenshot(page, name):
    """Save the page, down to TALLEST, as `tests/screenshots/NAME.png`; returns the path. Clouds are drawn only inside the window."""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    window, height = page.viewport_size, page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": window["width"], "height": min(height, TALLEST)})
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    page.wait_for_timeout(100)
    settle(page)
    page.screenshot(path=path)
    page.set_viewport_size(window)
    settle(page)
    return path
