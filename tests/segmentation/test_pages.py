"""The report of part segmentation: which clouds are shown, errors only, and what the page says of each part."""

import re
from types import SimpleNamespace

import numpy as np

from datasets import CloudSet
from segmentation.metrics import score_parts
from segmentation.pages import part_item, with_errors, worst_clouds, write_pages
from tools.report.clouds import CATEGORIES


def test_the_worst_clouds_come_first_with_one_of_each_category():
    ious = np.array([0.9, 0.2, 0.5, 0.3, 0.95, 0.2])
    labels = np.array([0, 1, 1, 1, 2, 1])
    assert worst_clouds(ious, labels, 2) == [1, 5, 0, 4]
    assert worst_clouds(ious, labels, 9) == [1, 5, 3, 2, 0, 4]


def test_errors_are_shown_alone():
    true, predicted = np.array([4, 4, 6, 6]), np.array([4, 6, 6, 4])
    item = part_item("a", np.zeros((4, 3)), {"true": true, "predicted": predicted}, [4, 6], ["wing", "body"])
    shown = with_errors(item)
    grey = len(shown.legend) - 1
    assert list(shown.clouds) == ["true", "predicted", "errors"] and shown.legend[grey] == "right"
    assert shown.values["errors"].tolist() == [grey, 1, grey, 0] and CATEGORIES[grey % len(CATEGORIES)] == "#7f8794"
    long = part_item("a", np.zeros((1, 3)), {"true": [0], "predicted": [0]}, range(12), [f"p{i}" for i in range(12)])
    assert with_errors(long).values["errors"].tolist() == [19]


def evaluator():
    """Return what an evaluation of three clouds of two categories left, the middle one half wrong; `none` has no clouds."""
    parts = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 3, 3, 3]])
    predictions = np.array([[0, 0, 1, 1], [1, 0, 1, 0], [2, 2, 3, 3]])
    owned = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    labels = np.array([0, 0, 1])
    clouds = CloudSet(
        np.zeros((3, 4, 3), np.float32), "Made", "test", labels=labels, part_labels=parts,
        class_names=["mug", "plane <b>", "none"], names=["m0", "m1", "p0"],
        category_parts={"mug": [0, 1], "plane <b>": [2, 3], "none": [4]},
        part_names=["mug wall", "mug handle", "plane <b> wing", "plane <b> body", "none x"],
    )  # fmt: skip
    scores = score_parts(predictions, parts, labels, owned)
    points = lambda rows: (np.random.default_rng(row).normal(size=(4, 3)) for row in rows)  # noqa: E731
    return SimpleNamespace(clouds=clouds, scores=scores, predictions=predictions, parts=parts, points=points)


def test_the_page_shows_parts_errors_and_links_to_the_worst_clouds(tmp_path):
    run = SimpleNamespace(config_dict=dict)
    page = write_pages(run, tmp_path, evaluator(), title="Parts").read_text()
    names = re.findall(r'id="cloud-(\d)"[^>]*><header><h3>(\w+)</h3>', page)
    assert names == [
        ("0", "m1"),
        ("1", "p0"),
        ("2", "m0"),
        ("3", "m0"),
        ("4", "p0"),
    ]  # worst first, then one a category
    assert "mug, mean IoU 33.3 %, 50.0 % of the points wrong" in page
    row = re.search(r"<tr><td>plane &lt;b&gt;</td>(.*?)</tr>", page)[1]
    assert re.findall(r">([^<]+)<", row) == ["1", "58.33", "58.33"] and 'href="#cloud-1"' in row
    card = re.search(r"<h3>plane &lt;b&gt;</h3>(.*?)</ul>", page)[1]
    assert re.findall(r'"name">(\w+)<.*?"share">([\d.]+)<.*?<small>(\d)', card) == [
        ("wing", "50.00", "1"),
        ("body", "66.67", "3"),
    ]
    assert "<h3>none</h3>" not in page and "<tr><td>none</td>" in page
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "m0_predicted.ply", "m0_true.ply", "p0_predicted.ply", "p0_true.ply"
    ]  # fmt: skip
    assert (tmp_path / "gallery.png").exists() and (tmp_path / "categories.png").exists()
