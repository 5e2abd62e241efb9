"""Accuracy and confusion by hand-worked cases, and where a run comes from."""

import numpy as np
import pytest
import torch

from utils import provenance as module
from utils.errors import UserError
from utils.metrics import accuracy, confusion_matrix, per_class_accuracy
from utils.provenance import config_hash, git_revision, provenance

PREDICTIONS, LABELS = [0, 1, 1, 2, 0], [0, 1, 0, 2, 0]


def test_hand_worked_case():
    assert accuracy(PREDICTIONS, LABELS) == 0.8
    assert confusion_matrix(PREDICTIONS, LABELS, 4).tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    per_class = per_class_accuracy(np.array(PREDICTIONS), torch.tensor(LABELS), 4)
    np.testing.assert_allclose(per_class, [2 / 3, 1, 1, np.nan])


def test_against_counting():
    draw = np.random.default_rng(0)
    predictions, labels = draw.integers(0, 7, (2, 500))
    matrix = confusion_matrix(predictions, labels, 7)
    for true in range(7):
        for guess in range(7):
            assert matrix[true, guess] == np.sum((labels == true) & (predictions == guess))
    assert matrix.trace() / matrix.sum() == accuracy(predictions, labels)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "nothing to evaluate"),
        ([0, 1], [0], "must both be"),
        ([[0]], [[0]], "must both be"),
        ([0, 4], [0, 1], "predictions hold class 4; 3 classes are 0 to 2"),
        ([0, 1], [0, -1], "labels hold class -1"),
    ],
)
def test_bad_input(predictions, labels, message):
    with pytest.raises(UserError, match=message):
        confusion_matrix(np.array(predictions, dtype=int), np.array(labels, dtype=int), 3)


def test_provenance_is_text(monkeypatch, tmp_path):
    entries = provenance()
    assert entries["torch"] == torch.__version__ and entries["numpy"] == np.__version__
    assert all(isinstance(value, str) for value in entries.values())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert git_revision() == "unknown"
    (tmp_path / ".git").mkdir()  # no repository either, only a folder of that name
    assert git_revision() == "unknown"


def test_config_hash_sees_values_not_order():
    assert config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2}) and len(config_hash({})) == 12
