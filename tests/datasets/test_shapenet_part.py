"""ShapeNetPart in its published layout: values, order, sampling, the table of parts, and one message for each kind of bad input."""

import json
import re

import numpy as np
import pytest
import torch

from datasets import Batches, build_dataset
from utils.errors import UserError

FOLDERS = {"Cup": "0001", "Plier": "0002"}
ENTRIES = {"train": ["0001/a", "0002/b", "0001/c"], "val": ["0002/d"], "test": ["0002/e", "0001/f"]}
SIZES = {"a": 9, "b": 5, "c": 12, "d": 7, "e": 20, "f": 4}


def cloud(name, folder, seed=0):
    rng = np.random.default_rng([seed, ord(name)])
    parts = [0, 1] if folder == "0001" else [2, 3, 4]
    table = np.hstack([rng.normal(size=(SIZES[name], 6)), rng.choice(parts, (SIZES[name], 1))])
    table[: len(parts), 6] = parts  # each of them, so that the labels tell the table
    return table


@pytest.fixture
def root(tmp_path, compiled_ops):
    folder = tmp_path / "parts"
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text("".join(f"{name}\t{path}\n" for name, path in FOLDERS.items()))
    for split, entries in ENTRIES.items():
        listing = [f"shape_data/{entry}" for entry in entries]
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(listing))
        for entry in entries:
            path = folder / f"{entry}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, cloud(path.stem, path.parent.name), fmt=["%.6f"] * 6 + ["%.6f"])
    return folder


def read(root, subset="trainval", **keys):
    return build_dataset({"NAME": "ShapeNetPart", "ROOT": str(root), "subset": subset, "npoints": 16, **keys})


def test_reads_the_lists_in_order(root):
    clouds = read(root)
    assert clouds.names == ["Cup/a", "Plier/b", "Cup/c", "Plier/d"]  # train, then val
    assert clouds.labels.tolist() == [0, 1, 0, 1] and clouds.class_names == ["Cup", "Plier"]
    assert clouds.counts.tolist() == [9, 5, 12, 7] and clouds.points.shape == (4, 12, 3)
    assert len(read(root, "train")) == 3 and len(read(root, "val")) == 1 and len(read(root, "test")) == 2
    for row, name in enumerate("abcd"):
        table = cloud(name, "0001" if clouds.labels[row] == 0 else "0002")
        points = table[:, :3] - table[:, :3].mean(0)
        points /= np.linalg.norm(points, axis=1).max()
        count = SIZES[name]
        np.testing.assert_allclose(clouds.points[row, :count], points, atol=1e-5)
        np.testing.assert_allclose(clouds.normals[row, :count], table[:, 3:6], atol=1e-5)
        np.testing.assert_array_equal(clouds.part_labels[row, :count], table[:, 6])
        # What follows the own points of a shorter cloud repeats them.
        np.testing.assert_array_equal(clouds.points[row, count:], clouds.points[row, : 12 - count])
        np.testing.assert_array_equal(clouds.part_labels[row, count:], clouds.part_labels[row, : 12 - count])


def test_samples_with_replacement_of_the_own_points(root):
    clouds = read(root, npoints=4000)
    batch = next(Batches(clouds, batch_size=4, seed=0).epoch(0))
    assert batch.points.shape == (4, 4000, 3) and batch.parts.shape == (4, 4000) and batch.parts.dtype == torch.int64
    for row, index in enumerate(batch.indices.tolist()):
        count = clouds.counts[index]
        own = torch.from_numpy(np.asarray(clouds.points[index, :count]))
        which = (batch.points[row][:, None] - own).abs().sum(-1).argmin(1)  # (N,)
        assert torch.equal(own[which], batch.points[row])  # nothing else is drawn, and
        assert torch.equal(torch.from_numpy(np.asarray(clouds.part_labels[index]))[which].long(), batch.parts[row])
        # all of them equally often, also those that the padding repeats: 4000 / count each, spread below six deviations.
        share = which.bincount(minlength=count) / 4000
        assert (share - 1 / count).abs().max() < 6 * np.sqrt(1 / count / 4000)


