"""The report of a run: what it shows, what it survives, what it refuses."""

import dataclasses
import json
import logging
import math
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from tools.report.page import GalleryItem, Section, write_report
from utils.errors import UserError

SVM = {"kind": "svm", "data": "modelnet10", "C": 0.01, "seconds": 2.0}


def rows_of_a_run(epochs: int = 6, steps: int = 5) -> list[dict]:
    rows = [{**SVM, "epoch": None, "accuracy": 0.7012}]
    for epoch in range(epochs):
        for step in range(steps):
            loss = 0.05 / (1 + epoch) + 0.001 * step
            where = {"kind": "step", "epoch": epoch, "step": step}
            rows.append({**where, "loss": loss, "lr": 1e-3, "samples_per_second": 90})
        rows.append(
            {"kind": "epoch", "epoch": epoch, "loss": 0.05 / (1 + epoch), "lr": 1e-3, "seconds": 4.0,
             "samples_per_second": 100.0, "memory_mb": 512.0}
        )  # fmt: skip
        rows.append({**SVM, "epoch": epoch, "accuracy": 0.8 + 0.01 * math.sin(epoch)})
    return rows


def write_metrics(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def item(name: str = "chair 3", count: int = 60, **kwargs) -> GalleryItem:
    points = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    return GalleryItem(name, {"input": points, "rebuilt": np.concatenate([points, points])}, **kwargs)


def page_of(folder: Path, **kwargs) -> str:
    return write_report(folder, **{"config": {"seed": 7}, **kwargs}).read_text(encoding="utf-8")


class Balanced(HTMLParser):
    """Checks that every element is closed by its own tag, and collects the text outside scripts and styles."""

    VOID = ("meta", "input", "line", "circle", "polyline", "wbr", "img")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def test_page_shows_the_run(tmp_path):
    write_metrics(tmp_path, rows_of_a_run())
    matrix = np.array([[8, 2], [1, 9]])
    page = page_of(
        tmp_path, gallery=[item()], confusion=(matrix, ["chair", "table"]), summary={"Data": "10 clouds"},
        title="A title", provenance={"git revision": "abc123"}, sections=[Section("Extra", "<b>made by a method</b>")],
    )  # fmt: skip
    text = "".join(Balanced(page).text)
    best = max(80 + math.sin(epoch) for epoch in range(6))
    for expected in (
        "A title", "10 clouds", "Data", f"{best:.2f} %", "epoch 2", "70.12 %", f"{80 + math.sin(5):.2f} %", "100 / s",
        "512 MiB", "24.0 s in all", "Training loss", "Linear SVM accuracy", "Learning rate", "random weights",
        "chair 3", "made by a method", "abc123", "seed: 7", "17 of 20 correct (85.00 %)",
    ):  # fmt: skip
        assert expected in text, expected
    assert "chair → table: 2 of 10 (20.0 %)" in page
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_page_is_self_contained(tmp_path):
    write_metrics(tmp_path, rows_of_a_run())
    page = page_of(tmp_path, gallery=[item()])
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page)
    assert "default-src 'none'" in page


def test_foreign_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    write_metrics(tmp_path, [{**SVM, "data": evil, "epoch": 0, "accuracy": 0.5}])
    page = page_of(
        tmp_path, config={"name": evil, "model": {"NAME": evil}}, title=evil, summary={evil: evil},
        provenance={evil: evil},
        gallery=[item(evil, note=evil, values={"input": np.zeros(60, int)}, legend=[evil])],
        confusion=(np.array([[1, 1], [0, 1]]), [evil, "table"]),
    )  # fmt: skip
    assert "<script>alert" not in page and 'alert("x")' not in page.replace(r"\"", "")
    assert page.count("&lt;script&gt;") >= 10
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert any("alert" in block for block in blocks) and not any("<" in block for block in blocks)
    Balanced(page)


def test_a_slot_in_a_value_stays_text(tmp_path):
    assert "<h1>{{style}}</h1>" in page_of(tmp_path, title="{{style}}")


