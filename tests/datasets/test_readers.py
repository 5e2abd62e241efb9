"""Readers on tiny files in the published layouts, and one clear message for each kind of bad input."""

import os
from pathlib import Path

import numpy as np
import pytest
from torch import equal, from_numpy

from datasets import DATASETS, Batches, build_dataset
from datasets.modelnet import ModelNet10Config, ModelNet40SVMConfig, read_modelnet
from datasets.scanobjectnn import ScanObjectNNConfig, read_scanobjectnn
from datasets.shapenet import ShapeNetConfig, read_shapenet
from utils.errors import UserError

SHARED = Path(os.environ.get("M2AE_SHARED", Path(__file__).parents[3] / "shared"))


def modelnet_set(folder, **keys):
    return read_modelnet(ModelNet40SVMConfig(DATA_DIR=str(folder), **{"num_points": 16, **keys}))


def shapenet_set(shapenet, **keys):
    lists, files = shapenet
    defaults = {"N_POINTS": 32, "npoints": 8}
    return read_shapenet(ShapeNetConfig(DATA_PATH=str(lists), PC_PATH=str(files), **{**defaults, **keys}))


def test_modelnet_reads_all_files_in_order(modelnet):
    for folder in (modelnet, modelnet.parent):
        train = modelnet_set(folder)
        assert train.points.shape == (8, 64, 3) and train.npoints == 16 and train.sampling == "first"
        assert train.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert train.class_names == ["chair", "lamp", "table"]
    assert train.names[5] == "ply_data_train1.h5[0]"
    assert not train.normalize and train.up_axis == "y"
    assert len(modelnet_set(modelnet, subset="test")) == 4
    assert modelnet_set(modelnet, N_POINTS=20).points.shape == (8, 20, 3)


def test_modelnet_values_are_those_of_the_file(modelnet):
    import h5py

    with h5py.File(modelnet / "ply_data_train1.h5") as file:
        stored = np.asarray(file["data"])
    train = modelnet_set(modelnet)
    assert np.array_equal(train.points[5:], stored)
    batch = list(Batches(train, batch_size=4, seed=0).evaluation())[1]
    assert equal(batch.points[1:], from_numpy(stored[:, :16]))


def test_modelnet10_is_z_up_and_may_be_sampled(modelnet):
    config = ModelNet10Config(DATA_DIR=str(modelnet), npoints=32, num_points=16, sampling="random", normalize=True)
    train = read_modelnet(config)
    assert (train.up_axis, train.npoints, train.sampling, train.normalize) == ("z", 32, "random", True)


def test_files_are_numbered_not_spelled(modelnet, write_h5):
    for number in (10, 2):
        write_h5(
            modelnet / f"ply_data_train{number}.h5", data=np.random.default_rng(0).normal(size=(1, 64, 3)), label=[2]
        )
    assert modelnet_set(modelnet).names[-2:] == ["ply_data_train2.h5[0]", "ply_data_train10.h5[0]"]


def test_shapenet(shapenet):
    train = shapenet_set(shapenet)
    assert train.points.shape == (3, 32, 3) and train.points.dtype == np.float32
    assert (train.npoints, train.sampling, train.normalize) == (8, "random", True)
    assert train.class_names == ["0001", "0002", "0003"] and train.labels.tolist() == [0, 1, 0]
    assert train.names == ["0001-a", "0002-b-c", "0001-d"]
    whole = shapenet_set(shapenet, whole=True)
    assert whole.names == ["0003-e", "0002-f", *train.names]
    assert np.array_equal(whole.points[2:], train.points)


def test_scanobjectnn(tmp_path, write_h5):
    data = np.random.default_rng(0).normal(size=(6, 40, 3)).astype(np.float32) * 5
    for name in ("training_objectdataset", "test_objectdataset", "training_objectdataset_augmentedrot_scale75"):
        write_h5(
            tmp_path / f"{name}.h5",
            data=data[: 4 if "rot" in name else 6],
            label=np.arange(6)[: 4 if "rot" in name else 6],
        )
    train = read_scanobjectnn(ScanObjectNNConfig(ROOT=str(tmp_path)))
    assert np.array_equal(train.points, data) and not train.normalize and len(train.class_names) == 15
    assert train.npoints == 40
    test = read_scanobjectnn(ScanObjectNNConfig(ROOT=str(tmp_path), subset="test"))
    assert equal(next(Batches(test, batch_size=6, seed=0).evaluation()).points, from_numpy(data))
    # Training clouds come in another point order, drawn from the seed.
    first, again, other = (next(Batches(train, batch_size=6, seed=seed).evaluation()).points for seed in (0, 0, 1))
    assert equal(first, again) and not equal(first, other) and not equal(first, from_numpy(data))
    assert equal(first.sort(dim=1).values, from_numpy(data).sort(dim=1).values)
    assert len(read_scanobjectnn(ScanObjectNNConfig(ROOT=str(tmp_path), SPLIT="PB"))) == 4


