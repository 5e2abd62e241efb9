"""Sets of clouds: HDF5, lists of arrays, published text, folds; the right numbers, or one message."""

import json
import os
import pickle

import h5py
import numpy as np
import pytest

from datasets import build_dataset
from datasets.batches import Batches
from utils.errors import UserError

FAR = np.array([4_543_210.0, 512_345.0, 101.0])


@pytest.fixture
def clouds():
    return np.random.default_rng(0).normal(size=(6, 64, 3)) * [0.3, 0.5, 0.2]


def write_hdf5(folder, data, labels=None, subset="train"):
    folder.mkdir(exist_ok=True)
    path = folder / f"ply_data_{subset}0.h5"
    with h5py.File(path, "w") as file:
        file["data"] = data
        file["label"] = np.arange(len(data)) % 2 if labels is None else labels
    return path


def read_hdf5(folder, **keys):
    return build_dataset({"NAME": "ModelNet10", "DATA_DIR": str(folder), "num_points": 64, **keys})


def write_shapenet(folder, clouds):
    (folder / "lists").mkdir(parents=True)
    (folder / "clouds").mkdir()
    names = [f"{i % 2}-{i}.npy" for i in range(len(clouds))]
    for name, cloud in zip(names, clouds, strict=True):
        np.save(folder / "clouds" / name, cloud)
    for subset in ("train", "test"):
        (folder / "lists" / f"{subset}.txt").write_text("\n".join(names) + "\n")


def read_shapenet(folder, **keys):
    paths = {"DATA_PATH": str(folder / "lists"), "PC_PATH": str(folder / "clouds")}
    return build_dataset({"NAME": "ShapeNet", **paths, "N_POINTS": 64, "npoints": 64, "sampling": "first", **keys})


def batch(clouds):
    return next(Batches(clouds, batch_size=len(clouds), seed=0).evaluation()).points.numpy()


def on_sphere(clouds):
    centred = clouds - clouds.mean(axis=1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=2).max(axis=1)[:, None, None]


# K1: clouds far from the origin


@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6, 4.5e6, 1e9])
def test_k1_hdf5_and_arrays_in_map_coordinates(tmp_path, clouds, offset):
    write_hdf5(tmp_path / "h5", clouds + offset)
    write_shapenet(tmp_path / "npy", clouds + offset)
    for found in (batch(read_hdf5(tmp_path / "h5", normalize=True)), batch(read_shapenet(tmp_path / "npy"))):
        np.testing.assert_allclose(found, on_sphere(clouds), atol=1e-6 + 1e-16 * offset * 10)
    centred = batch(read_hdf5(tmp_path / "h5"))  # not normalised, but near the origin
    np.testing.assert_allclose(centred, clouds - clouds.mean(axis=1, keepdims=True), atol=1e-6 + 1e-15 * offset)


def test_k1_clouds_near_the_origin_keep_their_numbers(tmp_path, clouds):
    write_hdf5(tmp_path / "h5", clouds + 3)
    np.testing.assert_array_equal(batch(read_hdf5(tmp_path / "h5")), (clouds + 3).astype(np.float32))


def test_k1_single_precision_far_away_is_centred_as_well(tmp_path, clouds):
    far = (clouds + 1e6).astype(np.float32)
    write_hdf5(tmp_path / "h5", far)
    found = batch(read_hdf5(tmp_path / "h5", normalize=True))
    np.testing.assert_allclose(found, on_sphere(far.astype(np.float64)), atol=1e-6)


def test_k1_folder_and_modelnet_text(tmp_path, clouds):
    for label in range(2):
        (tmp_path / "own" / f"c{label}").mkdir(parents=True)
        for i in range(3):
            np.save(tmp_path / "own" / f"c{label}" / f"{i}.npy", clouds[3 * label + i] + FAR)
    keys = {"N_POINTS": 64, "TEST_SHARE": 0.0, "sampling": "first"}
    found = batch(build_dataset({"NAME": "Folder", "DATA_PATH": str(tmp_path / "own"), **keys}))
    for one, cloud in zip(found, on_sphere(clouds), strict=True):  # in another order of points
        np.testing.assert_allclose(np.sort(one, axis=0), np.sort(cloud, axis=0), atol=1e-6)