@pytest.mark.parametrize(
    "content",
    [None, "", "\n\n", '{"kind": "epo', "[1]\n7\nnull\n", '{"kind": "epoch"}\n{"kind": "svm"}\n', '{"kind": []}\n'],
)
def test_odd_metrics_files(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    page = page_of(tmp_path)
    Balanced(page)
    assert ("unreadable" in page) == (content in ('{"kind": "epo', "[1]\n7\nnull\n"))


def test_binary_metrics_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(bytes(range(256)) * 4)
    assert "unreadable lines left out" in page_of(tmp_path)


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
def test_few_epochs_and_missing_numbers(tmp_path, epochs):
    rows = rows_of_a_run(epochs, steps=1)
    nan, text = float("nan"), "high"
    rows += [{"kind": "step", "epoch": 0, "step": 3, "loss": nan}]
    rows += [{"kind": "step", "epoch": text, "loss": 1, "lr": 10**400}]
    rows += [{"kind": "epoch", "epoch": epochs, "loss": nan, "seconds": None, "memory_mb": float("inf")}]
    write_metrics(tmp_path, rows)
    page = page_of(tmp_path)
    Balanced(page)
    drawn = re.sub(r"<(script|style|pre).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\bnan\b|\binf\b|infinity", drawn, flags=re.I)


def test_embedded_data_is_json(tmp_path):
    rows = [*rows_of_a_run(), {"kind": "epoch", "epoch": 6, "loss": float("inf")}]
    write_metrics(tmp_path, rows)
    page = page_of(tmp_path, gallery=[item()])
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert len(blocks) == 5  # four charts, one gallery

    def refuse(name):
        raise AssertionError(name)

    for block in blocks:
        json.loads(block, parse_constant=refuse)


def test_a_repeated_row_counts_once(tmp_path):
    rows = rows_of_a_run(2)
    write_metrics(tmp_path, [*rows, {**rows[6], "loss": 9.5}])
    assert "2 epoch" in page_of(tmp_path) and "9.5000" in page_of(tmp_path)


def test_percentages_are_understood(tmp_path):
    write_metrics(tmp_path, [{**SVM, "epoch": 3, "accuracy": 87.5}, {**SVM, "epoch": 4, "accuracy": 88.25}])
    assert "88.25 %" in page_of(tmp_path) and "8750" not in page_of(tmp_path)


def test_many_steps_stay_small(tmp_path):
    write_metrics(tmp_path, rows_of_a_run(100, steps=300))
    assert len(page_of(tmp_path)) < 600_000


def test_configuration_of_any_kind(tmp_path):
    @dataclasses.dataclass
    class Model:
        NAME: str = "Point_M2AE"
        sizes: tuple = (16, 8)
        path: Path = Path("a")
        ratio: float = np.float64(0.5)

    for config in ({"model": Model()}, dataclasses.make_dataclass("Run", [("model", Model)])(Model())):
        page = page_of(tmp_path, config=config)
        block = re.search(r"<pre>(.*?)</pre>", page, re.S).group(1)
        assert yaml.safe_load(block) == {"model": {"NAME": "Point_M2AE", "sizes": [16, 8], "path": "a", "ratio": 0.5}}
        assert '<p class="subtitle">Point_M2AE</p>' in page
    assert "max_epoch: 3 # text" in page_of(tmp_path, config="max_epoch: 3 # text")


def test_an_interrupted_write_keeps_the_old_report(tmp_path, monkeypatch):
    page_of(tmp_path, title="first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"report\.html.*full"):
        page_of(tmp_path, title="second")
    assert "<h1>first</h1>" in (tmp_path / "report.html").read_text()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create the folder .*run"):
        write_report(tmp_path / "file" / "run", config={})


def test_without_matplotlib(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        page_of(tmp_path, gallery=[item()])
    (record,) = caplog.records
    assert record.getMessage().startswith("gallery.png is not written")
    assert not (tmp_path / "gallery.png").exists()


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        (np.ones((2, 3)), ["a", "b"], "square"),
        (np.ones((2, 2)), ["a"], "1 class names"),
        (-np.ones((2, 2)), None, "negative"),
        (np.full((2, 2), np.nan), None, "finite"),
    ],
)
def test_bad_confusion(tmp_path, matrix, names, message):
    with pytest.raises(ValueError, match=message):
        page_of(tmp_path, confusion=(matrix, names))


def test_confusion_with_an_absent_class(tmp_path):
    page = page_of(tmp_path, confusion=(np.array([[3, 0], [0, 0]]), None))
    assert "3 of 3 correct" in page and "No errors." in page


def test_part_segmentation_opens_with_its_mean_iou(tmp_path):
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 1.0, "seconds": 1.0} for epoch in range(2)]
    for epoch, iou in enumerate((0.25, 0.2)):
        rows.append({"kind": "parts", "epoch": epoch, "instance_miou": iou, "class_miou": iou, "accuracy": 0.5})
    rows.append({"kind": "parts_vote", "epoch": 1, "mean": 0.22})
    write_metrics(tmp_path, rows)
    page = page_of(tmp_path)
    cards = re.findall(r'<div class="card"><dt>(.*?)</dt><dd>(.*?)<', page)
    assert cards[:2] == [("Last instance mIoU", "20.00 %"), ("Best instance mIoU", "25.00 %")]
    assert "instance mIoU = class mIoU" in page  # equal curves share a line and its name
    assert re.search(r"<td>1</td>(<td class=\"num\">[^<]*</td>){3}<td class=\"num\">22.00</td>", page)


def test_an_evaluation_says_nothing_of_rows_that_it_has_not(tmp_path):
    page = page_of(tmp_path)
    assert "metrics.jsonl" not in page and "Curves" not in page


def test_paths_of_this_machine_are_not_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "ckpts" / "a.pth", Path.home() / "data"
    page = page_of(
        tmp_path, summary={"Checkpoint": inside}, provenance={"Command": f"main.py --ckpts {inside}"},
        config={"DATA_PATH": str(outside)},
    )  # fmt: skip
    assert str(tmp_path) not in page and str(Path.home()) not in page
    assert "ckpts/<wbr>a.pth" in page and "main.py --ckpts ckpts/a.pth" in page and "~/data" in page


def test_long_tables_are_folded_and_no_head_lacks_its_scope(tmp_path):
    write_metrics(tmp_path, rows_of_a_run(50, steps=1))
    page = page_of(tmp_path, confusion=(np.array([[8, 2], [1, 9]]), ["chair", "table"]))
    assert "<summary>All 50 rows</summary>" in page
    assert re.findall(r"<th(?! scope)[ >]", page) == []


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(scheme):
    """WCAG AA: 4.5 to 1 for text of usual size."""
    style = (Path(__file__).parents[3] / "tools" / "report" / "page.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style.split("color-scheme: dark")[scheme]))

    def luminance(name):
        parts = [int(colors[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for text in ("ink", "soft", "faint", "accent"):
        for ground in ("page", "sheet"):
            dark, light = sorted((luminance(text), luminance(ground)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
