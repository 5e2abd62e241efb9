"""Probes beside the linear SVM, on features whose answers are known."""

import numpy as np
import pytest

from tools.probes import PROBES, knn_probe


def blobs(count, spread, seed, classes=4):
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.eye(classes, 8) * 5 + 1
    return (centers[labels] + spread * draw.normal(size=(count, 8))).astype(np.float32), labels


@pytest.mark.parametrize("name", PROBES)
def test_separate_blobs_are_told_apart_and_noise_is_not(name):
    train, test = blobs(80, 0.3, 0), blobs(40, 0.3, 1)
    value, setting = PROBES[name](*train, *test)
    assert value == 1.0 and setting
    shuffled = np.random.default_rng(2).permutation(train[1])
    assert PROBES[name](train[0], shuffled, *test)[0] < 0.6


def test_neighbours_are_judged_by_direction_not_length():
    x = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 3, dtype=np.float32)
    y = np.array([0, 0, 1, 1] * 3)
    far = np.array([[100, 1], [1, 100]], dtype=np.float32)
    assert knn_probe(x, y, far, np.array([0, 1]))[0] == 1.0


def test_few_clouds_limit_the_neighbours():
    train, test = blobs(8, 0.1, 0), blobs(8, 0.1, 1)
    assert knn_probe(*train, *test)[0] == 1.0
