"""What every page of a task must pass in the browser."""

import re

from tests.browser import axe_serious, inked, pixels, screenshot, scrolls_sideways

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MOST = 2_000_000  # bytes of a page without the data of its clouds and pictures


def check_page(browser_page, path, name, *, clouds=True):
    """Open a page at two widths: something is drawn, nothing is wider than the window, axe finds nothing serious; saves screenshots.

    Returns the page at desktop width.
    """
    text = path.read_text()
    data = re.findall(
        r'<script type="application/json"[^>]*>.*?</script>|"data:image/png;base64,[^"]*"', text, re.DOTALL
    )
    assert len(text) - sum(map(len, data)) < MOST
    opened = {}
    for size, (width, height) in SIZES.items():
        page = opened[size] = browser_page(path, width=width, height=height, touch=size == "phone")
        if clouds:
            page.locator("canvas").first.scroll_into_view_if_needed()
            assert inked(pixels(page)) > 0.01, f"{name}, {size}: the first cloud is blank"
        assert not scrolls_sideways(page), f"{name}, {size}: wider than the window"
        assert axe_serious(page) == [], f"{name}, {size}"
        screenshot(page, f"{name}-{size}")
    return opened["desktop"]
