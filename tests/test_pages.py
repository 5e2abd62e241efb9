"""Every kind of page in headless Chromium, made of untrained models on built-in clouds: drawn, turned, coloured, usable by all."""

import dataclasses
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS, build_dataset
from datasets.batches import Batches
from detection import pages as detection_pages
from detection.evaluate import DetectionEvaluator
from models import MODELS, build_model
from segmentation import pages as segmentation_pages
from segmentation.evaluate import PartEvaluator
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
from tests.runs import quiet_run
from tools.compare import compare_page
from tools.evaluate import Evaluator
from tools.guides.base import build_guide, gallery_of
from tools.look.page import write_page
from tools.look.study import Given, study
from tools.report.page import write_report
from tools.report.summary import write_summary
from tools.summary_runs import read_run
from utils.config.load import load_config
from utils.seed import generator

ROOT = Path(__file__).parent.parent
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MOST = 2_000_000  # bytes of a page without the data of its clouds and pictures
DATA = re.compile(r'<script type="application/json"[^>]*>.*?</script>|"data:image/png;base64,[^"]*"', re.DOTALL)


def prepared(recipe, folder, *settings):
    """Return the run of a debug recipe with an untrained model."""
    config = load_config(ROOT / "cfgs" / recipe, overrides=settings, models=MODELS, datasets=DATASETS)
    torch.manual_seed(0)
    return quiet_run(config, folder), build_model(config.model)


def pre_training(method, folder):
    run, model = prepared(f"debug/{method}.yaml", folder, "dataset.train.clouds=20")
    clouds = build_dataset(run.config.dataset.train)
    guide, pages = build_guide(run, model, clouds), {}
    if guide is not None:
        batch = next(Batches(clouds, batch_size=8, seed=0).epoch(0))
        for epoch in range(2):
            guide.prepare(batch.points, batch, epoch=epoch, draw=partial(generator, 0, epoch, 0))
        pages = guide.pages(model)
    gallery = [] if pages else gallery_of(model)[0](model, clouds, 0, run.device, count=2)
    return write_report(folder, config=run.config_dict(), gallery=gallery, **pages)


def classifier(folder):
    run, model = prepared("fine-tuning/point-mae/debug.yaml", folder)
    evaluator = Evaluator(run, build_dataset(dataclasses.replace(run.config.dataset.test, clouds=20)))
    evaluator.evaluate(model)
    return write_report(folder, config=run.config_dict(), **evaluator.pages())


def parts(folder):
    run, model = prepared("segmentation/point-m2ae/debug.yaml", folder)
    evaluator = PartEvaluator(run, build_dataset(dataclasses.replace(run.config.dataset.test, clouds=20)))
    evaluator.evaluate(model)
    return segmentation_pages.write_pages(run, folder, evaluator, title="parts")


def scenes(folder):
    run, model = prepared("detection/point-m2ae/debug.yaml", folder)
    evaluator = DetectionEvaluator(run, build_dataset(dataclasses.replace(run.config.dataset.test, scenes=2)))
    evaluator.evaluate(model)
    return detection_pages.write_pages(run, folder, evaluator, title="scenes")


