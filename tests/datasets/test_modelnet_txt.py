"""ModelNet as text files or as the published cache: what is read, and one clear message for each kind of bad input."""

import copy
import logging
import os
import pickle

import numpy as np
import pytest
import torch

from datasets import Batches, build_dataset
from datasets.formats.safe_pickle import read_arrays
from datasets.modelnet_txt import ModelNetConfig, read_modelnet_txt
from extensions import fps
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("compiled_ops")

CLASSES = ["bowl", "night_stand", "piano"]
IDS = {
    "train": ["night_stand_0001", "bowl_0001", "piano_0007", "bowl_0002"],
    "test": ["piano_0100", "night_stand_0101"],
}
LABELS = {"train": [1, 0, 2, 0], "test": [2, 1]}
ROWS, POINTS = 48, 32


def table(seed):
    """(rows, 6) numbers of one file, off centre and larger than the unit sphere."""
    return np.round(np.random.default_rng(seed).normal(size=(ROWS, 6)) * 3 + 5, 6)


def cloud_path(folder, name):
    return folder / name.rpartition("_")[0] / f"{name}.txt"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "modelnet40_normal_resampled"
    folder.mkdir()
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for seed, (subset, ids) in enumerate(IDS.items()):
        (folder / f"modelnet40_{subset}.txt").write_text("\n".join(ids) + "\n")
        for row, name in enumerate(ids):
            path = cloud_path(folder, name)
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, table(10 * seed + row), delimiter=",", fmt="%.6f")
    return folder


def read(folder, **keys):
    return read_modelnet_txt(ModelNetConfig(DATA_PATH=str(folder), **{"N_POINTS": POINTS, "NUM_CATEGORY": 3, **keys}))


def unit(points):
    centred = points.astype(np.float64) - points.astype(np.float64).mean(0)
    return centred / np.linalg.norm(centred, axis=1).max()


def dat_content():
    """What a published cache of the test split holds."""
    clouds = [table(1000 + row)[:POINTS].astype(np.float32) for row in range(2)]
    return [clouds, [np.array([label], dtype=np.int32) for label in LABELS["test"]]]


def write_dat(folder, content, protocol=4):
    path = folder / f"modelnet40_test_{POINTS}pts_fps.dat"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


