"""Scenes with boxes: built-in rooms, ScanNet in VoteNet's layout and what is wrong with damaged files, samples, augmentation."""

import numpy as np
import pytest
import torch

from datasets import DATASETS, build_dataset
from datasets.batches import Batches
from datasets.clouds import CloudSet
from datasets.prepare import main as prepare
from datasets.scannet import CLASSES
from datasets.scenes import CENTER, SIZE, Scene, flip_and_turn, random_cuboid, sample, targets, whole
from datasets.synthetic.scenes import FURNITURE, Style, draw_scene
from datasets.transforms import augment
from utils.errors import UserError

STYLE = Style(points=3000, least_objects=5, most_objects=8, noise=0.005)


@pytest.fixture(scope="module")
def rooms():
    return [draw_scene(0, "train", index, STYLE) for index in range(4)]


def test_rooms_are_as_their_seed_says(rooms):
    again, other = draw_scene(0, "train", 0, STYLE), draw_scene(1, "train", 0, STYLE)
    assert all(np.array_equal(rooms[0][key], again[key]) for key in rooms[0])
    assert not np.array_equal(rooms[0]["points"], other["points"])
    assert not np.array_equal(rooms[0]["points"], draw_scene(0, "test", 0, STYLE)["points"])


def test_boxes_hold_standing_objects(rooms):
    """Boxes are as large as furniture is, stand on the floor, hold points, and do not overlap."""
    for room in rooms:
        points, boxes = room["points"], room["boxes"][: room["box_counts"]]
        assert len(boxes) >= 3 and room["counts"] == 3000 and not room["boxes"][room["box_counts"] :].any()
        for box in boxes:
            low, high = box[CENTER] - box[SIZE] / 2, box[CENTER] + box[SIZE] / 2
            inside = ((points >= low) & (points <= high)).all(axis=1).sum()
            _, most, longest, _ = list(FURNITURE.values())[int(box[6])]
            assert -0.05 < low[2] < 0.25 and inside >= 8 and 0.1 < high[2] < most + 0.05
            assert box[SIZE][:2].max() < 1.3 * longest
        for first, box in enumerate(boxes):
            for other in boxes[first + 1 :]:
                apart = np.abs(box[CENTER] - other[CENTER]) >= (box[SIZE] + other[SIZE]) / 2
                assert apart[:2].any()


def test_what_is_hidden_is_not_scanned():
    """Of a tall shelf at a wall the back is hidden, and so is the wall behind it."""
    hidden, open_wall = 0, 0
    for index in range(12):
        room = draw_scene(3, "train", index, STYLE)
        points = room["points"]
        low, high = points.min(axis=0), points.max(axis=0)
        for box in room["boxes"][: room["box_counts"]]:
            if list(FURNITURE)[int(box[6])] != "shelf" or box[CENTER][0] + box[SIZE][0] / 2 < high[0] - 0.15:
                continue
            wall = points[points[:, 0] > high[0] - 0.02]
            along = np.abs(wall[:, 1] - box[CENTER][1]) < 0.35 * box[SIZE][1]
            below = wall[:, 2] < 0.7 * box[SIZE][2]
            hidden += (along & below).sum() / (0.7 * box[SIZE][1] * 0.7 * box[SIZE][2])
            open_wall += len(wall) / ((high[1] - low[1]) * high[2])
    assert open_wall == 0 or hidden < 0.35 * open_wall


def test_the_set_and_what_it_refuses():
    clouds = build_dataset({"NAME": "SyntheticScenes", "scenes": 3, "N_POINTS": 1000, "npoints": 1200})
    assert clouds.points.shape == (3, 1000, 3) and clouds.class_names == list(FURNITURE) and clouds.up_axis == "z"
    batch = next(Batches(clouds, batch_size=3, seed=0).epoch(0))
    assert batch.points.shape == (3, 1200, 3)  # more than there are: some twice
    for keys, message in (
        ({"scenes": -1}, "scenes is -1; it must be at least 0"),
        ({"most_objects": 2}, "most_objects is 2; it must be at least 5"),
        ({"most_objects": 65}, "it must be at most 64"),
        ({"subset": "val"}, "subset 'val' is unknown"),
        ({"UP_AXIS": "y"}, "these rooms stand along z"),
    ):
        with pytest.raises(UserError, match=message):
            build_dataset({"NAME": "SyntheticScenes", **keys})


