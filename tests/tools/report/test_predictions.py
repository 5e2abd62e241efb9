"""Mistakes of a classifier: which are shown first, what is said of them, and the table by class."""

import re

import numpy as np

from tools.report.markup import MISSING
from tools.report.page import write_report
from tools.report.predictions import ABOUT, Predictions, class_section, mistake_items, mistakes

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
    first = mistake_items(FOUND)[0]
    assert first.name == "cloud 4" and len(first.clouds["input"]) == 24 and first.up_axis == "z"
    assert first.note == "table <b> (5.0 %), taken for chair (95.0 %)"


def cells(section):
    rows = re.findall(r"<tr>(<td.*?)</tr>", section.body)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_the_table_by_class_by_hand():
    assert cells(class_section(FOUND)) == [
        ["chair", "table &lt;b&gt; (1)", "2", "1", "50.0", "33.3", "60.0"],
        ["table &lt;b&gt;", "chair (2)", "3", "1", "33.3", "50.0", "41.7"],
    ]


def test_a_label_without_output_or_name_is_shown_by_its_number():
    strange = Predictions(np.array([5]), PROBABILITIES[:1], ["chair"], ["a"], FOUND.points)
    assert cells(class_section(strange)) == [
        ["chair", MISSING, "0", "0", MISSING, "0.0", MISSING], ["5", "chair (1)", "1", "0", "0.0", MISSING, MISSING]
    ]  # fmt: skip
    assert mistake_items(strange)[0].note == "5 (0.0 %), taken for chair (90.0 %)"


def test_the_confusion_matrix_links_to_the_mistakes(tmp_path):
    page = write_report(
        tmp_path, config={}, gallery=mistake_items(FOUND), gallery_about=ABOUT, sections=[class_section(FOUND)],
        confusion=(np.array([[1, 1], [2, 1]]), ["chair", "table <b>"]),
    ).read_text()  # fmt: skip
    assert page.index("Mistakes, most confident first") < page.index("Confusion matrix") < page.index("By class")
    assert page.count('<a href="#cloud-0">2</a>') == 2 and page.count('<a href="#cloud-1">1</a>') == 2
    assert re.search(r'id="cloud-1"><header><h3>cloud 3</h3>', page)