def test_build_dataset_by_name(modelnet):
    mapping = {"NAME": "ModelNet40_SVM", "DATA_DIR": str(modelnet), "num_points": 16}
    assert len(build_dataset(mapping)) == 8
    assert len(build_dataset(ModelNet40SVMConfig(DATA_DIR=str(modelnet), num_points=16))) == 8


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "cfgs" / "dataset").glob("*.yaml")), ids=lambda p: p.stem
)
def test_dataset_yaml_fits_its_dataclass(path):
    yaml = pytest.importorskip("yaml")
    text = path.read_text()
    mapping = yaml.safe_load(text)
    if mapping["NAME"] not in DATASETS.names():
        pytest.skip(f"{mapping['NAME']} has no reader yet")
    config = DATASETS.config({**mapping, "subset": "train", "npoints": 16, "bs": 4})
    assert text.startswith("# ")
    assert (config.NAME, config.npoints, config.subset) == (mapping["NAME"], 16, "train")


def bad_modelnet(message, **arrays):
    good = {"data": np.zeros((3, 64, 3), np.float32), "label": np.zeros((3, 1), np.uint8)}
    return {key: value for key, value in {**good, **arrays}.items() if value is not None}, message


def holding(value):
    data = np.zeros((3, 64, 3), np.float32)
    data[2, 5, 1] = value
    return data


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        bad_modelnet(r"'data' is missing \(the file holds label\)", data=None),
        bad_modelnet("'label' is missing", label=None),
        bad_modelnet(r"'data' has shape \(3, 64\)", data=np.zeros((3, 64))),
        bad_modelnet(r"'data' has shape \(3, 64, 2\)", data=np.zeros((3, 64, 2))),
        bad_modelnet(r"'data' has shape \(3, 3, 64\).*transpose", data=np.zeros((3, 3, 64))),
        bad_modelnet("points of cloud 0 are all in one place", data=np.zeros((3, 64, 3))),
        bad_modelnet("'data' is empty", data=np.zeros((0, 64, 3)), label=np.zeros(0)),
        bad_modelnet("'data' is empty", data=np.zeros((3, 0, 3))),
        bad_modelnet(r"'label' has shape \(2,\).* for 3 clouds", label=np.zeros(2, int)),
        bad_modelnet("cloud 2 holds NaN or infinite", data=holding(np.nan)),
        bad_modelnet("cloud 2 holds NaN or infinite", data=holding(-np.inf)),
        bad_modelnet("label 3 of cloud 1 is out of range 0 to 2", label=[0, 3, 0]),
        bad_modelnet("label -1 of cloud 2 is out of range", label=[0, 1, -1]),
        bad_modelnet("not whole numbers", label=[0, 1, 0.5]),
        bad_modelnet("not whole numbers", label=[0, 1, np.nan]),
    ],
)
def test_bad_hdf5(modelnet, write_h5, cache, arrays, message):
    path = write_h5(modelnet / "ply_data_test0.h5", **arrays)
    with pytest.raises(UserError, match=message) as error:
        modelnet_set(modelnet, subset="test")
    assert str(path) in str(error.value)
    assert not cache.exists() or not [folder for folder in cache.iterdir() if folder.is_dir()]


@pytest.mark.parametrize("content", ["cut", "text", "empty"])
def test_unreadable_hdf5(modelnet, content):
    path = modelnet / "ply_data_test0.h5"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"<html>not found</html>", "empty": b""}[content])
    with pytest.raises(UserError, match=r"cannot be opened as HDF5.*README, section Data") as error:
        modelnet_set(modelnet, subset="test")
    assert str(path) in str(error.value)


