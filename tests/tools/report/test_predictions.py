"""Mistakes of a classifier: which are shown first, what is said of them, and the table by class."""

import re

import numpy as np

from tools.report.markup import MISSING
from tools.report.page import write_report
from tools.report.predictions import ABOUT, Predictions, class_section, cloud_item, mistakes, of_cells

PROBABILITIES = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.95, 0.05, 0]])
FOUND = Predictions(
    labels=np.array([0, 1, 1, 0, 1]),
    probabilities=PROBABILITIES,
    class_names=["chair", "table <b>"],
    names=[f"cloud {row}" for row in range(5)],
    points=lambda row: np.random.default_rng(row).normal(size=(20 + row, 3)),
    up_axis="z",
)


def test_confident_mistakes_come_first():
    assert mistakes(FOUND) == [4, 3, 1] and mistakes(FOUND, 2) == [4, 3]
    first = cloud_item(FOUND, 4)
    assert first.name == "cloud 4" and len(first.clouds["input"]) == 24 and first.up_axis == "z"
    assert first.note == "table <b> (5.0 %), taken for chair (95.0 %)"
    assert cloud_item(FOUND, 2).note == "table <b> (80.0 %), right; next chair (20.0 %)"


def test_every_cell_of_the_matrix_has_clouds():
    """Besides the known mistakes: of each cell the most confident ones, then of each class the right cloud nearest to a mistake."""
    # Cells (1, 0) and (0, 1) in turn; of each class one cloud is right.
    assert of_cells(FOUND, [4]) == [3, 1, 0, 2]
    assert of_cells(FOUND, [4, 3, 1]) == [0, 2]
    many = Predictions(np.zeros(9, int), np.tile([0.1, 0.9], (9, 1)), ["a", "b"], list("abcdefghi"), FOUND.points)
    assert of_cells(many, []) == [0, 1, 2]


def cells(section):
    rows = re.findall(r"<tr>(<td.*?)</tr>", section.body)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_table_by_class_by_hand():
    assert cells(class_section(FOUND)) == [
        ["chair", "table &lt;b&gt; (1)", "2", "1", "50.0", "33.3", "40.0", "60.0"],
        ["table &lt;b&gt;", "chair (2)", "3", "1", "33.3", "50.0", "40.0", "41.7"],
    ]
    assert "Means over classes: recall 41.7 %, precision 41.7 %, F1 40.0 %." in class_section(FOUND).lead


def test_a_label_without_output_or_name_is_shown_by_its_number():
    strange = Predictions(np.array([5]), PROBABILITIES[:1], ["chair"], ["a"], FOUND.points)
    assert cells(class_section(strange)) == [
        ["chair", MISSING, "0", "0", "", "0.0", "0.0", ""],
        ["5", "chair (1)", "1", "0", "0.0", "", "0.0", ""],
    ]
    assert cloud_item(strange, 0).note == "5 (0.0 %), taken for chair (90.0 %)"


def test_numbers_of_the_confusion_matrix_show_their_clouds(tmp_path):
    first = mistakes(FOUND)
    page = write_report(
        tmp_path, config={}, gallery=[cloud_item(FOUND, row) for row in first], gallery_about=ABOUT,
        galleries={"cells": [cloud_item(FOUND, row) for row in of_cells(FOUND, first)]},
        confusion=(np.array([[1, 1], [2, 1]]), ["chair", "table <b>"]), sections=[class_section(FOUND)],
    ).read_text()  # fmt: skip
    assert page.index("Mistakes, most confident first") < page.index("Confusion matrix") < page.index("By class")
    shown = dict(re.findall(r'data-rows="([^"]*)" aria-label="([^"]*)"', page))
    assert shown["cloud-0 cloud-2"].startswith("table &lt;b&gt; → chair: 2") and len(shown) == 4
    names = re.findall(r'id="cloud-(\d)"[^>]*><header><h3>cloud (\d)</h3>', page)
    assert [int(name) for _, name in names] == [*first, *of_cells(FOUND, first)]
    assert (tmp_path / "cells.png").exists()
