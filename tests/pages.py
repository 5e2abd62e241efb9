"""What every page of a task must pass in the browser."""

import re

from tests.browser import SCREENSHOTS, axe_serious, inked, pixels, screenshot, scrolls_sideways, settle

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MOST = 2_000_000  # bytes of a page without the data of its clouds and pictures


def check_page(browser_page, path, name, *, clouds=True):
    """Open a page at two widths: its first and its last cloud are drawn, nothing is wider than the window, axe finds nothing serious.

    Saves screenshots of the page and of the last row, which is the method's own.

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
        for index in (0, page.locator("canvas").count() - 1) if clouds else ():
            page.locator("canvas").nth(index).scroll_into_view_if_needed()
            settle(page)
            assert inked(pixels(page, index)) > 0.01, f"{name}, {size}: cloud {index} is blank"
        assert not scrolls_sideways(page), f"{name}, {size}: wider than the window"
        assert axe_serious(page) == [], f"{name}, {size}"
        screenshot(page, f"{name}-{size}")
        if clouds:
            page.locator(".item:visible").last.screenshot(path=SCREENSHOTS / f"{name}-{size}-row.png")
    return opened["desktop"]
