"""ModelNet40-C in its published layout: what is read, what is missing, and one clear message for each kind of bad file."""

import numpy as np
import pytest

from datasets import Batches, build_dataset
from datasets.modelnet40_c import CLASSES, CORRUPTIONS, SEVERITIES, present
from utils.errors import UserError


def made(folder, name="uniform", severity=2, count=7, points=30, dtype=np.float32):
    folder.mkdir(exist_ok=True)
    data = np.random.default_rng(severity).normal(size=(count, points, 3)).astype(dtype)
    np.save(folder / f"data_{name}_{severity}.npy", data)
    np.save(folder / "label.npy", np.arange(count)[:, None] * 5)
    return data


def read(folder, **keys):
    return build_dataset(
        {"NAME": "ModelNet40_C", "DATA_PATH": str(folder), "corruption": "uniform", "severity": 2, **keys}
    )


def test_clouds_labels_and_names(tmp_path):
    data = made(tmp_path)
    clouds = read(tmp_path)
    assert isinstance(clouds.points, np.memmap) and np.array_equal(clouds.points, data)
    assert clouds.labels.tolist() == [0, 5, 10, 15, 20, 25, 30] and clouds.labels.dtype == np.int64
    assert len(CLASSES) == 40 and clouds.class_names == CLASSES == sorted(CLASSES)
    assert clouds.names[3] == "data_uniform_2.npy[3]" and clouds.name == "ModelNet40_C uniform 2"
    assert (clouds.npoints, clouds.normalize, clouds.up_axis, clouds.subset) == (30, False, "y", "test")
    batch = next(Batches(clouds, batch_size=4, seed=0).evaluation())
    assert np.array_equal(batch.points.numpy(), data[:4])
    assert read(tmp_path, npoints=12).npoints == 12
    # The published file stays as it is.
    clouds.points[0] = 0
    assert np.array_equal(np.load(tmp_path / "data_uniform_2.npy"), data)


def test_double_precision_and_own_class_names(tmp_path):
    data = made(tmp_path, dtype=np.float64)
    names = [f"kind {label}" for label in range(31)]
    (tmp_path / "shape_names.txt").write_text("\n".join(names))
    clouds = read(tmp_path)
    assert np.array_equal(clouds.points, data.astype(np.float32)) and clouds.class_names == names


def test_what_is_there(tmp_path):
    assert len(CORRUPTIONS) == 15 == len(set(CORRUPTIONS))
    for severity in (4, 1):
        made(tmp_path, "lidar", severity)
    made(tmp_path, "shear", 5)
    found, lost = present(tmp_path)
    assert found == [("lidar", 1), ("lidar", 4), ("shear", 5)]
    assert len(lost) == 15 * len(SEVERITIES) - 3 and "data_lidar_2.npy" in lost and "data_lidar_4.npy" not in lost


def test_bad_keys(tmp_path):
    made(tmp_path)
    for keys, message in (
        ({"corruption": "unifrom"}, "corruption 'unifrom' is unknown; did you mean uniform"),
        ({"corruption": ""}, "corruption '' is unknown; known: background"),
        ({"severity": 6}, "severity 6 is unknown; choose 1 to 5"),
        ({"subset": "train"}, "it is a test set only"),
        ({"npoints": 31}, "31 points a sample are asked, but its clouds hold 30"),
        ({"severity": 3}, "data_uniform_3.npy: file does not exist. Expected there: label.npy"),
        (
            {"DATA_PATH": str(tmp_path / "none")},
            "folder does not exist. Expected there: label.npy .* distortion_rbf_inv",
        ),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, **keys)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data_occlusion_1.npy: file does not exist"):
        present(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_uniform_2.npy", np.zeros((6, 30, 3), np.float32), "holds 6 clouds, and label.npy next to it 7 labels"),
        ("data_uniform_2.npy", np.zeros((7, 30), np.float32), r"holds \(7, 30\) float32; expected clouds \(M, P, 3\)"),
        ("data_uniform_2.npy", np.zeros((7, 0, 3), np.float32), r"holds \(7, 0, 3\)"),
        ("data_uniform_2.npy", np.zeros((7, 30, 3), np.int32), "int32; expected clouds"),
        ("data_uniform_2.npy", np.array([{}], object), "cannot be read as a NumPy array.* copy or download it again"),
        ("data_uniform_2.npy", b"\x93NUMPY", "cannot be read as a NumPy array"),
        ("data_uniform_2.npy", None, "cannot be read as a NumPy array"),
        ("label.npy", np.array([0, 1, 2, 3, 4, 40, 6]), "label 40 of cloud 5 is out of range 0 to 39"),
        ("label.npy", np.array([0, 1, 2, 3, 4, -1, 6]), "label -1 of cloud 5"),
        ("label.npy", np.array([0.5] * 7), "labels are not whole numbers"),
        ("label.npy", np.array(list("abcdefg")), "expected one class id a cloud"),
        ("label.npy", np.zeros(0), "expected one class id a cloud"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_files(tmp_path, file, content, message):
    made(tmp_path)
    path = tmp_path / file
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_points_that_are_no_numbers(tmp_path):
    data = made(tmp_path)
    data[5, 3, 1] = np.nan
    np.save(tmp_path / "data_uniform_2.npy", data)
    with pytest.raises(UserError, match=r"data_uniform_2.npy: cloud 5 holds NaN"):
        read(tmp_path)
    (tmp_path / "label.npy").unlink()
    with pytest.raises(UserError, match=r"label.npy: file does not exist"):
        read(tmp_path)
