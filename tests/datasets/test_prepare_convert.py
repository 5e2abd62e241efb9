"""`convert`: every format and layout, the same bytes for any number of workers, going on after a stop, bad files."""

import json

import numpy as np
import pytest

from datasets import build_dataset
from datasets.normals import estimate_normals
from datasets.prepare import main
from datasets.preparing import convert as module
from datasets.preparing.convert import Settings, convert
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("compiled_ops")

CUBE = [(x, y, z) for x in (-1, 1) for y in (-2, 2) for z in (-3, 3)]
SIDES = [
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
]  # fmt: skip
POINTS = np.random.default_rng(0).normal(size=(50, 3)).round(4)


def write_mesh(path, scale=1.0):
    import trimesh

    mesh = trimesh.Trimesh(np.array(CUBE) * scale, SIDES, process=False)
    mesh.export(path)


def write_pcd(path):
    head = f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 50\nHEIGHT 1\nPOINTS {len(POINTS)}\nDATA ascii\n"
    path.write_text(head + "\n".join(" ".join(map(str, row)) for row in POINTS) + "\n")


def write(path):
    """Write a box, or the fifty points, in the format of the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix
    if kind in (".off", ".obj", ".stl", ".glb", ".ply"):
        write_mesh(path)
    elif kind == ".pcd":
        write_pcd(path)
    elif kind in (".xyz", ".txt"):
        np.savetxt(path, POINTS, fmt="%.4f")
    elif kind == ".npz":
        np.savez(path, points=POINTS)
    else:
        np.save(path, POINTS)


@pytest.fixture
def source(tmp_path):
    """Return a folder of two classes with train and test, in all formats."""
    root = tmp_path / "in"
    for name in (
        "train/box/a.off",
        "train/box/b.obj",
        "train/box/c.stl",
        "train/box/d.glb",
        "train/box/e.ply",
        "test/box/a.off",
    ):
        write(root / name)
    for name in ("train/blob/a.npy", "train/blob/b.npz", "train/blob/c.xyz", "train/blob/d.pcd", "test/blob/a.npy"):
        write(root / name)
    return root


def go(source, out, *, workers=1, skip_bad=False, **settings):
    return convert(source, out, Settings(**{"points": 64, **settings}), workers=workers, skip_bad=skip_bad)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def test_every_format_becomes_a_cloud(source, tmp_path):
    done = go(source, tmp_path / "out")
    assert done.complete and done.clouds == 11 and not done.bad
    assert sorted(done.repeated) == [
        "test/blob/a.npy",
        *(f"train/blob/{name}" for name in ("a.npy", "b.npz", "c.xyz", "d.pcd")),
    ]
    assert not (tmp_path / "out.converting").exists()
    for path in (tmp_path / "out" / "train" / "box").glob("*.npy"):
        points = np.load(path)
        assert points.shape == (64, 3) and points.dtype == np.float32
        # On the surface of the box, whose centre is the mean of the points up to their number.
        assert (np.abs(points).max(0) < np.array([1, 2, 3]) + 1).all() and (
            np.ptp(points, axis=0) > [1.8, 3, 4.5]
        ).all()
    for path in (tmp_path / "out" / "train" / "blob").glob("*.npy"):
        points = np.load(path)
        whole = (POINTS - POINTS.mean(0)).astype(np.float32)
        shift = points[:50].mean(0)
        assert len(np.unique(points, axis=0)) == 50
        np.testing.assert_allclose(np.unique(points - shift, axis=0), np.unique(whole, axis=0), atol=1e-4)
    train, test = (
        build_dataset({"NAME": "Folder", "DATA_PATH": str(tmp_path / "out"), "N_POINTS": 64, "subset": s})
        for s in ("train", "test")
    )
    assert train.class_names == ["blob", "box"] and (len(train), len(test)) == (9, 2)


def test_the_txt_layout_has_normals_and_its_lists(source, tmp_path):
    assert go(source, tmp_path / "out", to="modelnet40_normal_resampled").complete
    tables = {path.stem: np.loadtxt(path, delimiter=",") for path in (tmp_path / "out" / "box").glob("*.txt")}
    assert sorted(tables) == ["box_a", "box_a-2", "box_b", "box_c", "box_d", "box_e"]
    for table in tables.values():
        points, normals = table[:, :3], table[:, 3:]
        assert table.shape == (64, 6) and np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-5)
        # A box: each normal is along one axis, outwards.
        np.testing.assert_allclose(np.sort(np.abs(normals), axis=1), np.tile([0.0, 0.0, 1.0], (64, 1)), atol=1e-6)
        assert ((points + points.mean(0)) * normals).sum(1).min() > 0
    keys = {"NAME": "ModelNet", "DATA_PATH": str(tmp_path / "out"), "N_POINTS": 32}
    train, test = (build_dataset({**keys, "subset": s}) for s in ("train", "test"))
    assert train.class_names == ["blob", "box"] and train.names[-1] == "box_e" and test.names == ["blob_a-2", "box_a-2"]


def test_the_other_layouts_are_read(source, tmp_path):
    assert (
        go(source, tmp_path / "h5", to="modelnet40_ply_hdf5").complete
        and go(source, tmp_path / "sn", to="shapenet").complete
    )
    hdf5 = {"NAME": "ModelNet40_SVM", "DATA_DIR": str(tmp_path / "h5"), "num_points": 64}
    lists = {
        "NAME": "ShapeNet",
        "DATA_PATH": str(tmp_path / "sn" / "ShapeNet-55"),
        "PC_PATH": str(tmp_path / "sn" / "shapenet_pc"),
    }
    for keys in (hdf5, {**lists, "N_POINTS": 64, "npoints": 64}):
        train, test = (build_dataset({**keys, "subset": s}) for s in ("train", "test"))
        assert train.class_names == ["blob", "box"] and test.labels.tolist() == [0, 1]
        assert train.labels.tolist() == [0] * 4 + [1] * 5
        np.testing.assert_allclose(np.linalg.norm(train.points, axis=2).max(1), 1, rtol=1e-5)
    assert not (tmp_path / "h5" / ".clouds").exists()


def test_workers_and_repetitions_change_nothing(source, tmp_path):
    for part in range(8):
        write(source / "train" / "box" / f"more{part}.off")
    one, two = tmp_path / "one", tmp_path / "two"
    go(source, one)
    go(source, two, workers=2)
    assert len(files(one)) == 19 and files(one) == files(two)
    boxes = [data for name, data in files(one).items() if "box" in name]
    assert len(set(boxes)) == len(boxes)  # each file is sampled from its own name


def test_a_stopped_conversion_goes_on(source, tmp_path, monkeypatch):
    calls, original = [], module._convert_one

    def stopped(*args):
        calls.append(args[-1].source)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "_convert_one", stopped)
    assert main(["convert", str(source), "--out", str(tmp_path / "out"), "--points", "64", "--workers", "1"]) == 130
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="unfinished conversion with other settings"):
        go(source, tmp_path / "out", points=32)
    np.save(source / "train" / "blob" / "a.npy", POINTS * 2)  # done before, and changed since
    calls.clear()
    monkeypatch.setattr(module, "_convert_one", lambda *args: (calls.append(args[-1].source), original(*args))[1])
    done = go(source, tmp_path / "out")
    assert done.complete and done.skipped == 3 and len(calls) == 8 and "train/blob/a.npy" in calls
    go(source, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert go(source, tmp_path / "out").skipped == 11  # finished: nothing is done again


def test_bad_files_are_listed_and_leave_no_set(source, tmp_path, capsys):
    (source / "train" / "box" / "bad.off").write_text("OFF\n3 1 0\n0 0 0\n0 0 1\n0 1 0\n")
    (source / "train" / "blob" / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    np.save(source / "train" / "blob" / "nan.npy", np.full((5, 3), np.nan))
    flags = ["convert", str(source), "--out", str(tmp_path / "out"), "--points", "64", "--workers", "1"]
    assert main(flags) == 2
    err = capsys.readouterr().err
    for words in (
        "bad.off: cannot be read as a mesh: its first line says 3 vertices and 1 faces",
        "flat.obj: its 1 faces have an area of 0",
        "nan.npy: none of its 5 points has coordinates that are finite",
        "3 of 14 files",
    ):
        assert words in err, err
    assert not (tmp_path / "out").exists()
    assert main([*flags, "--skip_bad"]) == 0
    assert (
        len(files(tmp_path / "out")) == 11
        and "11 clouds of 64 points, 11 of them done before" in capsys.readouterr().out
    )
    for path in (source / "test" / "box").iterdir():
        path.write_text("")
    for path in (source / "train" / "box").iterdir():
        path.write_text("")
    assert (
        main(
            [
                "convert",
                str(source),
                "--to",
                "shapenet",
                "--out",
                str(tmp_path / "none"),
                "--skip_bad",
                "--workers",
                "1",
            ]
        )
        == 2
    )
    assert "class 'box' has no file that can be read" in capsys.readouterr().err


def test_input_without_a_split(tmp_path):
    for name in ("x", "y"):
        for i in range(5):
            write(tmp_path / "in" / name / f"{i}.npy")
    go(tmp_path / "in", tmp_path / "kept")
    assert set(files(tmp_path / "kept")) == {f"{name}/{i}.npy" for name in "xy" for i in range(5)}
    go(tmp_path / "in", tmp_path / "split", to="modelnet40_ply_hdf5", test_share=0.4)
    sizes = [len((tmp_path / "split" / f"{split}_ids.txt").read_text().split()) for split in ("train", "test")]
    assert sizes == [6, 4]
    go(tmp_path / "in" / "x", tmp_path / "flat")
    assert len(files(tmp_path / "flat")) == 5
    assert go(tmp_path / "in" / "x" / "0.npy", tmp_path / "single").clouds == 1
    assert list(files(tmp_path / "single")) == ["0.npy"]
    with pytest.raises(UserError, match="has no class folders"):
        go(tmp_path / "in" / "x", tmp_path / "no", to="modelnet40_ply_hdf5")
    with pytest.raises(UserError, match="is one file"):
        go(tmp_path / "in" / "x" / "0.npy", tmp_path / "no", to="shapenet")


def test_the_up_axis_becomes_y(tmp_path):
    cloud = np.array([[0, 0, 0], [3.0, 0, 0], [0, 5.0, 0], [0, 0, 7.0]])
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", cloud)
    for up, axis in (("x", 0), ("y", 1), ("z", 2)):
        go(tmp_path / "in", tmp_path / up, up=up, points=4)
        points = np.load(tmp_path / up / "a.npy")
        assert np.ptp(points[:, 1]) == pytest.approx(cloud.max(0)[axis])
        # A rotation keeps the handedness: the signed volume of the legs of 3, 5 and 7 from the corner that is nearest to the others.
        corner = points[np.argmin([np.linalg.norm(point - points, axis=1).sum() for point in points])]
        legs = sorted((point - corner for point in points if not np.array_equal(point, corner)), key=np.linalg.norm)
        assert np.linalg.det(legs) == pytest.approx(3 * 5 * 7, rel=1e-5)


def test_normals_of_a_sphere_point_outwards():
    points = np.random.default_rng(0).normal(size=(600, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    normals = estimate_normals(points[None] + 1000)[0]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert (normals * points).sum(1).min() > 0.95
    few = estimate_normals(points[None, :2])[0]
    assert np.isfinite(few).all() and few.shape == (2, 3)


def test_the_plan_is_kept_with_the_set(source, tmp_path):
    go(source, tmp_path / "out", up="z")
    content = json.loads((tmp_path / "out" / ".convert.json").read_text())
    assert content["settings"] == {"to": "folder", "points": 64, "up": "z", "test_share": 0.2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "foldr"}, "did you mean folder"),
        ({"points": -1}, "--points -1"),
        ({"up": "w"}, "--up w"),
        ({"test_share": 1.0}, "--test_share 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_bad_places(source, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        go(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="is inside the input"):
        go(source, source / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        go(source, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    (source / "train" / "hollow").mkdir()
    (source / "test" / "hollow").mkdir()
    with pytest.raises(UserError, match=r"hollow: holds no cloud"):
        go(source, tmp_path / "out")
