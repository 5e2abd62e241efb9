"""Average precision against a second implementation, written from the rule without arrays, on random scenes."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.detections import Detected, Rules, detections, kept_boxes, points_inside
from detection.metrics import SIZES, SceneResult, average_precision, box_iou

CLASSES = 3
# Few values, so that boxes coincide, touch, contain each other and are flat, and scores are equal.
PLACES = st.integers(0, 4).map(lambda value: value / 2)
LENGTHS = st.sampled_from([0.0, 0.5, 1.0, 1.5])
LEVELS = st.integers(0, 4).map(lambda value: value / 4)
BOX = st.tuples(PLACES, PLACES, PLACES, LENGTHS, LENGTHS, LENGTHS)
PREDICTED = st.tuples(BOX, st.tuples(*[LEVELS] * CLASSES), LEVELS)
TARGET = st.tuples(BOX, st.integers(0, CLASSES - 1))
SCENE = st.tuples(st.lists(PREDICTED, max_size=6), st.lists(TARGET, max_size=4))


def corners_of(boxes):
    """Camera-frame corners (K, 8, 3) of (x, y, z, dx, dy, dz), in an order of their own."""
    table = np.array(boxes, np.float64).reshape(-1, 6)
    signs = np.array([(i, j, k) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    depth = table[:, None, :3] + table[:, None, 3:] * signs / 2
    return np.stack([depth[..., 0], -depth[..., 2], depth[..., 1]], axis=-1).astype(np.float32)


def naive_iou(a, b):
    inter = volume_a = volume_b = 1.0
    for axis in range(3):
        low = max(a[axis] - a[axis + 3] / 2, b[axis] - b[axis + 3] / 2)
        high = min(a[axis] + a[axis + 3] / 2, b[axis] + b[axis + 3] / 2)
        inter *= max(0.0, high - low)
        volume_a, volume_b = volume_a * a[axis + 3], volume_b * b[axis + 3]
    union = volume_a + volume_b - inter
    return inter / union if union > 0 else 0.0


def naive_ap(scenes, number, threshold):
    """Walk through the detections of a class one by one; returns AP and recall, None for a class that is nowhere."""
    found = [
        (-probabilities[number] * objectness, row, place, box)
        for row, (predicted, _) in enumerate(scenes)
        for place, (box, probabilities, objectness) in enumerate(predicted)
    ]
    found.sort(key=lambda entry: entry[:3])
    total = sum(label == number for _, targets in scenes for _, label in targets)
    if not found and not total:
        return None
    taken, right, points = set(), 0, []
    for seen, (_, row, _, box) in enumerate(found, start=1):
        best, chosen = -1.0, None
        for place, (target, label) in enumerate(scenes[row][1]):
            if label == number and naive_iou(box, target) > best:
                best, chosen = naive_iou(box, target), (row, place)
        if best > threshold and chosen not in taken:
            taken.add(chosen)
            right += 1
        points.append((right / total if total else 0.0, right / seen))
    if not total or not found:
        return 0.0, 0.0
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return area, points[-1][0]


EVERYTHING = Rules(least_points=0, nms="none", certainty=-1.0)


def results(scenes):
    return [
        SceneResult(
            detections(
                np.ones(len(predicted), bool),
                np.array([objectness for *_, objectness in predicted]),
                np.array([probabilities for _, probabilities, _ in predicted]).reshape(-1, CLASSES),
                EVERYTHING,
            ),
            corners_of([box for box, *_ in predicted]),
            corners_of([box for box, _ in targets]),
            np.array([label for _, label in targets], np.int64),
        )
        for predicted, targets in scenes
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(SCENE, max_size=4), st.sampled_from([0.25, 0.5, 0.2]))
def test_agrees_with_a_naive_evaluator(scenes, threshold):
    score = average_precision(results(scenes), CLASSES, threshold)
    naive = [naive_ap(scenes, number, threshold) for number in range(CLASSES)]
    for number, pair in enumerate(naive):
        if pair is None:
            assert math.isnan(score.ap[number]) and math.isnan(score.recall[number])
        else:
            assert math.isclose(score.ap[number], pair[0], abs_tol=1e-12)
            assert math.isclose(score.recall[number], pair[1], abs_tol=1e-12)
    known = [pair for pair in naive if pair is not None]
    if not known:
        assert math.isnan(score.mean) and math.isnan(score.mean_recall)
    else:
        assert math.isclose(score.mean, sum(ap for ap, _ in known) / len(known), abs_tol=1e-6)
    hits = sum(int(rows.sum()) for rows in score.hits)
    targets = [sum(label == number for _, rows in scenes for _, label in rows) for number in range(CLASSES)]
    assert hits == round(
        sum(recall * total for recall, total in zip(np.nan_to_num(score.recall), targets, strict=True))
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(PREDICTED, max_size=8),
    st.lists(st.tuples(PLACES, PLACES, PLACES), max_size=20),
    st.sampled_from(["class", "all"]),
)
def test_kept_boxes_agree_with_a_naive_rule(predicted, points, nms):
    rules = Rules(nms=nms, least_points=2, certainty=0.3)
    boxes, scores = [box for box, *_ in predicted], [objectness for *_, objectness in predicted]
    classes = [max(range(CLASSES), key=lambda c: row[c]) if nms == "class" else 0 for _, row, _ in predicted]
    inside = [
        sum(all(abs(p[axis] - box[axis]) <= box[axis + 3] / 2 for axis in range(3)) for p in points) for box in boxes
    ]
    cloud = np.array(points, np.float32).reshape(-1, 3)
    assert points_inside(cloud, corners_of(boxes)).tolist() == inside
    alive = [row for row, count in enumerate(inside) if count >= 2]
    if boxes and not alive:
        alive = [max(range(len(boxes)), key=lambda row: (scores[row], -row))]
    chosen = []
    for row in sorted(alive, key=lambda row: (-scores[row], -row)):
        if all(classes[row] != classes[other] or naive_iou(boxes[row], boxes[other]) <= 0.25 for other in chosen):
            chosen.append(row)
    kept = kept_boxes(
        cloud,
        corners_of(boxes),
        np.array(scores),
        np.array([row for _, row, _ in predicted]).reshape(-1, CLASSES),
        rules,
    )
    assert np.flatnonzero(kept).tolist() == sorted(row for row in chosen if scores[row] > 0.3)


@given(BOX, BOX)
def test_overlap(a, b):
    assert math.isclose(box_iou(corners_of([a]), corners_of([b]))[0, 0], naive_iou(a, b), abs_tol=1e-12)


def test_scores_by_size():
    """Each range counts its own targets; a hit of another size is neither right nor wrong."""
    targets = [((0, 0, 0, 0.4, 0.4, 0.4), 0), ((3, 0, 0, 1, 1, 1), 0)]
    corners = corners_of([box for box, _ in targets] + [(9, 9, 9, 0.3, 0.3, 0.3)])
    detected = Detected(np.zeros(3, np.int64), np.arange(3), np.array([0.9, 0.8, 0.7]))
    scenes = [SceneResult(detected, corners, corners[:2], np.zeros(2, np.int64))]
    by_size = {name: average_precision(scenes, 1, 0.5, sizes=bounds) for name, bounds in SIZES.items()}
    assert by_size["small"].ap[0] == by_size["large"].ap[0] == 1.0 and math.isnan(by_size["medium"].ap[0])
    assert len(by_size["small"].curves[0].scores) == 2 and len(by_size["large"].curves[0].scores) == 1
    assert average_precision(scenes, 1, 0.5).curves[0].precision.tolist() == [1.0, 1.0, 2 / 3]
