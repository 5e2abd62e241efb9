"""`python -m datasets.prepare`: fixtures that every reader reads, what `check` finds in whole and damaged sets, few-shot folds."""

import json

import numpy as np
import pytest

from datasets import DATASETS, build_dataset
from datasets.prepare import main
from datasets.preparing.layouts import LAYOUTS, find
from datasets.preparing.recognise import PUBLISHED_POINTS
from utils.config.load import with_root
from utils.errors import UserError

WRITTEN = [
    "ShapeNet",
    "ModelNet",
    "ModelNet40_SVM",
    "ModelNet10",
    "ScanObjectNN",
    "ModelNetFewShot",
    "ShapeNetPart",
    "ModelNet40-C",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_ops):
    """Return a data root with small fixtures of all published layouts."""
    out = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M2AE_CACHE", str(out / "cache"))
        for name in WRITTEN:
            size = ["--clouds", "8", "--points", "64"]
            assert main(["fixtures", name, "--out", str(out / "data"), *size]) == 0
    return out / "data"


def run(capsys, *argv):
    status = main([str(part) for part in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def read(layout, root, **keys):
    return build_dataset(with_root(DATASETS.config({**layout.config, **keys}), root))


@pytest.mark.parametrize(
    "layout",
    [
        layout
        for layout in LAYOUTS
        if layout.config and layout.name not in ("Folder", "Synthetic", "ModelNet40-C", "ShapeNetRender", "ScanNet")
    ],
)
def test_readers_read_the_fixtures(tiny, layout):
    keys = {"ShapeNet": {"npoints": 32}, "ModelNetFewShot": {"way": 10, "shot": 20, "fold": 9}}.get(layout.name, {})
    keys |= {"num_points": 32} if layout.name in ("ModelNet10", "ModelNet40_SVM") else {}
    keys |= {"N_POINTS": 64} if layout.name in ("ModelNet", "ShapeNet") else {}
    train, test = (read(layout, tiny, subset=subset, **keys) for subset in ("train", "test"))
    counts = {
        "ModelNetFewShot": (200, 200),
        "ShapeNetPart": (16, 16),
    }  # the latter has a cloud of each category at least
    assert (len(train), len(test)) == counts.get(layout.name, (8, 4))
    assert train.points.shape[1:] == (64, 3) and train.class_names == test.class_names
    assert not np.array_equal(train.points[:4], test.points[:4])
    if layout.name not in counts:
        assert train.labels.tolist() == list(range(8)) and test.labels.tolist() == list(range(4))


def test_corruptions_are_read(tiny, capsys):
    mild, severe = (
        read(find("ModelNet40-C")[0], tiny, subset="test", corruption="shear", severity=level) for level in (1, 5)
    )
    clean = np.load(tiny / "modelnet40_c" / "data_original.npy")
    assert mild.labels.tolist() == [0, 1, 2, 3] and clean.shape == mild.points.shape == (4, 64, 3)
    assert 4 < np.abs(severe.points - clean).mean() / np.abs(mild.points - clean).mean() < 6
    assert run(capsys, "check", "ModelNet40-C", "--data_root", tiny, "--read")[0] == 0


def test_fixtures_have_published_sizes(compiled_ops, tmp_path, capsys):
    """Without --points they are read with the default keys; the .dat caches give what the text files give."""
    assert run(capsys, "fixtures", "ModelNet", "--out", tmp_path, "--clouds", "2", "--dat")[0] == 0
    folder = tmp_path / "ModelNet" / "modelnet40_normal_resampled"
    table = np.loadtxt(folder / "airplane" / "airplane_0001.txt", delimiter=",")
    assert table.shape == (10000, 6)
    np.testing.assert_allclose(np.linalg.norm(table[:, 3:], axis=1), 1, atol=1e-5)
    cached = read(find("ModelNet")[0], tmp_path)
    for path in folder.glob("*.dat"):
        path.unlink()
    texts = read(find("ModelNet")[0], tmp_path)
    assert cached.points.shape == texts.points.shape == (2, 8192, 3) and cached.labels.tolist() == texts.labels.tolist()
    # Farthest points of the same cloud, from different starts: each has one of the other's nearby.
    near = np.linalg.norm(cached.points[0][:200, None] - texts.points[0][None], axis=2).min(1)
    assert near.max() < 0.02


def test_part_labels_keep_to_their_category(tiny):
    folder = tiny / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    first = dict(
        zip((line.split()[1] for line in (folder / "synsetoffset2category.txt").open()), PART_RANGES, strict=True)
    )
    lists = {
        split: json.loads((folder / "train_test_split" / f"shuffled_{split}_file_list.json").read_text())
        for split in ("train", "val", "test")
    }
    assert all(len(names) == 16 for names in lists.values()) and not set(lists["train"]) & set(lists["val"])
    for entry in (entry for names in lists.values() for entry in names):
        _, synset, name = entry.split("/")
        table = np.loadtxt(folder / synset / f"{name}.txt")
        low, high = first[synset]
        assert table.shape == (64, 7) and low <= table[:, 6].min() and table[:, 6].max() <= high


PART_RANGES = [
    (0, 3), (4, 5), (6, 7), (8, 11), (12, 15), (16, 18), (19, 21), (22, 23), (24, 27), (28, 29), (30, 35), (36, 37), (38, 40), (41, 43),
    (44, 46), (47, 49),
]  # fmt: skip


def test_fixtures_never_overwrite(tiny, capsys):
    status, _, err = run(capsys, "fixtures", "ShapeNet", "--out", tiny)
    assert status == 2 and "holds files already" in err
    assert run(capsys, "fixtures", "Folder", "--out", tiny)[0] == 2
    assert "at least 2 clouds" in run(capsys, "fixtures", "ModelNet10", "--out", tiny / "x", "--clouds", "0")[2]


@pytest.mark.parametrize("name", WRITTEN)
def test_whole_sets_are_complete_but_for_their_counts(tiny, capsys, name):
    whole, out, _ = run(capsys, "check", name, "--data_root", tiny, "--any_count")
    assert whole == 0 and "complete" in out and "wrong" not in out
    status, out, _ = run(capsys, "check", name, "--data_root", tiny)
    counted = name in ("ModelNetFewShot", "ModelNet40-C")  # folds and files, which are all there
    assert status == (0 if counted else 2) and ("published;" in out) != counted


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_what_is_missing_is_explained(tmp_path, capsys, layout):
    status, out, _ = run(capsys, "check", layout.name, "--data_root", tmp_path)
    if layout.name == "Synthetic":
        assert status == 0
        return
    assert status == 2 and f"{tmp_path / layout.root}: does not exist" in out
    assert "expected in" in out and "remedy: " in out and "{" not in out.split("remedy: ")[1]
    assert str(tmp_path) in out.split("remedy: ")[1]


def test_the_table_has_every_set(tiny, capsys):
    status, out, _ = run(capsys, "check", "--data_root", tiny)
    rows = {line.split()[0]: line for line in out.splitlines()[1:] if line}
    assert status == 0 and all(layout.name in rows for layout in LAYOUTS)
    assert "absent" in rows["Folder"] and "built in" in rows["Synthetic"] and "problems" in rows["ShapeNet"]


def test_names_are_forgiving_and_typing_errors_are_explained(capsys):
    assert [layout.name for layout in find("scanobjectnn")] == ["Scan_OBJ-BG", "Scan_OBJ", "Scan_PB"]
    assert find("modelnet40")[0].name == "ModelNet" and find("PB-T50-RS")[0].name == "Scan_PB"
    with pytest.raises(UserError, match="ModelNt: is no data set; did you mean ModelNet"):
        find("ModelNt")
    assert run(capsys, "check", "ModelNt")[0] == 2


@pytest.fixture
def copy(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "data")
    return tmp_path / "data"


def damage_list(root):
    folder = root / "ModelNet" / "modelnet40_normal_resampled"
    (folder / "airplane" / "airplane_0001.txt").unlink()
    return "1 listed files are missing, such as airplane/airplane_0001.txt"


def damage_class(root):
    path = root / "ModelNet" / "modelnet40_normal_resampled" / "modelnet40_test.txt"
    path.write_text(path.read_text() + "ghost_0001\n")
    return "ghost_0001 is of no class"


def damage_split(root):
    folder = root / "ModelNet" / "modelnet40_normal_resampled"
    (folder / "modelnet40_test.txt").write_text((folder / "modelnet40_train.txt").read_text())
    return "share 8 clouds"


def damage_cloud(root):
    path = next((root / "ShapeNet55-34" / "shapenet_pc").glob("*train00000.npy"))
    path.write_bytes(path.read_bytes()[:40])
    return "cannot be read as a NumPy array"


def damage_twice(root):
    path = root / "ShapeNet55-34" / "ShapeNet-55" / "train.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    return "lists 1 entries twice"


def damage_labels(root):
    import h5py

    with h5py.File(root / "modelnet40_ply_hdf5_2048" / "ply_data_test0.h5", "r+") as file:
        file["label"][1] = 77
    return "label 77 of cloud 1 is out of range"


def damage_hdf5(root):
    path = root / "ScanObjectNN" / "main_split_nobg" / "test_objectdataset.h5"
    path.write_bytes(path.read_bytes()[:600])
    return "cannot be opened as HDF5"


def damage_fold(root):
    (root / "ModelNetFewshot" / "5way_10shot" / "3.pkl").write_bytes(b"\x80")
    return "5way_10shot/3.pkl (cut short)"


def damage_parts(root):
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal" / "train_test_split"
    (folder / "shuffled_val_file_list.json").write_text('["02691156"]')
    return "is no list of shape_data/"


def damage_corruption(root):
    np.save(root / "modelnet40_c" / "label.npy", np.zeros(3))
    return "expected (3, points, 3)"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ModelNet", damage_list),
        ("ModelNet", damage_class),
        ("ModelNet", damage_split),
        ("ShapeNet", damage_cloud),
        ("ShapeNet", damage_twice),
        ("ModelNet40_SVM", damage_labels),
        ("Scan_OBJ", damage_hdf5),
        ("ModelNetFewShot", damage_fold),
        ("ShapeNetPart", damage_parts),
        ("ModelNet40-C", damage_corruption),
    ],
)
def test_damage_is_found_and_named(copy, capsys, name, damage):
    message = damage(copy)
    status, out, _ = run(capsys, "check", name, "--data_root", copy, "--any_count")
    assert status == 2 and message in out, out


