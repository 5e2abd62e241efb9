"""The built-in set: reproducible, balanced, labelled, and not solved by its raw coordinates."""

import numpy as np
import pytest

from datasets.synthetic import CATEGORIES, PART_IDS, PART_NAMES, SyntheticConfig, read_synthetic
from datasets.synthetic import primitives as shapes
from datasets.synthetic.generate import Style, draw_cloud
from datasets.synthetic.sketch import Sketch, rod
from utils.errors import UserError

STYLE = Style(points=512, rotate=True, tilt=0.1, stretch=0.25, jitter=0.01)


@pytest.fixture
def small():
    def build(**keys):
        return read_synthetic(SyntheticConfig(**{"clouds": 40, "N_POINTS": 256, **keys}))

    return build


def volume(mesh):
    corners = (mesh.vertices - mesh.vertices.mean(0))[mesh.faces]
    return np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6


def test_primitives_are_closed_and_face_outwards():
    """A signed volume close to the true one means that every triangle is there and wound outwards."""
    assert volume(shapes.box()) == pytest.approx(1)
    assert volume(shapes.box(top=(0.5, 0.5))) == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert volume(shapes.cylinder()) == pytest.approx(np.pi / 4, rel=0.03)
    assert volume(shapes.cylinder(0.0)) == pytest.approx(np.pi / 12, rel=0.03)
    assert volume(shapes.sphere()) == pytest.approx(np.pi / 6, rel=0.05)
    assert volume(shapes.cushion(1.0)) == pytest.approx(np.pi / 6, rel=0.05)
    assert np.pi / 6 < volume(shapes.cushion(0.3)) < 1
    assert volume(shapes.torus(0.1)) == pytest.approx(2 * np.pi**2 * 0.5 * 0.01, rel=0.1)
    square = np.array([[1, -1], [-1, -1], [-1, 1], [1, 1]])
    assert volume(shapes.prism(square)) == pytest.approx(4)


def test_sampling_is_uniform_over_the_area():
    sketch = Sketch()
    sketch.add("large", shapes.box(), (2, 2, 2))
    sketch.add("small", shapes.box(), (1, 1, 1), (5, 0, 0))
    points, normals, parts = sketch.sample(5000, {"large": 0, "small": 1}, np.eye(3), np.random.default_rng(0))
    assert (parts == 1).mean() == pytest.approx(6 / 30, abs=0.002)  # stratified
    large = points[parts == 0]
    on_face = np.isclose(np.abs(large), 1).any(axis=1)
    assert on_face.all()
    assert np.einsum("ij,ij->i", large, normals[parts == 0]) == pytest.approx(1)  # outward, unit
    assert (large[:, 1] > 0.999).mean() == pytest.approx(1 / 6, abs=0.03)


def test_rod_runs_between_its_ends():
    sketch = Sketch()
    rod(sketch, "rod", (1, 0, 0), (1, 2, 2), 0.1)
    points, normals, _ = sketch.sample(2000, {"rod": 0}, np.eye(3), np.random.default_rng(0))
    along = (points - [1, 0, 0]) @ np.array([0, 1, 1]) / np.sqrt(2)
    away = np.linalg.norm(points - [1, 0, 0] - along[:, None] * np.array([0, 1, 1]) / np.sqrt(2), axis=1)
    assert along.min() == pytest.approx(0, abs=0.05) and along.max() == pytest.approx(np.sqrt(8), abs=0.05)
    assert away.max() <= 0.1 + 1e-9
    outward = points - [1, 1, 1]
    assert (np.einsum("ij,ij->i", outward, normals) > 0).mean() > 0.99


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category(category):
    """Parts, normals and extent of many shapes; the parts they announce all occur."""
    ids = PART_IDS[category]
    assert 2 <= len(ids) <= 6
    seen, spreads = set(), []
    for index in range(60):
        points, normals, parts = draw_cloud(1, "train", index, category, STYLE)
        assert points.shape == normals.shape == (512, 3) and parts.dtype == np.int16
        assert np.isfinite(points).all()
        assert 0.99 < np.linalg.norm(points, axis=1).max() <= 1
        assert np.abs(points.mean(0)).max() < 1e-5
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        assert set(parts.tolist()) <= set(ids.values()) and len(set(parts.tolist())) >= 2
        seen |= set(parts.tolist())
        spreads.append(points.std(0))
    assert seen == set(ids.values())
    assert np.std(spreads, axis=0).min() > 0.01  # real variation inside the class