def test_evaluation_draws_the_same_points_each_time(root):
    batches = [list(Batches(read(root), batch_size=size, seed=3).evaluation()) for size in (4, 3)]
    first, second = (torch.cat([batch.points for batch in part]) for part in batches)
    assert torch.equal(first, second)
    other = torch.cat([batch.points for batch in Batches(read(root), batch_size=4, seed=4).evaluation()])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sampling", ["random", "first", "all"])
def test_other_samplings_and_pretraining_without_labels(root, sampling):
    clouds = read(root, sampling=sampling, npoints=5)
    batch = next(Batches(clouds, batch_size=2, seed=0).epoch(0))
    assert batch.points.shape[1] == batch.parts.shape[1] == (12 if sampling == "all" else 5)
    selected = clouds.select([2])
    assert selected.counts.tolist() == [12] and np.array_equal(selected.part_labels[0], clouds.part_labels[2])


def test_parts_are_those_of_the_training_labels_or_of_parts_json(root):
    clouds = read(root, "test")
    assert clouds.category_parts == {"Cup": [0, 1], "Plier": [2, 3, 4]}
    assert clouds.part_names == ["Cup part 1", "Cup part 2", "Plier part 1", "Plier part 2", "Plier part 3"]
    table = {
        "Cup": {"synset": "0001", "parts": {"0": "body", "1": "handle"}},
        "Plier": {"parts": {"2": "center", "3": "edge", "4": "handle", "6": "spring"}},
    }
    (root / "parts.json").write_text(json.dumps(table))
    clouds = read(root)
    assert clouds.category_parts["Plier"] == [2, 3, 4, 6]
    assert clouds.part_names[1] == "Cup handle" and clouds.part_names[5:] == ["part 5", "Plier spring"]


def test_the_published_categories_have_the_published_table(root):
    from datasets.part_table import SHAPENET_PARTS

    lines = [f"{name} {number:04d}\n" for number, name in enumerate(SHAPENET_PARTS, start=1)]
    (root / "synsetoffset2category.txt").write_text("".join(lines))
    for path in (root / "0002").glob("*.txt"):  # Bag has parts 4 and 5
        table = np.loadtxt(path)
        table[:, 6] = 4 + table[:, 6] % 2
        np.savetxt(path, table)
    for path in (root / "0001").glob("*.txt"):  # Airplane has 0 to 3
        assert np.loadtxt(path)[:, 6].max() <= 3
    clouds = read(root)
    assert clouds.category_parts["Table"] == [47, 48, 49] and len(clouds.part_names) == 50


def test_a_second_start_reads_no_text(root, monkeypatch):
    first = read(root)
    monkeypatch.setattr(np, "loadtxt", lambda *args, **keys: pytest.fail("read again"))
    assert np.array_equal(read(root).points, first.points)
    # Text that changes is read again.
    path = root / "0001" / "a.txt"
    path.write_text(path.read_text() + "1 2 3 0 0 1 1\n")
    with pytest.raises(BaseException, match="read again"):
        read(root)


def refused(root, *words, subset="trainval", **keys):
    with pytest.raises(UserError) as found:
        read(root, subset, **keys)
    for word in words:
        assert word in str(found.value), (word, str(found.value))


def edit_line(path, number, text):
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")


def test_missing_files(root, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "does not exist", "synsetoffset2category.txt", "README")
    listing = root / "train_test_split" / "shuffled_val_file_list.json"
    listing.rename(tmp_path / "kept")
    refused(root, str(listing), "does not exist", "JSON list")
    (tmp_path / "kept").rename(listing)
    (root / "0002" / "b.txt").unlink()
    refused(root, "b.txt", "shuffled_train_file_list.json, entry 2")