def test_mixed_up_splits_are_told_from_wrong_counts(copy, capsys, monkeypatch):
    counts = find("ModelNet10")[0].counts
    monkeypatch.setitem(counts, "train", 4)
    monkeypatch.setitem(counts, "test", 8)
    assert "the two are mixed up" in run(capsys, "check", "ModelNet10", "--data_root", copy)[1]
    monkeypatch.setitem(counts, "train", 8)
    assert "test: 4 found, 8 published" in run(capsys, "check", "ModelNet10", "--data_root", copy)[1]
    monkeypatch.setitem(counts, "test", 4)
    assert "clouds of 64 points" in run(capsys, "check", "ModelNet10", "--data_root", copy)[1]
    monkeypatch.setitem(PUBLISHED_POINTS, "ModelNet10", 64)
    assert run(capsys, "check", "ModelNet10", "--data_root", copy)[0] == 0


def test_reading_finds_what_looking_cannot(copy, capsys):
    path = next((copy / "ShapeNet55-34" / "shapenet_pc").glob("*train00003.npy"))
    np.save(path, np.full((64, 3), np.nan))
    flags = ("check", "ShapeNet", "--data_root", copy, "--any_count")
    assert run(capsys, *flags)[0] == 0
    status, out, _ = run(capsys, *flags, "--read")
    assert status == 2 and "train00003.npy" in out and "finite" in out