def test_points_are_drawn_without_repetition_where_there_are_enough():
    points = np.arange(40, dtype=np.float32).reshape(2, 20, 1).repeat(3, axis=2)
    clouds = CloudSet(points, "x", "train", npoints=10, sampling="scene", counts=np.array([20, 6]))
    batch = next(Batches(clouds, batch_size=2, seed=0, shuffle=False).epoch(0))
    long, short = batch.points[..., 0]
    assert len(long.unique()) == 10 and set(short.tolist()) <= set(range(20, 26))


def test_pre_training_turns_and_scales_scenes_as_a_whole():
    points = torch.randn(8, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = augment(points, "scene", "z", torch.Generator().manual_seed(1))
    maps = torch.linalg.lstsq(points, turned).solution  # (8, 3, 3), turned = points @ map
    torch.testing.assert_close(points @ maps, turned)
    scale = maps[:, 2, 2]
    assert 0.8 <= scale.min() < scale.max() <= 1.2
    identity = torch.eye(3, dtype=torch.float64).expand(8, 3, 3)
    rigid = maps / scale[:, None, None]
    torch.testing.assert_close(rigid @ rigid.mT, identity)
    assert {round(value) for value in torch.linalg.det(rigid).tolist()} == {-1, 1}  # some are mirrored once
    assert 0.99 < rigid[:, 0, 0].abs().min() < 1 and rigid[:, 0, 1].abs().max() < 0.088  # 5 degrees


def test_flip_and_turn_keeps_points_in_their_boxes():
    rng = np.random.RandomState(0)
    box = np.array([[0.7, -0.4, 0.5, 0.6, 0.2, 1.0, 2, 5]])
    points = (box[0, CENTER] + (rng.rand(300, 3) - 0.5) * box[0, SIZE]).astype(np.float32)
    for seed in range(6):
        scene = flip_and_turn(whole(points, box), np.random.RandomState(seed))
        low, high = (scene.boxes[0, CENTER] + sign * scene.boxes[0, SIZE] / 2 for sign in (-1, 1))
        assert (scene.points > low - 1e-5).all() and (scene.points < high + 1e-5).all()
        assert scene.boxes[0, 6:].tolist() == [2, 5] and np.isclose(scene.boxes[0, 5], 1.0)
        assert (scene.boxes[0, 3:5] >= box[0, 3:5] - 1e-9).all()
    assert points.min() == whole(points, box).points.min()  # the input is left as it was


def test_cuboids():
    rng = np.random.RandomState(1)
    points = rng.rand(2000, 3).astype(np.float32) * 4
    boxes = np.array([[1, 1, 1, 0.5, 0.5, 0.5, 0, 3], [3, 3, 3, 0.5, 0.5, 0.5, 1, 4]], np.float64)
    kept = random_cuboid(whole(points, boxes), np.random.RandomState(2), 500)
    assert 500 <= len(kept.points) < 2000 and np.array_equal(points[kept.rows], kept.points) and len(kept.boxes) >= 1
    centers = kept.boxes[:, CENTER]
    assert ((centers >= kept.points.min(0)) & (centers <= kept.points.max(0))).all()
    # Too many points asked: the scene stays; without boxes points alone are cut; below 0 in sum, all boxes stay.
    assert random_cuboid(whole(points, boxes), np.random.RandomState(2), 2001).points is points
    assert len(random_cuboid(whole(points, np.zeros((0, 8))), np.random.RandomState(2), 500).points) < 2000
    away = boxes - np.array([100, 0, 0, 0, 0, 0, 0, 0])
    assert len(random_cuboid(whole(points, away), np.random.RandomState(2), 500).boxes) == 2


def test_targets_of_a_scene_without_boxes_are_zeros():
    scene = sample(Scene(np.eye(3, dtype=np.float32), np.zeros((0, 8)), np.arange(3)), 5, np.random.RandomState(0))
    assert scene.points.shape == (5, 3)
    found = targets(scene)
    assert not any(value.any() for key, value in found.items() if key.startswith("gt_"))


@pytest.fixture
def scannet(tmp_path, capsys):
    assert prepare(["fixtures", "scannet", "--out", str(tmp_path), "--clouds", "4", "--points", "700"]) == 0
    assert "cfgs/detection/3detr-m/scannet.yaml" in capsys.readouterr().out
    return tmp_path


def entry(root, **keys):
    place = root / "scannet"
    paths = {"ROOT": f"{place}/scannet_train_detection_data", "META": f"{place}/meta_data"}
    return DATASETS.config({"NAME": "ScanNet", **paths, **keys})


def test_scannet(scannet, capsys):
    clouds = build_dataset(entry(scannet))
    assert len(clouds) == 4 and clouds.class_names == list(CLASSES) and clouds.points.shape == (4, 700, 3)
    raw = np.load(scannet / "scannet" / "scannet_train_detection_data" / "scene0001_00_bbox.npy")
    boxes = clouds.boxes[1, : clouds.box_counts[1]]
    np.testing.assert_array_equal(boxes[:, :6], raw[:, :6])
    np.testing.assert_array_equal(boxes[:, 7], raw[:, 6])
    assert [list(CLASSES.values())[int(label)] for label in boxes[:, 6]] == raw[:, 6].tolist()
    assert len(build_dataset(entry(scannet, subset="val"))) == 2
    assert prepare(["check", "scannet", "--data_root", str(scannet), "--any_count", "--read"]) == 0
    assert "complete" in capsys.readouterr().out
    assert prepare(["check", str(scannet / "scannet")]) == 0
    assert prepare(["check", "scannet", "--data_root", str(scannet)]) == 2
    assert "1,201 published" in capsys.readouterr().out


def damaged_box(row, column, value):
    def change(array):
        array[row, column] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("bbox", damaged_box(0, 3, 0.0), "box 0 of scene0002_00 has the size 0 x .*must be positive"),
        ("bbox", damaged_box(1, 4, -0.5), "box 1 of scene0002_00 has the size .*must be positive"),
        ("bbox", damaged_box(0, 6, 13), "box 0 of scene0002_00 has the class id 13; possible are 3, 4"),
        ("bbox", damaged_box(0, 0, np.nan), "box 0 of scene0002_00 holds NaN"),
        ("bbox", lambda array: array[:, :6], r"has shape \(\d+, 6\); expected \(k, 7\)"),
        ("bbox", lambda array: np.resize(array, (65, 7)), "scene0002_00 has 65 boxes; at most 64"),
        ("vert", damaged_box(5, 1, np.inf), "1 of the 700 vertices of scene0002_00 hold NaN or infinity, first row 5"),
        ("vert", damaged_box(5, 4, 300), "colours of scene0002_00 go from .* to 300"),
        ("vert", lambda array: array[:, :3], r"has shape \(700, 3\); expected \(n, 6\)"),
        ("sem_label", lambda array: array[:-1], "files of scene0002_00 are of different preparations"),
        ("ins_label", None, "scene0002_00: has no scene0002_00_ins_label.npy"),
    ],
)
def test_damaged_scenes_are_named(part, change, message, scannet):
    path = scannet / "scannet" / "scannet_train_detection_data" / f"scene0002_00_{part}.npy"
    if change is None:
        path.unlink()
    else:
        np.save(path, change(np.load(path)))
    with pytest.raises(UserError, match=message):
        build_dataset(entry(scannet))