def test_rarely_missing_files_are_left_out(root, caplog):
    """Nine entries of the published lists have no file: as rare as that they are left out, which is said."""
    listing = root / "train_test_split" / "shuffled_train_file_list.json"
    for number in range(1, 1500):
        (root / "0001" / f"a{number}.txt").symlink_to("a.txt")
    many = [f"shape_data/0001/{f'a{number}' if number else 'nowhere'}" for number in range(1500)]
    listing.write_text(json.dumps(many))
    clouds = read(root, "train")
    assert len(clouds) == 1499 and clouds.names[0] == "Cup/a1"
    assert "1 listed files are missing and left out" in caplog.text and "nowhere.txt" in caplog.text
    listing.write_text(json.dumps(["shape_data/0001/gone", *many]))
    refused(root, "gone.txt", "entry 1, lists", subset="train")


@pytest.mark.parametrize("content", ["[]", "{}", "[", '["a"]', "[3]", '["shape_data/../../x"]'])
def test_damaged_lists(root, content):
    listing = root / "train_test_split" / "shuffled_train_file_list.json"
    listing.write_text(content)
    refused(root, str(listing), "JSON list")


def test_unknown_category(root):
    listing = root / "train_test_split" / "shuffled_test_file_list.json"
    listing.write_text('["shape_data/0001/f", "shape_data/0003/e"]')
    refused(root, f"{listing}, entry 2", "category '0003' is not in", subset="test")
    (root / "synsetoffset2category.txt").write_text("Cup 0001\nPlier\n")
    refused(root, "synsetoffset2category.txt, line 2", "a category and its folder")
    (root / "synsetoffset2category.txt").write_text("Cup 0001\nPlier 0001\n")
    refused(root, "synsetoffset2category.txt, line 2")
    (root / "synsetoffset2category.txt").write_text("\n")
    refused(root, "is empty")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 2 3 0 0 1", ("has 6 values", "expected 7")),
        ("1 2 nan 0 0 1 1", ("holds what is no finite number",)),
        ("1 2 inf 0 0 1 1", ("holds what is no finite number",)),
        ("1 2 x 0 0 1 1", ("holds what is no finite number",)),
        ("1 2 3 0 0 1 1.5", ("or no part",)),
        ("1 2 3 0 0 1 -1", ("or no part",)),
    ],
)
def test_malformed_lines(root, line, words):
    edit_line(root / "0001" / "c.txt", 4, line)
    refused(root, "c.txt: line 4", *words)


def test_all_lines_lack_a_column(root):
    path = root / "0001" / "a.txt"
    path.write_text("1 2 3 0 0 1\n" * 3)
    refused(root, "a.txt: line 1", "has 6 values")


def test_empty_file(root):
    (root / "0001" / "a.txt").write_text("\n")
    refused(root, "a.txt", "is empty")


def test_a_part_that_the_category_does_not_own(root):
    path = root / "0002" / "e.txt"
    edit_line(path, 6, "1 2 3 0 0 1 0")
    refused(
        root, f"{path}, line 6: part 0 is none of category Plier, which has 2, 3, 4", "training labels", subset="test"
    )
    edit_line(path, 6, "1 2 3 0 0 1 400")
    refused(root, f"{path}, line 6: part 400", subset="test")


def test_damaged_table(root):
    for content in (
        "{",
        "[]",
        '{"Cup": {"parts": {}}}',
        '{"Cup": {"parts": {"x": "y"}}, "Plier": {"parts": {"2": "z"}}}',
    ):
        (root / "parts.json").write_text(content)
        refused(root, "parts.json", "expected an object")


def test_unknown_subset(root):
    refused(root, "subset 'all' is unknown", "trainval", subset="all")


@pytest.mark.data
def test_the_real_set(shared_data, compiled_ops):
    clouds = read(shared_data / "psb_parts_normal")
    assert len(clouds) == 285 and len(clouds.class_names) == 19 and len(clouds.part_names) == 94
    assert re.fullmatch(r"Airplane/airplane_\d+", clouds.names[0]) and clouds.part_names[0] == "Airplane body"
    assert np.linalg.norm(clouds.points, axis=2).max(1) == pytest.approx(np.ones(285), abs=1e-5)
