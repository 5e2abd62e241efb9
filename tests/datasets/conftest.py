"""Fixtures of the data-set tests: a cache of their own, and tiny files in the published layouts."""

import numpy as np
import pytest
import torch

from extensions import fps


@pytest.fixture(scope="session")
def compiled_ops():
    """Load the compiled ops before a test gets a cache folder of its own, where they would be compiled anew."""
    fps(torch.zeros(1, 1, 3), 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("M2AE_CACHE", str(folder))
    return folder


@pytest.fixture
def write_h5():
    """Write an HDF5 file from keyword arrays and return its path."""
    h5py = pytest.importorskip("h5py")

    def write(path, **arrays):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
        return path

    return write


def clouds(count, points, seed=0):
    return np.random.default_rng(seed).normal(size=(count, points, 3)).astype(np.float32)


@pytest.fixture
def modelnet(tmp_path, write_h5):
    """modelnet40_ply_hdf5_2048 with two training files (5 + 3 clouds), one test file (4), 64 points, 3 classes."""
    folder = tmp_path / "data" / "modelnet40_ply_hdf5_2048"
    sizes = {"ply_data_train0": 5, "ply_data_train1": 3, "ply_data_test0": 4}
    for seed, (name, count) in enumerate(sizes.items()):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 3
        write_h5(folder / f"{name}.h5", data=clouds(count, 64, seed), label=labels)
    (folder / "shape_names.txt").write_text("chair\nlamp\ntable\n")
    return folder


@pytest.fixture
def shapenet(tmp_path):
    """ShapeNet-55 lists (3 training, 2 test clouds) and their .npy files of 32 points."""
    lists, files = tmp_path / "ShapeNet-55", tmp_path / "shapenet_pc"
    lists.mkdir()
    files.mkdir()
    names = {"train": ["0001-a.npy", "0002-b-c.npy", "0001-d.npy"], "test": ["0003-e.npy", "0002-f.npy"]}
    for subset, entries in names.items():
        (lists / f"{subset}.txt").write_text("\n".join(entries) + "\n")
        for seed, entry in enumerate(entries):
            np.save(files / entry, clouds(1, 32, seed)[0].astype(np.float64))
    return lists, files
