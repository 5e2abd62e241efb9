"""Commands on strange files: the same numbers wherever a cloud lies, bad files listed, results that are none refused."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets.prepare
from datasets import DATASETS
from datasets.formats.ply import read_ply
from datasets.preparing.unpack import unpack
from models import MODELS, build_model
from tools import embed
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import explain_write, save_checkpoint, write_atomic

ROOT = Path(__file__).parent.parent.parent
FAR = np.array([4_543_210.0, 512_345.0, 101.0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pre.pth"
    config = load_config(ROOT / "cfgs" / "debug" / "point-mae.yaml", models=MODELS, datasets=DATASETS)
    torch.manual_seed(3)
    save_checkpoint(path, {"base_model": build_model(config.model).state_dict(), "config": to_dict(config)})
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def features(checkpoint, *flags, out="a.npz"):
    flags = ["--device", "cpu", "--ckpts", str(checkpoint), "--input", "in", "--out", out, "--overwrite", *flags]
    assert embed.main(flags) == 0
    with np.load(out) as found:
        return dict(zip(found["names"].tolist(), found["features"], strict=True))


def test_k1_features_do_not_depend_on_where_a_cloud_lies(here, cloud, checkpoint):
    np.save(here / "near.npy", cloud)
    np.save(here / "far.npy", cloud + FAR)
    np.save(here / "large.npy", cloud * 1e9)
    np.save(here / "small.npy", cloud * 1e-9)
    with_missing = np.insert(cloud, 7, [[np.nan] * 3, [0, 0, 1e39]], axis=0)
    np.savetxt(here / "missing.xyz", with_missing, fmt="%.17g", delimiter=";")
    found = features(checkpoint)
    for name in ("far.npy", "large.npy", "small.npy", "missing.xyz"):
        np.testing.assert_allclose(found[name], found["near.npy"], atol=2e-4)


def test_k2_features_that_are_not_finite_are_refused(here, cloud, checkpoint, capsys):
    np.save(here / "huge.npy", cloud * 1e17)
    flags = ["--device", "cpu", "--ckpts", str(checkpoint), "--input", "in", "--out", "a.npz", "--no_normalize"]
    status = embed.main([*flags, "--precision", "fp32"])
    if status:
        assert "huge.npy: its features are not finite" in capsys.readouterr().err and not Path("a.npz").exists()
    else:
        with np.load("a.npz") as found:
            assert np.isfinite(found["features"]).all()


def test_k2_weights_that_are_not_finite_are_refused(here, cloud, checkpoint, capsys):
    np.save(here / "a.npy", cloud)
    content = torch.load(checkpoint, weights_only=True)
    name = next(key for key in content["base_model"] if key.endswith("norm1.weight"))
    content["base_model"][name][0] = np.nan
    save_checkpoint("bad.pth", content)
    assert embed.main(["--device", "cpu", "--ckpts", "bad.pth", "--input", "in", "--out", "a.npz"]) == 2
    assert f"the tensor {name} holds NaN" in capsys.readouterr().err


def test_k16_bad_files_are_passed_over_and_listed(here, cloud, checkpoint, capsys):
    np.save(here / "good.npy", cloud)
    np.save(here / os.fsdecode(b"caf\xe9.npy"), cloud)
    (here / "bad.npy").write_bytes(b"PK\3\4")
    os.mkfifo(here / "pipe.ply")
    (here / "link.npy").symlink_to("gone.npy")
    (here / "README.txt").write_text("Ten clouds of a scanner.\n")
    flags = ["--device", "cpu", "--ckpts", str(checkpoint), "--input", "in", "--out", "a.npz"]
    assert embed.main(flags) == 2
    assert "--skip_bad passes over such files" in capsys.readouterr().err
    found = features(checkpoint, "--skip_bad")
    assert sorted(found) == [r"caf\udce9.npy", "good.npy"]
    np.testing.assert_array_equal(*found.values())
    shown = capsys.readouterr().err
    for name in ("bad.npy", "pipe.ply", "link.npy"):
        assert f"bad file: in/{name}" in shown


def test_k18_a_turn_to_y_up(here, cloud, checkpoint):
    np.save(here / "a.npy", cloud)
    upright = features(checkpoint)["a.npy"]
    np.save(here / "a.npy", cloud[:, [0, 2, 1]] * [1, -1, 1])  # z up: y goes to z
    np.testing.assert_allclose(features(checkpoint, "--up", "z")["a.npy"], upright, atol=1e-5)
    assert np.abs(features(checkpoint)["a.npy"] - upright).max() > 1e-4


@pytest.mark.slow  # compiles all of PyTorch anew
def test_k13_without_docstrings():
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "tools.embed", "--help"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Conversions


def prepare(*flags):
    return datasets.prepare.main([str(flag) for flag in flags])


def test_k1_conversions_keep_the_shape_of_map_coordinates(here, cloud, capsys):
    np.save(here / "a.npy", cloud + FAR)
    np.save(here / "b.npy", np.vstack([cloud + FAR, [[np.nan, 0, 0]]]))
    assert prepare("convert", here, "--out", "out", "--points", 400, "--workers", 1) == 0
    centred = cloud - cloud.mean(axis=0)
    for name in ("a", "b"):
        found = np.load(f"out/{name}.npy")
        np.testing.assert_allclose(np.sort(found, axis=0), np.sort(centred, axis=0), atol=1e-6)
    assert "b.npy: points without finite coordinates were left out (1 of 401)" in capsys.readouterr().err


def test_k5_conversions_list_every_bad_file(here, cloud, capsys):
    np.save(here / "good.npy", cloud)
    (here / "index.off").write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 99\n")
    (here / "bad.npz").write_bytes(b"PK\3\4damaged")
    (here / "huge.npy").write_bytes(
        b"\x93NUMPY\1\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 3), }".ljust(127) + b"\n"
    )
    (here / "back.pcd").write_bytes(
        b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 2\nDATA binary_compressed\n"
        + bytes([1, 0, 0, 0, 24, 0, 0, 0, 224])
    )
    assert prepare("convert", here, "--out", "out", "--workers", 1) == 2
    assert prepare("convert", here, "--out", "out", "--workers", 1, "--skip_bad") == 0
    shown = capsys.readouterr().err
    for name in ("index.off", "bad.npz", "huge.npy", "back.pcd"):
        assert f"bad file: {here / name}" in shown
    assert [path.name for path in Path("out").glob("*.npy")] == ["good.npy"]


def test_errors_of_the_system_are_messages_of_prepare(here, cloud, capsys, monkeypatch):
    import datasets.preparing.convert as module

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "in/a.npy")

    np.save(here / "a.npy", cloud)
    monkeypatch.setattr(module, "plan", refuse)
    assert prepare("convert", here, "--out", "out") == 2
    assert "error: in/a.npy: Permission denied" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_survives_its_parent(here, tmp_path, number):
    for index in range(64):
        np.savetxt(here / f"{index}.xyz", np.random.default_rng(index).normal(size=(60_000, 3)))
    flags = ["convert", str(here), "--out", str(tmp_path / "out"), "--workers", "2"]
    parent = subprocess.Popen([sys.executable, "-m", "datasets.prepare", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    done = tmp_path / "out.converting"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(done.glob("*.npy")):
        time.sleep(0.2)
    workers = [int(child) for child in children.read_text().split()]
    assert len(workers) >= 2
    parent.send_signal(number)
    parent.wait(60)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.2)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


# Archives


def test_damaged_archives_are_not_blamed_on_the_disk(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", "1 2 3\n" * 500)
    data = path.read_bytes()
    for broken in (data[:60] + b"\xff" * 8 + data[68:], data[:20] + data[21:], data[:-30]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.zip: .*(download it again|is neither a zip)") as caught:
            unpack(path, tmp_path / "out")
        assert "cannot be written" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(UserError, match="is a named pipe"):
        unpack(tmp_path / "pipe.zip", tmp_path / "out")


# Remedies


def test_k17_remedies_fit_the_command(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    assert "call the command again" in explain_write(tmp_path / "a", full) and "--resume" not in explain_write(
        tmp_path / "a", full
    )

    def no_room(file):
        raise full

    with pytest.raises(UserError, match="free space and call the command again"):
        write_atomic(tmp_path / "a", no_room)
    monkeypatch.setattr(torch, "save", lambda state, file: no_room(file))
    with pytest.raises(UserError, match="start again with --resume"):
        save_checkpoint(tmp_path / "a.pth", {})


# Splits


def test_held_out_sets_are_the_test_split_where_they_do_not_say(caplog):
    recipe = ROOT / "cfgs" / "debug" / "point-mae.yaml"
    sets = ["dataset.val.NAME=Synthetic", "dataset.val.clouds=40"]
    config = load_config(recipe, overrides=sets, models=MODELS, datasets=DATASETS)
    assert config.dataset.val.subset == "test" and config.dataset.train.subset == "train"
    caplog.clear()
    load_config(recipe, overrides=[*sets, "dataset.val.subset=train"], models=MODELS, datasets=DATASETS)
    assert "val is the training set itself (train)" in caplog.text


# Parts


def test_k1_parts_are_written_where_the_cloud_lies(tmp_path, cloud):
    from segmentation.pages import part_item, write_parts

    labels = np.arange(len(cloud)) % 2
    item = part_item("a", cloud + FAR, {"predicted": labels}, [0, 1], ["seat", "back"])
    write_parts(tmp_path, item)
    np.testing.assert_array_equal(read_ply(tmp_path / "a_predicted.ply")[0], cloud + FAR)