def test_text_files(folder):
    train, test = read(folder), read(folder, subset="test")
    assert train.points.shape == (4, POINTS, 3) and train.points.dtype == np.float32
    assert train.labels.tolist() == LABELS["train"] and test.labels.tolist() == LABELS["test"]
    assert train.class_names == CLASSES and train.names == IDS["train"]
    assert (train.npoints, train.sampling, test.sampling, train.up_axis) == (POINTS, "random", "first", "y")
    assert not train.normalize  # done here for the whole cloud, before any sampling
    np.testing.assert_allclose(np.linalg.norm(train.points, axis=2).max(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(train.points.mean(axis=1), 0, atol=1e-6)


def test_kept_points_are_the_farthest_from_a_random_start(folder):
    train = read(folder)
    starts = []
    for row, kept in enumerate(train.points):
        for start in range(ROWS):
            rolled = np.roll(table(row)[:, :3].astype(np.float32), -start, axis=0)
            chosen = rolled[fps(torch.from_numpy(rolled)[None], POINTS)[0].numpy()]
            if np.allclose(unit(chosen), kept, atol=1e-5):
                starts.append(start)
    assert len(starts) == 4 and len(set(starts)) > 1


def test_start_depends_on_the_cloud_alone(folder):
    before = read(folder).points
    (folder / "modelnet40_train.txt").write_text("\n".join(reversed(IDS["train"])) + "\n")
    assert np.array_equal(read(folder).points, before[::-1])


def test_files_of_different_length(folder):
    np.savetxt(cloud_path(folder, "bowl_0001"), table(1)[:POINTS], delimiter=",", fmt="%.6f")
    kept = read(folder).points[1]
    expected = unit(table(1)[:POINTS, :3])
    assert sorted(map(tuple, np.round(kept, 3))) == sorted(map(tuple, np.round(expected, 3).astype(np.float32)))


def test_second_reading_is_from_the_cache(folder, cache, caplog):
    caplog.set_level(logging.INFO)
    first = read(folder).points
    assert any("4 of 4 clouds (100%)" in record.getMessage() for record in caplog.records)
    caplog.clear()
    assert np.array_equal(read(folder).points, first) and not caplog.records
    np.savetxt(cloud_path(folder, "bowl_0001"), table(99), delimiter=",", fmt="%.6f")
    assert not np.array_equal(read(folder).points[1], first[1])
    assert all(path.parent.parent == cache or path.parent == cache for path in cache.rglob("*.npy"))


def test_batches(folder):
    mapping = {"NAME": "ModelNet", "DATA_PATH": str(folder), "N_POINTS": POINTS, "NUM_CATEGORY": 3}
    train, test = (build_dataset({**mapping, "subset": subset}) for subset in ("train", "test"))
    batch = next(iter(Batches(train, batch_size=4, seed=0).epoch(0)))
    stored = torch.from_numpy(np.array(train.points))[batch.indices]
    assert batch.points.shape == (4, POINTS, 3) and not torch.equal(batch.points, stored)
    assert torch.equal(batch.points.sort(dim=1).values, stored.sort(dim=1).values)
    batch = next(Batches(test, batch_size=2, seed=0).evaluation())
    assert torch.equal(batch.points, torch.from_numpy(np.array(test.points))) and batch.labels.tolist() == [2, 1]
    assert read(folder, npoints=8).npoints == 8


def test_modelnet10_lists(folder):
    for name in ("shape_names", "train", "test"):
        (folder / f"modelnet40_{name}.txt").rename(folder / f"modelnet10_{name}.txt")
    assert len(read(folder, NUM_CATEGORY=10)) == 4
    with pytest.raises(UserError, match=r"modelnet40_shape_names\.txt: file does not exist"):
        read(folder)


@pytest.mark.parametrize("protocol", range(6))
def test_published_cache(folder, protocol):
    """It stands in for the text files, which may then be absent; every pickle protocol is read."""
    content = dat_content()
    write_dat(folder, content, protocol)
    for name in IDS["test"]:
        cloud_path(folder, name).unlink()
    test = read(folder, subset="test")
    for kept, cloud in zip(test.points, content[0], strict=True):
        np.testing.assert_allclose(kept, unit(cloud[:, :3]), atol=1e-6)
    assert test.labels.tolist() == LABELS["test"] and test.names == IDS["test"]
    assert len(read(folder)) == 4  # the other split still comes from its text files


def test_pickles_of_arrays(tmp_path):
    """Numbers, byte orders, memory layouts and nesting come back as they were, whichever NumPy wrote them."""
    arrays = [
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.array(3, dtype=np.uint8),
        np.array([True, False]),
    ]
    value = {"train": [(array, 3, np.int64(7)) for array in arrays], "none": None, "text": "é"}
    for protocol in range(6):
        data = pickle.dumps(value, protocol=protocol)
        for text in (data, data.replace(b"cnumpy._core.", b"cnumpy.core.")):
            (tmp_path / "a.dat").write_bytes(text)
            again = read_arrays(tmp_path / "a.dat", "anything")
            assert again["none"] is None and again["text"] == "é"
            for (array, number, scalar), expected in zip(again["train"], arrays, strict=True):
                np.testing.assert_array_equal(array, expected)
                assert array.dtype == expected.dtype and (number, scalar) == (3, 7)


class Evil:
    """Asks, when it is unpickled, for a call that leaves a file behind."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickles(mark):
    clouds, labels = dat_content()
    command = Evil(os.system, f"touch {mark}")
    return {
        "command": command,
        "inside": [[*clouds[:1], command], labels],
        "eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "numpy": Evil(np.save, str(mark), 3),
        "objects": [np.array([command], dtype=object), labels],
        "getattr": Evil(getattr, "text", "upper"),
    }


@pytest.mark.parametrize("kind", ["command", "inside", "eval", "numpy", "objects", "getattr"])
def test_malicious_cache_runs_nothing(folder, tmp_path, kind):
    mark = tmp_path / "mark"
    path = write_dat(folder, evil_pickles(mark)[kind])
    with pytest.raises(UserError, match=r"nothing in it was run.*get it again from a source you trust") as error:
        read(folder, subset="test")
    assert str(path) in str(error.value) and not mark.exists() and not mark.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps(dat_content())[:-700],
        b"cnumpy\nndarray\n.",
        b"cnumpy\ndtype\n(S'f4'\ntR(I3\nS'?'\nNNNI-1\nI-1\nI0\ntb.",
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"cnumpy\ndtype\n}S'__call__'\nI1\nsb.",  # sets an attribute of what it calls
        b"ccopyreg\n_reconstructor\n.",
        b"\x80\x04]\x94h\x00a.",  # a list inside itself
    ],
)
def test_pickles_that_are_no_data(folder, data):
    path = write_dat(folder, data)
    with pytest.raises(UserError) as error:
        read(folder, subset="test")
    assert str(path) in str(error.value)
    write_dat(folder, dat_content())
    assert len(read(folder, subset="test")) == 2  # nothing stuck


def test_lists_that_share_lists_are_walked_once(tmp_path):
    value = [1]
    for _ in range(60):
        value = [value, value]
    (tmp_path / "a.dat").write_bytes(pickle.dumps(value))
    assert len(read_arrays(tmp_path / "a.dat", "lists")) == 2


def changed(change):
    content = copy.deepcopy(dat_content())
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "does not hold two lists"),
        (changed(lambda c: c.append([])), "does not hold two lists"),
        (changed(lambda c: c[0].pop()), "holds 1 clouds and 2 labels"),
        (changed(lambda c: c[1].append(c[1][0])), "holds 2 clouds and 3 labels"),
        (changed(lambda c: c[0].__setitem__(1, c[0][1][:-1])), r"cloud 1 is \(31, 6\)"),
        (changed(lambda c: c[0].__setitem__(1, c[0][1][:, :3])), r"cloud 1 is \(32, 3\)"),
        (changed(lambda c: c[0].__setitem__(0, "text")), "cloud 0 is str"),
        (changed(lambda c: c[0].__setitem__(0, c[0][0].astype(np.int32))), "cloud 0 is"),
        (changed(lambda c: c[0][1].__setitem__((3, 2), np.nan)), "cloud 1 holds NaN or infinite"),
        (changed(lambda c: c[1].reverse()), r"label \[1\] of cloud 0 is not 2, as in modelnet40_test\.txt, line 1"),
        (changed(lambda c: c[1].__setitem__(0, np.array([2, 2]))), r"label \[2, 2\] of cloud 0"),
    ],
)
def test_cache_that_does_not_fit(folder, cache, content, message):
    path = write_dat(folder, content)
    with pytest.raises(UserError, match=message) as error:
        read(folder, subset="test")
    assert str(path) in str(error.value)
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,5", "line 3: '1,2,3,4,5' has 5 values; expected 6 finite numbers"),
        ("1,2,3,4,5,6,7", "line 3: .* has 7 values"),
        ("1 2 3 4 5 6", "line 3: .* has 1 values"),
        ("1,2,nan,4,5,6", "line 3: '1,2,nan,4,5,6' has 6 values; expected 6 finite numbers"),
        ("1,2,3,4,5,inf", "line 3"),
        ("1,2,1e39,4,5,6", "line 3"),
        ("1,2,three,4,5,6", "line 3: '1,2,three,4,5,6'"),
        ("# 1,2", "line 3: '# 1,2' has 2 values"),
        ("\x00\x01", "line 3"),
    ],
)
def test_bad_line(folder, line, message):
    path = cloud_path(folder, "piano_0007")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(UserError, match=message) as error:
        read(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 points, N_POINTS 32 are asked"),
        (b"\n\n", "has 0 points"),
        (b"1,2,3,4,5,6\n" * 31, "has 31 points, N_POINTS 32 are asked; lower N_POINTS"),
        (b"1,2,3,4\n" * 40, "line 1: '1,2,3,4' has 4 values"),
        (b"1,2,3\n" * 40, "all in one place"),
        (b"\xff\xfe\x00", "line 1"),
        (None, r"piano_0007\.txt: file does not exist.*the cloud that .*modelnet40_train\.txt, line 3, lists"),
    ],
)
def test_bad_file(folder, content, message):
    path = cloud_path(folder, "piano_0007")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train", None, r"modelnet40_train\.txt: file does not exist.*one id a line.*README, section Data"),
        ("shape_names", None, r"modelnet40_shape_names\.txt: file does not exist.*one class name a line"),
        ("train", "", "is empty; expected one id a line"),
        ("shape_names", " \n", "is empty; expected one class name"),
        ("train", "bowl_0001\n\npiano_0007\n", "line 2: is ''"),
        ("train", "bowl_0001\n../secret_0001\n", "line 2: is '../secret_0001'"),
        ("train", "bowl_0001\npiano_0007\nbowl_0001\n", "line 3: bowl_0001 is line 1 already"),
        ("train", "bowl_0001\nbowls_0002\n", r"line 2: class 'bowls' of 'bowls_0002' is not in .*did you mean bowl\?"),
        ("train", "bowl\n", "line 1: class '' of 'bowl' is not in"),
        (
            "shape_names",
            "bowl\nx\ny\nnight_stand\npiano\n",
            "line 1: label 3 of night_stand_0001 is out of range 0 to 2",
        ),
    ],
)
def test_bad_lists(folder, name, text, message):
    path = folder / f"modelnet40_{name}.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read(folder)
    assert str(folder) in str(error.value)


def test_bad_keys(folder, tmp_path):
    for keys, message in (
        ({"USE_NORMALS": True}, "USE_NORMALS is true"),
        ({"subset": "val"}, "subset 'val' is unknown"),
        ({"N_POINTS": 0}, "N_POINTS 0"),
        ({"npoints": POINTS + 1}, "33 points a sample are asked, but its clouds hold 32"),
        ({"sampling": "fps"}, "sampling 'fps' is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            read(folder, **keys)
    with pytest.raises(UserError, match=r"nowhere: folder does not exist.*modelnet40_shape_names\.txt.*--data_root"):
        read(tmp_path / "nowhere")