def look(folder):
    _, model = prepared("debug/point-m2ae.yaml", folder)
    clouds = torch.rand(5, 200, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    found = study(model.eval(), [Given(f"cloud {number}", cloud) for number, cloud in enumerate(clouds)])
    return write_page(folder, found, {"checkpoint": "none"}, "y")


def some_runs(folder):
    """Write two runs as fine-tuning leaves them; returns their folders."""
    for seed in range(2):
        own = folder / "tuned" / f"seed{seed}"
        own.mkdir(parents=True)
        keys = "model: {NAME: Made}\ndataset: {train: {NAME: Own}, val: {NAME: Own}}\nclass_names: [chair, sofa]\n"
        (own / "config.yaml").write_text(f"{keys}seed: {seed}\n")
        (own / "metrics.jsonl").write_text(
            "".join(f'{{"kind": "val", "epoch": {epoch}, "accuracy": 0.{6 + seed + epoch}}}\n' for epoch in range(2))
        )
        (own / "predictions.txt").write_text(f"a\t0\t0\nb\t1\t{seed}\n")
    return sorted((folder / "tuned").iterdir())


def folds(folder):
    results = {"accuracy, last epoch": {"mean": 75.0, "std": 7.07, "values": [70.0, 80.0]}}
    return write_summary(some_runs(folder)[0].parent, results, ["seed0", "seed1"], title="tuned")


def comparison(folder):
    path = folder / "compare.html"
    path.write_text(compare_page({run.name: [read_run(run)] for run in some_runs(folder)}), encoding="utf-8")
    return path


KINDS = {
    **{name: partial(pre_training, name) for name in ("pcp-mae", "gm3d", "i2p-mae", "inter-mae")},
    **{make.__name__: make for make in (classifier, parts, scenes, look, folds, comparison)},
}
WITHOUT_CLOUDS = ("folds", "comparison")
SLOW = ("i2p-mae", "inter-mae", "scenes")  # which take long to make


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """Return a function that makes the page of a kind once."""
    made = {}

    def path(kind):
        if kind not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tools.report.page._write_gallery", lambda path, rows: None)
                patch.setitem(sys.modules, "umap", None)  # which compiles for most of a minute
                made[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return path


def changed(before, after):
    return float(np.abs(before.astype(int) - after).mean())


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def test_it_is_small_and_is_drawn_turned_and_coloured(kind, page_of, browser_page):
    text = page_of(kind).read_text(encoding="utf-8")
    assert len(DATA.sub("", text)) < MOST
    page = browser_page(page_of(kind))
    assert page.locator("section:visible").count() > 1
    if kind in WITHOUT_CLOUDS:
        assert page.locator("svg polyline:visible, svg .dot:visible").count() > 1
        return
    shown = pixels(page)
    assert inked(shown) > 0.01
    drag_canvas(page, across=120, down=30)
    turned = pixels(page)
    assert changed(shown, turned) > 0.5
    if kind == "look":
        click_canvas(page)
    else:
        page.get_by_label("colour by").select_option("cloud")
        settle(page)
    assert changed(turned, pixels(page)) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_everybody_can_use_it(kind, size, page_of, browser_page):
    """The last cloud is drawn as well, nothing is wider than the window, axe finds nothing serious; leaves a screenshot."""
    width, height = SIZES[size]
    page = browser_page(page_of(kind), width=width, height=height, touch=size == "phone")
    last = page.locator("canvas").count() - 1
    assert (last < 0) == (kind in WITHOUT_CLOUDS)
    if last >= 0:
        page.locator("canvas").nth(last).scroll_into_view_if_needed()
        settle(page)
        assert inked(pixels(page, last)) > 0.001  # some centres are few points
    assert not scrolls_sideways(page) and axe_serious(page) == []
    screenshot(page, f"{kind}-{size}")


@pytest.mark.slow
def test_a_number_of_the_confusion_matrix_shows_its_clouds(page_of, browser_page):
    """Others are hidden, a link of the view does the same, and a button brings all back."""
    page = browser_page(page_of("classifier"))
    everything = page.locator(".item:visible").count()
    link = page.locator(".heat td.miss a").first
    link.click()
    rows = link.get_attribute("data-rows").split()

    def visible(page):
        return page.locator(".item:visible").evaluate_all("found => found.map((item) => item.id)")

    assert visible(page) == rows and 0 < len(rows) < everything
    settle(page)
    assert inked(pixels(page, int(rows[0].removeprefix("cloud-")))) > 0.01
    wait_until(page, "location.hash.includes('rows=')")
    other = browser_page(page_of("classifier"), fragment=page.evaluate("location.hash"))
    assert visible(other) == rows and other.locator(".filter").inner_text() == page.locator(".filter").inner_text()
    page.get_by_role("button", name="show all clouds").click()
    assert page.locator(".item:visible").count() == everything
    wait_until(page, "!location.hash.includes('rows=')")


@pytest.mark.slow
def test_the_worst_cloud_of_a_category_is_linked(page_of, browser_page):
    page = browser_page(page_of("parts"))
    assert page.locator(".item").first.locator("canvas").count() == 3
    link = page.locator("td a[href^='#cloud-']").first
    link.click()
    assert page.locator(f".item{link.get_attribute('href')}").is_visible()


@pytest.mark.slow
def test_the_slider_goes_through_the_epochs(page_of, browser_page):
    page = browser_page(page_of("gm3d"))
    cloud, labels = page.locator(".cloud:has(.frame)").first, []
    cloud.scroll_into_view_if_needed()
    for place in (2, 0):  # now, and the first epoch
        page.locator("#view-frame").fill(str(place))
        settle(page)
        labels.append(cloud.locator(".frame").inner_text())
    assert labels == ["now", "epoch 0"]