# K2, K5: values that are none, damage


@pytest.mark.parametrize("value", [1e39, np.nan, -np.inf])
def test_k2_values_beyond_single_precision_name_the_cloud(tmp_path, clouds, value):
    clouds[4, 3, 1] = value
    path = write_hdf5(tmp_path / "h5", clouds)
    with pytest.raises(UserError, match=f"{path}: cloud 4 "):
        read_hdf5(tmp_path / "h5")


def test_chunks_that_were_never_written_are_refused(tmp_path, clouds):
    path = write_hdf5(tmp_path / "h5", clouds)
    for options in ({"chunks": (2, 64, 3)}, {}):
        with h5py.File(path, "w") as file:
            data = file.create_dataset("data", clouds.shape, "f4", **options)
            if options:
                data[:2] = clouds[:2]
            file["label"] = np.zeros(6, int)
        with pytest.raises(UserError, match="never written"):
            read_hdf5(tmp_path / "h5")


def test_values_in_other_files_are_not_read(tmp_path, clouds):
    path = write_hdf5(tmp_path / "h5", clouds)
    other = tmp_path / "other.h5"
    path.rename(other)
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(other), "data")
        file["label"] = np.zeros(6, int)
    with pytest.raises(UserError, match="are in another file"):
        read_hdf5(tmp_path / "h5")
    layout = h5py.VirtualLayout(clouds.shape, "f8")
    layout[:] = h5py.VirtualSource(str(other), "data", clouds.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
        file["label"] = np.zeros(6, int)
    with pytest.raises(UserError, match="are in another file"):
        read_hdf5(tmp_path / "h5")


def test_hdf5_with_flipped_bits(tmp_path, clouds):
    """Every eighth byte of the structure of a file in turn: the same clouds, or one message."""
    path = write_hdf5(tmp_path / "h5", clouds.astype(np.float32))
    data = path.read_bytes()
    good = batch(read_hdf5(tmp_path / "h5"))
    for position in range(0, 2048, 32):
        flipped = bytearray(data)
        flipped[position] ^= 0x55
        path.write_bytes(flipped)
        try:
            found = batch(read_hdf5(tmp_path / "h5"))
        except UserError as error:
            assert str(path.parent) in str(error) and len(str(error)) < 800
        else:
            assert found.shape == good.shape


# K4: byte order marks in lists


def test_k4_names_in_lists_have_no_mark(tmp_path, clouds):
    write_hdf5(tmp_path / "h5", clouds)
    (tmp_path / "h5" / "shape_names.txt").write_text("chair\ntable\n", encoding="utf-8-sig")
    assert read_hdf5(tmp_path / "h5").class_names == ["chair", "table"]
    write_shapenet(tmp_path / "npy", clouds)
    listing = tmp_path / "npy" / "lists" / "train.txt"
    listing.write_text(listing.read_text(), encoding="utf-8-sig")
    assert read_shapenet(tmp_path / "npy").class_names == ["0", "1"]


# K9: other shapes


def test_k9_columns_after_the_coordinates_are_left_out(tmp_path, clouds):
    write_hdf5(tmp_path / "h5", np.concatenate([clouds, clouds * 2], axis=2))
    np.testing.assert_array_equal(batch(read_hdf5(tmp_path / "h5")), clouds.astype(np.float32))
    write_hdf5(tmp_path / "turned", clouds.swapaxes(1, 2))
    with pytest.raises(UserError, match="transpose"):
        read_hdf5(tmp_path / "turned")


@pytest.mark.parametrize("form", ["{:.6f},{:.6f},{:.6f}", "{:.6f} {:.6f} {:.6f}", "{:.6f},{:.6f},{:.6f},0,0,1"])
def test_k9_modelnet_text_without_normals_or_with_blanks(tmp_path, clouds, form):
    (tmp_path / "chair").mkdir()
    (tmp_path / "modelnet40_shape_names.txt").write_text("chair\n", encoding="utf-8-sig")
    (tmp_path / "modelnet40_train.txt").write_text("chair_0001\n")
    lines = [form.format(*row) for row in clouds[0]]
    (tmp_path / "chair" / "chair_0001.txt").write_text("\n".join(lines) + "\n")
    found = batch(build_dataset({"NAME": "ModelNet", "DATA_PATH": str(tmp_path), "N_POINTS": 64, "sampling": "all"}))
    np.testing.assert_allclose(np.sort(found[0], axis=0), np.sort(on_sphere(clouds)[0], axis=0), atol=1e-5)


# K18: the published cache without its lists


def test_k18_a_published_cache_alone(tmp_path, clouds):
    table = np.concatenate([clouds, clouds], axis=2).astype(np.float32)
    content = [list(table), [np.array([label], np.int32) for label in (3, 39, 0, 1, 2, 3)]]
    (tmp_path / "modelnet40_test_64pts_fps.dat").write_bytes(pickle.dumps(content))
    found = build_dataset({"NAME": "ModelNet", "DATA_PATH": str(tmp_path), "N_POINTS": 64, "subset": "test"})
    assert found.labels.tolist() == [3, 39, 0, 1, 2, 3]
    assert found.class_names[39] == "xbox" and len(found.class_names) == 40
    np.testing.assert_allclose(batch(found), on_sphere(clouds), atol=1e-5)


# Lists


def test_entries_twice_are_refused(tmp_path, clouds):
    write_shapenet(tmp_path, clouds)
    listing = tmp_path / "lists" / "train.txt"
    listing.write_text(listing.read_text() + "0-0.npy\n")
    with pytest.raises(UserError, match=r"train\.txt: entry 7, 0-0\.npy, is entry 1"):
        read_shapenet(tmp_path)


@pytest.mark.parametrize("content", ["[" * 5000, '{"a": 1', "\0\0\0", "[1, 2]", '["a/b/c", "a/b/c"]'])
def test_damaged_lists_of_parts(tmp_path, content):
    (tmp_path / "synsetoffset2category.txt").write_text("Cup\ta\n")
    (tmp_path / "train_test_split").mkdir()
    (tmp_path / "train_test_split" / "shuffled_test_file_list.json").write_text(content)
    with pytest.raises(UserError, match=r"shuffled_test_file_list\.json"):
        build_dataset({"NAME": "ShapeNetPart", "ROOT": str(tmp_path), "subset": "test"})


@pytest.mark.parametrize("label", [None, [], np.inf, "a", 0.5, [0, 1]])
def test_labels_of_folds_that_are_none(tmp_path, clouds, label):
    (tmp_path / "5way_1shot").mkdir()
    items = [(cloud.astype(np.float32), row if row else label, row) for row, cloud in enumerate(clouds[:5])]
    (tmp_path / "5way_1shot" / "0.pkl").write_bytes(pickle.dumps({"train": items, "test": items}))
    with pytest.raises(UserError, match=r"0\.pkl: the label of cloud 0"):
        build_dataset({"NAME": "ModelNetFewShot", "DATA_PATH": str(tmp_path), "way": 5, "shot": 1, "fold": 0})


@pytest.mark.parametrize("name", ["lists/train.txt", "clouds/0-0.npy"])
def test_pipes_and_devices_in_sets(tmp_path, clouds, name):
    write_shapenet(tmp_path, clouds)
    path = tmp_path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError):
        read_shapenet(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError):
        read_shapenet(tmp_path)


def test_parts_table_with_a_mark(tmp_path):
    from datasets.part_table import read_table

    table = {"Cup": {"parts": {"0": "rim"}}}
    (tmp_path / "parts.json").write_text(json.dumps(table), encoding="utf-8-sig")
    assert read_table(tmp_path / "parts.json", ["Cup"]).names == ["Cup rim"]
