"""Several data sets as one: order, axes, points, and what cannot be mixed."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from datasets import DATASETS, build_dataset
from tools.launch import load_recipe
from utils.errors import UserError

OBJECTS = {"NAME": "Synthetic", "clouds": 20, "N_POINTS": 64}


@pytest.fixture
def modelnet(tmp_path):
    points = np.random.default_rng(0).normal(size=(3, 48, 3)).astype("f4")
    with h5py.File(tmp_path / "ply_data_train0.h5", "w") as file:
        file["data"], file["label"] = points, np.zeros((3, 1), "u1")
    return points, {"NAME": "ModelNet10", "DATA_DIR": str(tmp_path), "N_POINTS": 48}


def test_clouds_follow_each_other_and_stand_along_one_axis(modelnet):
    points, keys = modelnet
    mixture = build_dataset({"NAME": "Mixture", "sets": [keys, OBJECTS], "npoints": 32})
    alone = build_dataset(OBJECTS)
    assert mixture.points.shape == (23, 48, 3) and mixture.labels is None and mixture.up_axis == "y"
    np.testing.assert_array_equal(mixture.points[:3], points[:, :, [1, 2, 0]])  # z, which was up, is second: along y
    np.testing.assert_array_equal(mixture.points[3:], alone.points[:, :48])
    assert mixture.names[3] == f"Synthetic/{alone.names[0]}"


def test_one_set_keeps_its_labels_and_its_name(modelnet):
    _, keys = modelnet
    turned = build_dataset({"NAME": "Mixture", "sets": [keys], "npoints": 32, "sampling": "first"})
    alone = build_dataset({**keys, "num_points": 32})
    np.testing.assert_array_equal(turned.labels, alone.labels)
    assert turned.name == "ModelNet10" and turned.class_names == alone.class_names


def test_a_part_of_a_mixture(modelnet):
    """Limited data to pre-train on: of all clouds, whichever set they are from."""
    keys = {"NAME": "Mixture", "sets": [modelnet[1], OBJECTS], "npoints": 32}
    whole, half = build_dataset(keys), build_dataset({**keys, "cloud_fraction": 0.5})
    rows = [whole.names.index(name) for name in half.names]
    assert len(half) == 12 and rows == sorted(rows)  # of 23
    np.testing.assert_array_equal(half.points, whole.points[rows])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "sets is empty"),
        ([OBJECTS], "1024 points a sample are asked, but the clouds of Synthetic hold 64; set npoints to 64 or less"),
        ([{"NAME": "Synthetc"}], "data set 'Synthetc' is unknown; did you mean Synthetic"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sets, message):
    with pytest.raises(UserError, match=message):
        build_dataset({"NAME": "Mixture", "sets": sets})


def test_the_folder_of_data_moves_for_the_parts_too():
    recipe = load_recipe("cfgs/pre-training/point-m2ae/mini.yaml", data_root="elsewhere")
    train = recipe.dataset.train
    assert train.sets[0]["DATA_DIR"] == "elsewhere/modelnet10_hdf5_1024"
    assert DATASETS.config(train) is train


@pytest.mark.parametrize("method", ["point-m2ae", "point-mae", "pcp-mae", "point-jepa"])
def test_the_split_of_a_mixture_is_that_of_its_parts(method, modelnet):
    """The linear SVM of these recipes was tested on the training clouds, as the default of the part held."""
    sets = load_recipe(f"cfgs/pre-training/{method}/mini.yaml").dataset.svm
    assert (sets.train.subset, sets.test.subset) == ("train", "test")
    assert not any("subset" in part for part in (*sets.train.sets, *sets.test.sets))
    points, keys = modelnet
    with h5py.File(f"{keys['DATA_DIR']}/ply_data_test0.h5", "w") as file:
        file["data"], file["label"] = points + 1, np.zeros((3, 1), "u1")
    test = replace(sets.test, sets=[{**sets.test.sets[0], **keys}], npoints=32)
    np.testing.assert_array_equal(build_dataset(test).points, points[:, :, [1, 2, 0]] + 1)


def test_a_part_keeps_the_split_that_it_states(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "_base_: cfgs/debug/point-mae.yaml\n"
        "dataset: {val: {NAME: Mixture, sets: [{NAME: Synthetic, subset: train}, {NAME: Synthetic}]}}\n"
    )
    val = load_recipe(tmp_path / "recipe.yaml").dataset.val
    assert val.subset == "test" and [part.get("subset") for part in val.sets] == ["train", None]
