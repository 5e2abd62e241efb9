"""Fractions of training sets, and the part that is held out of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import CloudSet, build_dataset
from datasets.fractions import split_held_out
from utils.errors import UserError

KEYS = {"NAME": "Synthetic", "N_POINTS": 16, "clouds": 60, "categories": ["table", "mug", "bottle"]}


def build(**keys):
    return build_dataset({**KEYS, **keys})


def labelled(sizes, **keys):
    """Return a set with so many clouds of each class, in mixed order; every point of cloud i is i."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = np.broadcast_to(np.arange(len(labels), dtype=np.float32)[:, None, None], (len(labels), 4, 3))
    return CloudSet(points=np.ascontiguousarray(points), name="Toy", subset="train", labels=labels, **keys)


def test_label_fraction_takes_the_same_share_of_each_class():
    whole, tenth = build(), build(label_fraction=0.1)
    assert np.bincount(tenth.labels).tolist() == [2, 2, 2] and np.bincount(whole.labels).tolist() == [20, 20, 20]
    assert tenth.names == build(label_fraction=0.1).names  # nothing but the keys decides
    assert tenth.names != build(label_fraction=0.1, fraction_seed=1).names
    assert set(tenth.names) < set(build(label_fraction=0.25).names)
    rows = [whole.names.index(name) for name in tenth.names]
    assert rows == sorted(rows) and np.array_equal(tenth.points, whole.points[rows])


def test_a_class_keeps_at_least_one_cloud():
    assert np.bincount(build(label_fraction=0.01).labels).tolist() == [1, 1, 1]


def test_cloud_fraction_takes_clouds_of_any_class():
    quarter = build(cloud_fraction=0.25)
    assert len(quarter) == 15 and set(quarter.names) < set(build(cloud_fraction=0.5).names)
    assert len(build(cloud_fraction=0.001)) == 1


def test_first_fraction_takes_the_first_clouds():
    assert build(first_fraction=0.29).names == build().names[:17] and len(build(first_fraction=0.001)) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_fraction": 0.0}, "above 0"),
        ({"cloud_fraction": 1.5}, "above 0 and not above 1"),
        ({"label_fraction": 0.5, "cloud_fraction": 0.5}, "give one of them"),
        ({"cloud_fraction": 0.5, "first_fraction": 0.5}, "give one of them"),
        ({"label_fraction": 0.5, "subset": "test"}, "a test set is taken whole"),
        ({"fraction_seed": -1}, "must not be negative"),
    ],
)
def test_fractions_that_cannot_be(keys, message):
    with pytest.raises(UserError, match=message):
        build(**keys)


def test_label_fraction_needs_labels(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).normal(size=(20, 3)))
    keys = {"NAME": "Folder", "DATA_PATH": str(folder), "N_POINTS": 16, "TEST_SHARE": 0}
    with pytest.raises(UserError, match="no labels; use cloud_fraction"):
        build_dataset({**keys, "label_fraction": 0.5})
    assert len(build_dataset({**keys, "cloud_fraction": 0.5})) == 2


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(5, 30), min_size=2, max_size=5), share=st.floats(0.15, 0.85), seed=st.integers(0, 99))
def test_held_out_part_and_the_rest_are_the_set(sizes, share, seed):
    clouds = labelled(sizes)
    rest, held_out = split_held_out(clouds, share, seed)
    ids = [part.points[:, 0, 0].astype(int) for part in (rest, held_out)]
    assert sorted(np.concatenate(ids)) == list(range(len(clouds)))
    assert np.array_equal(clouds.labels[ids[0]], rest.labels) and np.array_equal(clouds.labels[ids[1]], held_out.labels)
    assert np.bincount(held_out.labels).tolist() == [round(share * size) for size in sizes]
    again = split_held_out(clouds, share, seed)[1]
    assert np.array_equal(again.points, held_out.points)


def test_held_out_part_that_leaves_a_class_empty():
    with pytest.raises(
        UserError, match=r"class mug has 4 clouds, and the held-out part would have none of them; .* above 0.125"
    ):
        split_held_out(labelled([20, 4], class_names=["table", "mug"]), 0.1, 0)
    with pytest.raises(UserError, match=r"the training part would have none of them; .* below 0.875"):
        split_held_out(labelled([20, 4]), 0.9, 0)
    with pytest.raises(UserError, match="class 1 has one cloud"):
        split_held_out(labelled([20, 1]), 0.1, 0)