def test_damage_inside_an_hdf5_file(modelnet, write_h5):
    """A compressed chunk with flipped bits opens, but cannot be read."""
    import h5py

    path = modelnet / "ply_data_test0.h5"
    with h5py.File(path, "w") as file:
        data = np.random.default_rng(0).normal(size=(4, 64, 3))
        chunk = file.create_dataset("data", data=data, compression="gzip", chunks=(4, 64, 3)).id.get_chunk_info(0)
        file["label"] = np.zeros(4, int)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + 64] = bytes(64)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="cannot be read as HDF5, clouds 0 to 3"):
        modelnet_set(modelnet, subset="test")


def test_missing_and_mismatched_modelnet(modelnet, tmp_path, write_h5):
    with pytest.raises(UserError, match=r"nowhere.* does not exist.*ply_data_train.*README, section Data"):
        modelnet_set(tmp_path / "nowhere")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match=r"ply_data_train0\.h5.*does not exist"):
        modelnet_set(tmp_path / "hollow")
    with pytest.raises(
        UserError, match="modelnet40_ply_hdf5_2048: 65 points a sample are asked, but its clouds hold 64"
    ):
        modelnet_set(modelnet, num_points=65)
    with pytest.raises(UserError, match="subset 'trian' is unknown"):
        modelnet_set(modelnet, subset="trian")
    with pytest.raises(UserError, match="USE_NORMALS"):
        modelnet_set(modelnet, USE_NORMALS=True)
    write_h5(modelnet / "ply_data_train2.h5", data=np.zeros((2, 32, 3)), label=[0, 0])
    with pytest.raises(UserError, match=r"different numbers of points.*ply_data_train2\.h5: 32"):
        modelnet_set(modelnet)
    (modelnet / "shape_names.txt").write_text("\n")
    with pytest.raises(UserError, match=r"shape_names\.txt: is empty"):
        modelnet_set(modelnet, subset="test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((32, 2)), r"shape \(32, 2\); expected \(32, 3\)"),
        (np.zeros((31, 3)), r"shape \(31, 3\)"),
        (np.full((32, 3), np.nan), "NaN or infinite"),
        (np.array(["text"]), "no array of numbers"),
        (b"not an array", "cannot be read as a NumPy array"),
        (b"", "cannot be read as a NumPy array"),
        (None, "does not exist"),
    ],
)
def test_bad_shapenet_cloud(shapenet, content, message):
    path = shapenet[1] / "0002-b-c.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=message) as error:
        shapenet_set(shapenet)
    assert str(path) in str(error.value)


def test_bad_shapenet_lists(shapenet):
    lists, _ = shapenet
    (lists / "test.txt").write_text("")
    with pytest.raises(UserError, match=r"test\.txt: the list is empty"):
        shapenet_set(shapenet, subset="test")
    (lists / "test.txt").write_text("0003-e.npy\n../secret-x.npy\n")
    with pytest.raises(UserError, match=r"entry 2 is .*secret-x\.npy"):
        shapenet_set(shapenet, subset="test")
    (lists / "train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt: file does not exist.*one file name.*README, section Data"):
        shapenet_set(shapenet)
    with pytest.raises(UserError, match="33 points a sample"):
        (lists / "train.txt").write_text("0001-a.npy\n")
        (lists / "test.txt").write_text("0003-e.npy\n")
        shapenet_set(shapenet, npoints=33)


def test_bad_scanobjectnn(tmp_path):
    with pytest.raises(UserError, match="SPLIT 'OBJ_BG' is unknown; choose one of OBJ-BG"):
        read_scanobjectnn(ScanObjectNNConfig(ROOT=str(tmp_path), SPLIT="OBJ_BG"))
    with pytest.raises(UserError, match=r"test_objectdataset\.h5: file does not exist"):
        read_scanobjectnn(ScanObjectNNConfig(ROOT=str(tmp_path), subset="test"))


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "data/modelnet10_hdf5_1024").is_dir(), reason="ModelNet10 is absent; set M2AE_SHARED")
def test_real_modelnet10():
    sets = {
        subset: read_modelnet(ModelNet10Config(subset=subset, DATA_DIR=str(SHARED / "data" / "modelnet10_hdf5_1024")))
        for subset in ("train", "test")
    }
    assert [len(sets[subset]) for subset in ("train", "test")] == [3991, 908]
    assert sets["train"].class_names[0] == "bathtub" and len(sets["train"].class_names) == 10
    assert sets["test"].npoints == 1024 and sets["test"].up_axis == "z"
    assert np.linalg.norm(sets["test"].points, axis=2).max() <= 1 + 1e-3  # stored in half precision
    assert sorted(set(sets["train"].labels.tolist())) == list(range(10))
