"""Own data: the layouts of a folder, what is drawn of its clouds, and one clear message for each kind of bad input."""

import numpy as np
import pytest

from datasets import build_dataset
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Return a folder of its own, beside the cache of the tests."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


CLASSES = ("bolt", "gear", "nut")


def cloud(seed, points=40):
    return np.random.default_rng(seed).normal(size=(points, 3)) + 1e6


def fill(folder, count, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if i % 2:
            np.save(folder / f"{i:02d}.npy", cloud(seed + i))
        else:
            np.savetxt(folder / f"{i:02d}.xyz", cloud(seed + i), fmt="%.6f")
    (folder / "readme.md").write_text("not a cloud")


def read(root, subset="train", **keys):
    return build_dataset({"NAME": "Folder", "DATA_PATH": str(root), "subset": subset, "N_POINTS": 32, **keys})


def make(root, layout):
    for number, name in enumerate(CLASSES):
        for subset, count in (("train", 4), ("test", 2)):
            seed = 100 * number + (50 if subset == "test" else 0)
            folder = {"above": root / subset / name, "below": root / name / subset}[layout]
            fill(folder, count, seed)


@pytest.mark.parametrize("layout", ["above", "below"])
def test_folders_with_a_split(root, layout):
    make(root, layout)
    train, test = read(root), read(root, "test")
    assert train.class_names == test.class_names == list(CLASSES)
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.sampling == "random" and test.sampling == "first" and train.normalize
    stored = cloud(101)  # gear, 01.npy
    own = np.asarray(train.points[5], np.float64)
    whole = stored - stored.mean(0)
    distances = np.linalg.norm(own[:, None] - whole[None], axis=2).min(1)
    assert own.shape == (32, 3) and distances.max() < 1e-4  # 32 of its 40 points, centred without loss


def test_a_split_is_drawn_where_there_is_none(root):
    for number, name in enumerate(CLASSES):
        fill(root / name, 10, 100 * number)
    train, test = read(root), read(root, "test")
    assert (len(train), len(test)) == (24, 6) and not set(train.names) & set(test.names)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert read(root, "test").names == test.names
    assert len(read(root, TEST_SHARE=0)) == len(read(root, "test", TEST_SHARE=0)) == 30


def test_a_flat_folder_has_no_labels(root):
    fill(root, 10, 0)
    train = read(root)
    assert len(train) == 8 and train.labels is None and train.class_names is None


def test_clouds_with_fewer_points_are_repeated(root):
    fill(root, 4, 0)
    points = read(root, N_POINTS=100, TEST_SHARE=0).points
    assert points.shape == (4, 100, 3) and all(len(np.unique(p, axis=0)) == 40 for p in points)


def test_a_changed_file_is_read_again(root):
    fill(root, 2, 0)
    before = np.array(read(root, TEST_SHARE=0).points)
    np.save(root / "01.npy", cloud(77))
    after = np.array(read(root, TEST_SHARE=0).points)
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])


def test_bad_folders(root):
    def refused(message, root=root, **keys):
        with pytest.raises(UserError, match=message):
            read(root, **keys)

    refused("folder does not exist. Expected there: train/<class>", root / "none")
    refused("holds no cloud")
    make(root, "above")
    refused("TEST_SHARE: is 1.5", TEST_SHARE=1.5)
    refused("subset 'val' is unknown", subset="val")
    (root / "test" / "gear").rename(root / "test" / "gears")
    refused("same class folders; 'gear' is in one of them only")
    (root / "test" / "gears").rename(root / "test" / "gear")
    (root / "train" / "washer").mkdir()
    (root / "test" / "washer").mkdir()
    refused(r"class folder .*washer: holds no cloud; the formats are .npy")


def test_bad_clouds_and_mixed_folders_are_named(root):
    for number, name in enumerate(CLASSES):
        fill(root / name, 5, 100 * number)
    np.save(root / "stray.npy", cloud(0))
    with pytest.raises(UserError, match=r"also clouds, such as stray\.npy"):
        read(root)
    (root / "stray.npy").unlink()
    np.save(root / "nut" / "03.npy", np.full((5, 3), np.nan))
    with pytest.raises(UserError, match=r"03\.npy: none of its 5 points has coordinates"):
        read(root, TEST_SHARE=0)
    (root / "one").mkdir()
    np.save(root / "one" / "only.npy", cloud(0))
    with pytest.raises(UserError, match="its 1 clouds cannot be split"):
        read(root)
