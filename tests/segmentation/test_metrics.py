"""Scores of part segmentation against a second, naive implementation, the published numbers, and hand-worked cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.part_table import SHAPENET_PARTS, owned_parts, shapenet_table
from models.segmenter import restricted_argmax
from segmentation.metrics import score_parts
from utils.errors import UserError

MIOU = Path(__file__).parent.parent / "parity" / "data" / "point-mae" / "miou.npz"
OWNED = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], bool)  # two categories, of two and three parts


def naive(predictions, parts, categories, owned):
    """Score as the protocol says it, point by point and part by part."""
    shapes, by_category = [], {}
    for cloud, category in enumerate(categories):
        ious = []
        for part in np.flatnonzero(owned[category]):
            true = {i for i, p in enumerate(parts[cloud]) if p == part}
            guessed = {i for i, p in enumerate(predictions[cloud]) if p == part}
            ious.append(len(true & guessed) / len(true | guessed) if true | guessed else 1.0)
        shapes.append(sum(ious) / len(ious))
        by_category.setdefault(int(category), []).append(shapes[-1])
    recalls = []
    for part in np.unique(parts):
        there = parts == part
        recalls.append((predictions[there] == part).mean())
    means = {category: sum(values) / len(values) for category, values in by_category.items()}
    return {
        "instance_miou": sum(shapes) / len(shapes),
        "class_miou": sum(means.values()) / len(means),
        "accuracy": (predictions == parts).mean(),
        "class_accuracy": sum(recalls) / len(recalls),
        "categories": means,
    }


def check(predictions, parts, categories, owned):
    scores, expected = score_parts(predictions, parts, categories, owned), naive(predictions, parts, categories, owned)
    for name, value in scores.row().items():
        assert value == pytest.approx(expected[name], abs=1e-12), name
        assert 0 <= value <= 1
    for category, value in enumerate(scores.category_ious):
        assert np.isnan(value) if category not in expected["categories"] else value == pytest.approx(
            expected["categories"][category]
        )  # fmt: skip
    assert scores.confusion.sum() == parts.size
    return scores


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_agrees_with_the_naive_implementation(seed, clouds, points, degenerate):
    """Random labels, and degenerate ones, where most parts are absent and a category may have no cloud."""
    rng = np.random.default_rng(seed)
    owned = np.zeros((4, 9), bool)
    for row, ids in enumerate(([0], [1, 2], [3, 4, 5, 6], [7, 8])):
        owned[row, ids] = True
    categories = rng.integers(0, 2 if degenerate else 4, clouds)

    def draw():
        rows = [
            rng.choice(np.flatnonzero(owned[category])[: 1 if degenerate else 9], points) for category in categories
        ]
        return np.stack(rows)

    check(draw(), draw(), categories, owned)


def test_hand_worked():
    """Part 1 of the first cloud is absent from both and counts 1; a part that is only predicted counts 0."""
    parts = np.array([[0, 0, 0, 0], [2, 2, 3, 3]])
    predictions = np.array([[0, 0, 0, 0], [2, 2, 2, 4]])
    scores = check(predictions, parts, np.array([0, 1]), OWNED)
    # Second cloud: part 2 has 2 of 3, parts 3 and 4 nothing.
    assert scores.shape_ious.tolist() == pytest.approx([1.0, (2 / 3 + 0 + 0) / 3])
    assert scores.instance_miou == scores.class_miou == pytest.approx((1 + 2 / 9) / 2)
    assert scores.accuracy == 0.75 and scores.class_accuracy == pytest.approx((1 + 1 + 0) / 3)
    assert scores.part_ious.tolist() == pytest.approx([1, 1, 2 / 3, 0, 0])


def test_published_numbers():
    """`miou.npz`: restricted arg-max, and scores over the classes that are present."""
    ref = dict(np.load(MIOU))
    table = shapenet_table(list(SHAPENET_PARTS))
    owned = owned_parts(table.category_parts, list(SHAPENET_PARTS), 50)
    target = ref["target"].astype(np.int64)
    categories = owned[:, target[:, 0]].argmax(0)  # published: that of the first point
    logits = torch.from_numpy(ref["logits_int8"]).float()
    predictions = restricted_argmax(logits, torch.from_numpy(owned[categories]))
    np.testing.assert_array_equal(predictions.numpy(), ref["pred"])
    scores = check(predictions.numpy(), target, categories, owned)
    assert scores.instance_miou == pytest.approx(float(ref["instance_miou"]), abs=1e-6)
    assert scores.class_miou == pytest.approx(float(ref["class_miou_over_present_classes"]), abs=1e-6)
    assert scores.accuracy == pytest.approx(float(ref["accuracy"]), abs=1e-6)


def test_restricted_argmax_never_leaves_the_category():
    log_probs = torch.tensor([[[5.0, 1.0, 9.0, 9.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]]])
    assert restricted_argmax(log_probs, torch.from_numpy(OWNED[:1])).tolist() == [[0, 0]]  # the lowest id on ties
    assert restricted_argmax(log_probs, torch.from_numpy(OWNED[1:])).tolist() == [[2, 2]]


def test_published_table():
    table = shapenet_table(list(SHAPENET_PARTS))
    assert table.count == 50 and len(table.names) == 50
    assert sorted(part for parts in table.category_parts.values() for part in parts) == list(range(50))
    assert table.category_parts["Motorbike"] == [30, 31, 32, 33, 34, 35] and table.category_parts["Table"] == [
        47,
        48,
        49,
    ]
    assert shapenet_table(["Airplane", "Bag"]) is None


@pytest.mark.parametrize(
    ("predictions", "parts", "categories", "words"),
    [
        ([[0, 2]], [[0, 0]], [0], "predictions of cloud 0 hold part 2, which category 0 does not have"),
        ([[0, 0]], [[0, 7]], [0], "parts of cloud 0 hold part 7, which category 0 does not have"),
        ([[0, 0]], [[0, 0, 0]], [0], "must be"),
        (np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0), "must be"),
    ],
)
def test_refuses_labels_that_do_not_fit(predictions, parts, categories, words):
    with pytest.raises(UserError, match=words):
        score_parts(np.array(predictions), np.array(parts), np.array(categories), OWNED)
