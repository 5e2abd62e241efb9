"""Few-shot folds: what is drawn, what is read, and one clear message for each kind of bad input."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from datasets import CloudSet, build_dataset
from datasets.few_shot import draw_fold, write_folds
from datasets.modelnet40_c import CLASSES
from utils.errors import UserError


def labelled(subset, per_class, classes=7, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))
    points = np.random.default_rng(seed + 1).normal(size=(len(labels), 24, 3)).astype(np.float32)
    points[:, 0, 0] = labels  # tells which class a stored cloud is of
    return CloudSet(points, "Made", subset, labels=labels)


@pytest.fixture
def folder(tmp_path):
    write_folds(labelled("train", 12), labelled("test", 25, seed=9), tmp_path, way=5, shot=10, folds=range(3))
    return tmp_path


def read(folder, **keys):
    keys = {"way": 5, "shot": 10, "fold": 0, "NUM_CATEGORY": 7, **keys}
    return build_dataset({"NAME": "ModelNetFewShot", "DATA_PATH": str(folder), **keys})


def test_folds_hold_what_was_asked():
    train, test = labelled("train", 12).labels, labelled("test", 25).labels
    chosen, shots, held_out = draw_fold(train, test, way=5, shot=10, fold=3)
    assert len(set(chosen)) == 5
    assert np.array_equal(train[shots], np.repeat(chosen, 10)) and len(set(shots)) == 50
    assert np.array_equal(test[held_out], np.repeat(chosen, 20)) and len(set(held_out)) == 100
    again = draw_fold(train, test, way=5, shot=10, fold=3)
    assert chosen == again[0] and np.array_equal(shots, again[1]) and np.array_equal(held_out, again[2])
    others = [draw_fold(train, test, way=5, shot=10, fold=fold)[0] for fold in range(10)]
    assert len({tuple(other) for other in others}) > 5


def test_a_fold_is_read_as_published(folder):
    train, test = read(folder), read(folder, subset="test", fold=2)
    assert (len(train), len(test)) == (50, 100) and train.npoints == 24
    assert train.sampling == "random" and test.sampling == "first"
    assert set(train.labels) == set(range(5)) and (np.bincount(train.labels) == 10).all()
    norms = np.linalg.norm(np.asarray(train.points), axis=2).max(1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    with (folder / "5way_10shot" / "0.pkl").open("rb") as file:
        stored = pickle.load(file)
    for (points, label, original), read_label in zip(stored["train"], train.labels, strict=True):
        assert points[0, 0] == original and label == read_label
        assert train.class_names[label] == f"class {original} of 7"


def test_classes_have_the_names_of_the_set_that_they_were_drawn_from(tmp_path):
    train, test = (
        replace(labelled("train", 12), class_names=[f"kind {label}" for label in range(7)]),
        labelled("test", 25),
    )
    write_folds(train, test, tmp_path, way=5, shot=10, folds=[0])
    found = read(tmp_path)
    # The first coordinate of a stored cloud says of which class it is; the list lies in the folder or above it.
    with (tmp_path / "5way_10shot" / "0.pkl").open("rb") as file:
        originals = {label: original for _, label, original in pickle.load(file)["train"]}
    assert found.class_names == [f"kind {originals[label]}" for label in range(5)]
    (tmp_path / "5way_10shot" / "shape_names.txt").rename(tmp_path / "shape_names.txt")
    assert read(tmp_path).class_names == found.class_names
    (tmp_path / "shape_names.txt").unlink()
    assert read(tmp_path, NUM_CATEGORY=40).class_names == [CLASSES[originals[label]] for label in range(5)]


def test_normals_are_left_out_and_either_folder_name_is_found(folder):
    path = folder / "5way_10shot" / "0.pkl"
    content = pickle.loads(path.read_bytes())
    content["train"] = [(np.hstack([p, p]), np.int32(label), np.array([o])) for p, label, o in content["train"]]
    plain = np.array(read(folder).points)
    (folder / "5way10shot").mkdir()
    (folder / "5way10shot" / "0.pkl").write_bytes(pickle.dumps(content))
    path.unlink()
    assert np.array_equal(read(folder).points, plain)


def broken(folder, change):
    path = folder / "5way_10shot" / "0.pkl"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(content)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [], "has no list 'train'"),
        (lambda c: {"train": []}, "has no list 'train'"),
        (lambda c: {"train": [c["train"][0][:2]]}, "cloud 0 of 'train'"),
        (lambda c: {"train": [(p, label + 3, o) for p, label, o in c["train"]]}, "is out of range 0 to 4"),
        (lambda c: {"train": [(p, 0, o) for p, label, o in c["train"]]}, "label 0 stands for class"),
        (lambda c: {"train": c["train"][1:]}, "training clouds, 10 shots are asked"),
        (lambda c: {"train": [(p * np.nan, label, o) for p, label, o in c["train"]]}, "NaN or infinite"),
        (lambda c: {"train": [(p[: 10 + i], label, o) for i, (p, label, o) in enumerate(c["train"])]}, "has 11 points"),
        (lambda c: {"train": print}, "asks for builtins.print"),
    ],
)
def test_bad_files(folder, change, message):
    broken(folder, change)
    with pytest.raises(UserError, match=message) as raised:
        read(folder)
    assert "0.pkl" in str(raised.value)


def test_bad_settings(folder):
    with pytest.raises(UserError, match=r"5way_20shot.0\.pkl: file does not exist"):
        read(folder, shot=20)
    with pytest.raises(UserError, match="9 ways are more than the 7 classes"):
        read(folder, way=9)
    with pytest.raises(UserError, match="8 ways are asked, but of 7 classes 7 have 10 training clouds"):
        write_folds(labelled("train", 12), labelled("test", 25), folder, way=8, shot=10, folds=[0])
    with pytest.raises(UserError, match="7 classes 0 have 20 training clouds"):
        write_folds(labelled("train", 12), labelled("test", 25), folder, way=5, shot=20, folds=[0])
