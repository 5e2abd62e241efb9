"""The page of `tools.look`: one file, its data, and what a browser makes of it where one is installed."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from tests.browser import axe_serious, click_canvas, inked, pixels, screenshot, scrolls_sideways, settle, wait_until
from tools.embedder import open_embedder
from tools.launch import weights_file
from tools.look.page import write_page
from tools.look.study import Given, Query, Study, study


@pytest.fixture(scope="module")
def found():
    draw = np.random.default_rng(0)
    clouds = torch.from_numpy(draw.uniform(-0.57, 0.57, (5, 200, 3)) * draw.uniform(0.2, 1, (5, 1, 3))).float()
    model = open_embedder(weights_file("mini", None)).model
    return study(model, [Given(f"<cloud> {number}", cloud, "box") for number, cloud in enumerate(clouds)])


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page"), found, {"checkpoint": "mini"}, "y")


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_one_file_with_data_that_give_the_numbers(page, found):
    text = page.read_text(encoding="utf-8")
    assert "<cloud>" not in text and not re.search(r'(src|href)="(?!#|data:)', text)
    assert len(text) < 2_000_000
    data = json.loads(re.search(r'id="look-data">(.*?)</script>', text)[1])
    assert len(data["clouds"]) == 5 and data["dims"] == [32, 32, 32]
    for scale in range(3):
        packed, one = data["clouds"][1]["scales"][scale], found.clouds[1].scales[scale]
        features = numbers(packed["features"], "<f2").reshape(-1, 32).astype(np.float64)
        angles = features @ features[2] / np.linalg.norm(features, axis=1) / np.linalg.norm(features[2])
        if scale == 0:  # 32 channels: nothing is left out
            query = Query(1, int(found.clouds[1].scales[-1].index[0]))
            own = features[found.row(query, 0)]
            angles = features @ own / np.linalg.norm(features, axis=1) / np.linalg.norm(own)
            assert angles == pytest.approx(found.similarity(query, 0)[1], abs=5e-3)
        assert angles.max() == pytest.approx(1)
        layer = packed["layers"][0]
        q, k = (
            numbers(layer[name], "<f2").reshape(layer["heads"], -1, layer["width"]).astype(np.float32) for name in "qk"
        )
        weights = torch.from_numpy(q @ k.transpose(0, 2, 1)).softmax(-1)
        np.testing.assert_allclose(weights[:, 3].numpy(), one.attention(3)[0], atol=2e-3)
        assert numbers(packed["masked"], "u1").sum() == found.clouds[1].rebuilt.masks[scale][one.index].sum()
    assert text.count("<symbol") == 5 and text.count("dot-of-map") > 5


def test_a_browser_restores_a_view_and_draws(page, found, browser_page):
    scale = found.clouds[2].scales[1]
    opened = browser_page(page, fragment="#view=2,1,3,attention,0,1")
    assert opened.locator("html").get_attribute("data-view") == "2,1,3,attention,0,1"
    legend = opened.locator("#look-legend").text_content()
    assert legend.startswith(f"attention of patch {scale.index[3]} of <cloud> 2, scale 1")
    high = float(opened.locator("#look-high").text_content())
    assert high == pytest.approx(float(scale.attention(3)[0, 1].max()), rel=0.06)
    assert inked(pixels(opened)) > 0.05
    # An address that fits nothing gives the first view.
    other = browser_page(page, fragment="#view=99,0,0,similarity,,")
    assert other.locator("html").get_attribute("data-view").startswith("0,2,0,features")


def test_a_click_chooses_a_patch(page, browser_page):
    opened = browser_page(page)
    assert not opened.locator("#look-ramp").is_visible()
    before, view = pixels(opened), opened.locator("html").get_attribute("data-view")
    click_canvas(opened)
    assert np.abs(pixels(opened).astype(int) - before).mean() > 2
    chosen = opened.locator("html").get_attribute("data-view")
    assert opened.locator("#look-ramp").is_visible()
    assert view.split(",")[3] == "features" and chosen.split(",")[3] == "similarity"
    opened.keyboard.press(".")
    after = opened.locator("html").get_attribute("data-view")
    assert int(after.split(",")[2]) == (int(chosen.split(",")[2]) + 1) % 16
    settle(opened)
    shown = pixels(opened)
    opened.keyboard.press("ArrowLeft")
    wait_until(opened, "location.hash.includes('camera0')")
    settle(opened)
    turned, address = pixels(opened), opened.evaluate("location.hash")
    assert np.abs(turned.astype(int) - shown).mean() > 2 and f"view={after}" in address
    other = browser_page(page, fragment=address)
    assert other.locator("html").get_attribute("data-view") == after
    assert np.abs(turned.astype(int) - pixels(other)).mean() < 1


def test_all_points_of_a_scan_have_the_colours_of_its_patches(found, tmp_path, browser_page):
    draw = np.random.default_rng(1)
    cloud = found.clouds[0]
    scan = (cloud.points[draw.integers(0, 200, 20_000)] + draw.normal(0, 0.01, (20_000, 3))).astype(np.float32)
    one = Study(found.method, [dataclasses.replace(cloud, scan=scan)])
    opened = browser_page(write_page(tmp_path, one, {"checkpoint": "mini"}, "y"))
    few, all_points = pixels(opened, 0), pixels(opened, 2)
    assert opened.locator(".count").nth(2).text_content() == "20,000"
    inside = (np.abs(all_points.astype(int) - 255).max(2) > 24) & (np.abs(few.astype(int) - 255).max(2) > 24)
    assert inside.mean() > 0.1 and np.abs(few[inside].astype(int) - all_points[inside]).mean() < 40
    click_canvas(opened, 2)
    assert opened.locator("html").get_attribute("data-view").split(",")[3] == "similarity"
    assert np.abs(pixels(opened, 2).astype(int) - all_points).mean() > 2


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=["light", "dark", "phone"])
def test_everybody_can_use_it(page, browser_page, width, dark):
    opened = browser_page(page, width=width, dark=dark)
    assert not axe_serious(opened) and not scrolls_sideways(opened)
    screenshot(opened, f"look-{'phone' if width < 500 else 'dark' if dark else 'light'}")