def test_a_part_of_the_scenes_keeps_their_boxes(scannet):
    whole, part = build_dataset(entry(scannet)), build_dataset(entry(scannet, cloud_fraction=0.25))
    (row,) = (whole.names.index(name) for name in part.names)
    assert np.array_equal(part.boxes[0], whole.boxes[row]) and part.counts[0] == whole.counts[row]
    assert np.array_equal(part.colors[0], whole.colors[row])
    with pytest.raises(UserError, match="no labels; use cloud_fraction"):
        build_dataset(entry(scannet, label_fraction=0.5))


def test_lists(scannet):
    listing = scannet / "scannet" / "meta_data" / "scannetv2_train.txt"
    listing.write_text(listing.read_text() + "scene9999_00\n")
    with pytest.raises(UserError, match=r"1 of the 5 scenes of .* have no files, such as scene9999_00"):
        build_dataset(entry(scannet))
    listing.write_text("scene0001_00\nscene0001_00\n")
    with pytest.raises(UserError, match="lists scene0001_00 twice"):
        build_dataset(entry(scannet))
    with pytest.raises(UserError, match="choose train or val"):
        build_dataset(entry(scannet, subset="test"))
    empty = scannet / "scannet" / "scannet_train_detection_data" / "scene0001_00_bbox.npy"
    np.save(empty, np.zeros((0, 7)))
    listing.write_text("scene0001_00\nscene0002_00\n")
    assert build_dataset(entry(scannet)).box_counts[0] == 0  # a scene without boxes is one