def test_an_own_folder_is_checked(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(5):
            np.save(tmp_path / "own" / name / f"{i}.npy", np.random.default_rng(i).normal(size=(9, 3)))
    status, out, _ = run(capsys, "check", "Folder", "--data_root", tmp_path, "--read")
    assert status == 0 and "train: 8 clouds" in out and "test: 2 clouds" in out
    (tmp_path / "own" / "c").mkdir()
    status, out, _ = run(capsys, "check", "Folder", "--data_root", tmp_path)
    assert status == 2 and "c: holds no cloud" in out


def test_few_shot_folds_are_drawn_from_a_file_or_a_name(tiny, tmp_path, capsys):
    recipe = tmp_path / "set.yaml"
    recipe.write_text("NAME: Synthetic\nN_POINTS: 32\nclouds: 100\n")
    flags = ("--way", 5, "--shot", 4, "--folds", 2, "--out")
    assert run(capsys, "few-shot", "--source", recipe, *flags, tmp_path / "a")[0] == 0
    named = ("few-shot", "--source", "Synthetic", "--set", "N_POINTS=32", "--set", "clouds=100")
    assert run(capsys, *named, *flags, tmp_path / "b")[0] == 0
    assert run(capsys, *named, *flags, tmp_path / "c", "--seed", 1)[0] == 0
    contents = [(tmp_path / name / "5way_4shot" / "1.pkl").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    fold = build_dataset({"NAME": "ModelNetFewShot", "DATA_PATH": str(tmp_path / "a"), "way": 5, "shot": 4, "fold": 1})
    assert len(fold) == 20 and fold.points.shape[1] == 32
    # A root replaces data/ here as well.
    source = ("few-shot", "--source", "ModelNet10", "--set", "num_points=64", "--data_root", tiny)
    assert run(capsys, *source, "--way", 2, "--shot", 1, "--folds", 1, "--out", tmp_path / "d")[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--source", "Nothing", "--way", 5, "--shot", 1), "neither a YAML file nor a data set"),
        (("--source", "Synthetic", "--way", 21, "--shot", 1), "21 ways are asked, but of 20 classes"),
        (("--source", "Synthetic", "--way", 5, "--shot", 0), "--shot 0: must be at least 1"),
        (("--source", "Synthetic", "--way", 5, "--shot", 1, "--set", "clouds"), "expected KEY=VALUE"),
        (("--source", "ModelNet", "--way", 5, "--shot", 1, "--data_root", "/nowhere"), "/nowhere/ModelNet"),
    ],
)
def test_bad_requests_for_folds(tmp_path, capsys, flags, message):
    small = ("--set", "N_POINTS=16", "--set", "clouds=40") if "Synthetic" in flags else ()
    status, _, err = run(capsys, "few-shot", *flags, *small, "--out", tmp_path)
    assert status == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["check", "convert", "render", "fetch", "fixtures", "few-shot"])
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and f"example: python -m datasets.prepare {command}" in text