def test_part_tables():
    assert len(CATEGORIES) >= 16
    assert [PART_NAMES[i] for i in PART_IDS["chair"].values()] == ["chair seat", "chair leg", "chair back", "chair arm"]
    assert sorted(i for ids in PART_IDS.values() for i in ids.values()) == list(range(len(PART_NAMES)))


def test_set_is_balanced_and_labelled(small):
    train = small()
    assert np.bincount(train.labels).tolist() == [2] * 20
    assert train.class_names == list(CATEGORIES) and train.up_axis == "y"
    for label, parts in zip(train.labels, train.part_labels, strict=True):
        assert set(parts.tolist()) <= set(train.category_parts[train.class_names[label]])
    assert train.normals.shape == train.points.shape == (40, 256, 3)
    assert train.names[21] == "train/bathtub_00021"


def test_same_seed_same_data(small, monkeypatch, tmp_path):
    first = small()
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "another"))
    again = small()
    assert np.array_equal(first.points, again.points) and np.array_equal(first.part_labels, again.part_labels)
    for other in (small(seed=1), small(subset="test")):
        assert not np.isclose(first.points, other.points).all(axis=(1, 2)).any()
    # A cloud depends on its index, not on the size of the set.
    assert np.array_equal(small(clouds=60).points[:40], first.points)


def test_rotation_key(small):
    upright, turned = small(rotate=False), small()
    assert not np.allclose(upright.points, turned.points)


def test_categories_key(small):
    train = small(categories=["table", "chair"])
    assert train.class_names == ["chair", "table"] and np.bincount(train.labels).tolist() == [20, 20]
    assert set(np.unique(train.part_labels)) <= set(PART_IDS["chair"].values()) | set(PART_IDS["table"].values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"categories": ["chiar"]}, "category 'chiar' is unknown; did you mean chair"),
        ({"subset": "val"}, "subset 'val' is unknown"),
        ({"clouds": 5}, "5 clouds cannot hold 20 categories"),
        ({"npoints": 300}, "300 points a sample are asked, but its clouds hold 256"),
        ({"UP_AXIS": "w"}, "UP_AXIS 'w'"),
        ({"N_POINTS": 0}, "N_POINTS is 0; it must be at least 1"),
        ({"jitter": -0.1}, "jitter is -0.1"),
    ],
)
def test_bad_keys(small, keys, message):
    with pytest.raises(UserError, match=message):
        small(**keys)


def test_shapes_stand_along_any_axis(small):
    """Height, the y of published sets, is the z or x of the others; the shapes are the same ones."""
    by_up = {up: small(UP_AXIS=up) for up in ("x", "y", "z")}
    x, y, z = np.moveaxis(np.asarray(by_up["y"].points), -1, 0)
    for up, expected in (("z", (x, -z, y)), ("x", (y, -x, z))):
        assert np.array_equal(by_up[up].points, np.stack(expected, -1)) and by_up[up].up_axis == up
        lengths = np.linalg.norm(by_up[up].normals, axis=-1)
        assert np.allclose(lengths, np.linalg.norm(by_up["y"].normals, axis=-1))


def test_raw_coordinates_do_not_solve_it(small):
    """A linear SVM on coordinates sorted by height, or on voxel counts, is above chance but well under 90 %."""
    from sklearn.svm import LinearSVC

    def by_height(points):
        order = np.argsort(points[:, :, 1], axis=1)[:, ::4, None]
        return np.take_along_axis(points, order, 1).reshape(len(points), -1)

    def voxels(points, side=6):
        cell = np.clip(((points + 1) / 2 * side).astype(int), 0, side - 1) @ [side * side, side, 1]
        return np.stack([np.bincount(row, minlength=side**3) for row in cell]) / 16.0

    train, test = small(clouds=600), small(clouds=300, subset="test")
    for features in (by_height, voxels):
        model = LinearSVC(C=0.1, max_iter=200, dual=False, tol=1e-2).fit(features(train.points), train.labels)
        accuracy = model.score(features(test.points), test.labels)
        assert 0.15 < accuracy < 0.75, features.__name__
