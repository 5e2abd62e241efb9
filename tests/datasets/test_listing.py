"""Lists of clouds: what they may look like, what folders say besides, and one message for each kind of bad line."""

import numpy as np
import pytest

from datasets import Samples, build_dataset
from datasets.batches import Batches
from datasets.listing import read_listing
from datasets.prepare import main
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Return a folder with six clouds two levels below it."""
    for row in range(6):
        path = tmp_path / "own" / "models" / str(row // 3) / f"m {row}" / f"m {row}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.random.default_rng(row).normal(size=(40, 3)))
    return tmp_path / "own"


def write(root, text):
    (root / "list.csv").write_text(text)
    return root / "list.csv"


LINES = [f"models/{row // 3}/m {row}/m {row}.npy,{'ab'[row % 2]},{'test' if row > 3 else 'train'}" for row in range(6)]


def read(root, subset="train", **keys):
    return build_dataset({"NAME": "Folder", "DATA_PATH": str(root), "subset": subset, "N_POINTS": 16, **keys})


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LINES),
        "# ours\nfile;label;subset\n\n" + "\n".join(line.replace(",", ";") for line in LINES),
        "class\tsplit\tpath\n" + "\n".join("\t".join(np.roll(line.split(","), -1)) for line in LINES),
    ],
)
def test_a_list_says_class_and_split(root, text):
    write(root, text)
    train, test = read(root, LIST="list.csv"), read(root, "test", LIST="list.csv")
    assert train.class_names == test.class_names == ["a", "b"]
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 1]
    assert train.names == [LINES[row].split(",")[0] for row in (0, 2, 1, 3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["lists no cloud", "path, class and split"]),
        (LINES[0] + "\n" + LINES[0], ["line 2", "line 1 already"]),
        ("models/none.npy,a,train", ["line 1", "no file below"]),
        ("../../etc/x.npy,a,train", ["line 1", "leads out of"]),
        (LINES[0].replace("train", "val"), ["line 1", "'val'", "train"]),
        (LINES[0] + "\n" + LINES[1].replace(",b,", ",,"), ["line 2", "no class"]),
        ("list.csv.doc,a,train", ["no format"]),
        (LINES[0] + ",more", ["4 values"]),
    ],
)
def test_bad_lists(root, text, words):
    with pytest.raises(UserError) as error:
        read_listing(write(root, text), root)
    assert all(word in str(error.value) for word in ["list.csv", *words]), error.value


def test_clouds_in_folders_below_classes(root):
    assert read(root / "models", TEST_SHARE=0).class_names == ["0", "1"]
    assert len(read(root / "models", TEST_SHARE=0)) == 6
    whole = read(root / "models", LABELS=False, TEST_SHARE=0.5)
    assert len(whole) == 3 and whole.labels is None


@pytest.mark.parametrize("layout", ["folder", "modelnet40_ply_hdf5"])
def test_convert_by_a_list(root, tmp_path, layout, capsys):
    path = write(root, "\n".join(LINES))
    out = tmp_path / "out"
    assert main(["convert", str(root), "--list", str(path), "--to", layout, "--points", "16", "--out", str(out)]) == 0
    assert "recipe" in capsys.readouterr().out
    if layout == "folder":
        train, test = read(out), read(out, "test")
    else:
        keys = {"NAME": "ModelNet40_SVM", "DATA_DIR": str(out), "num_points": 16}
        train, test = build_dataset(keys), build_dataset({**keys, "subset": "test"})
    assert train.class_names == ["a", "b"] and train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 1]


def test_convert_leaves_out_classes_of_one_split(root, tmp_path, capsys):
    write(root, "\n".join([*LINES[:5], LINES[5].replace(",b,", ",c,")]))
    argv = ["convert", str(root), "--list", "list.csv", "--points", "16"]
    hdf5 = [*argv, "--to", "modelnet40_ply_hdf5", "--out"]
    assert main([*hdf5, str(tmp_path / "a")]) == 2
    assert "COMMON_CLASSES" in capsys.readouterr().err
    assert main([*hdf5, str(tmp_path / "b"), "--common_classes"]) == 0
    assert (tmp_path / "b" / "shape_names.txt").read_text() == "a\n"
    assert main([*argv, "--out", str(tmp_path / "c")]) == 0  # labels are not needed
    assert read(tmp_path / "c", COMMON_CLASSES=True).class_names == ["a"]


def test_samples_are_those_of_evaluation(root):
    clouds = read(root / "models", TEST_SHARE=0, npoints=8)
    samples = Samples(clouds, seed=3)
    batches = Batches(clouds, batch_size=6, seed=3, drop_last=False)
    (batch,) = batches.evaluation()
    for row in range(6):
        points, label = samples[row]
        assert points.equal(batch.points[row]) and label == batch.labels[row]
    assert len(samples) == 6 and samples[-1][0].equal(samples[5][0])
    assert not Samples(clouds, fresh=True)[0][0].equal(samples[0][0])
    with pytest.raises(IndexError):
        samples[6]
    points, label = clouds[4]
    assert np.array_equal(points, clouds.points[4]) and label == 1
    assert len(list(clouds)) == 6
