"""`python -m tools.export`: checkpoints in the published layout. I2P-MAE's stands in tests/test_image_guided_runs.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

import api
from tools import embed, export
from utils.files import read_checkpoint

BEFORE = Path(__file__).parent.parent / "fixtures" / "before" / "ckpt-last.pth"


def write(path, *keys):
    torch.save(
        {"base_model": {key: torch.ones(2) for key in keys}, "optimizer": {}, "epoch": 3, "metrics": {"acc": 0.5}}, path
    )


def test_weights_and_metrics_are_kept_under_published_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("own.pth", "h_encoder.norm.weight", "MAE_decoder.norm.weight")
    assert export.main(["--ckpts", "own.pth", "--out", "out.pth"]) == 0
    saved = torch.load("out.pth", weights_only=True)
    assert list(saved["base_model"]) == ["module.h_encoder.norm.weight", "module.MAE_decoder.norm.weight"]
    assert saved["epoch"] == 3 and saved["metrics"] == {"acc": 0.5} and "optimizer" not in saved
    assert capsys.readouterr().out == "out.pth: 2 tensors in the published layout\n"


def test_what_the_published_layout_also_holds_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("own.pth", "MAE_encoder.encoder.first_trans.q_conv.weight", "MAE_decoder.norm.weight")
    assert export.main(["--ckpts", "own.pth", "--out", "out.pth"]) == 0
    assert "lacks image_branch.*" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "options", "remedy"),
    [(["rec_head_3d.weight"], [], "give --clip"), (["h_encoder.x"], ["--clip", "clip.pth"], "leave out --clip")],
)
def test_clip_belongs_to_a_pre_trained_i2p_mae(tmp_path, monkeypatch, capsys, keys, options, remedy):
    monkeypatch.chdir(tmp_path)
    write("own.pth", *keys)
    assert export.main(["--ckpts", "own.pth", "--out", "out.pth", *options]) == 2
    assert remedy in capsys.readouterr().err


def test_a_safetensors_file_is_a_checkpoint(tmp_path, monkeypatch, capsys):
    """It brings its model, to the API and to commands, and goes back to the published layout."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "provenance.yaml").write_text("Command: main.py --seed 3\n")
    (tmp_path / "run.pth").write_bytes(BEFORE.read_bytes())
    before, points = read_checkpoint(BEFORE), np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    np.save("cloud.npy", points)
    assert export.main(["--ckpts", "run.pth", "--out", "a.safetensors"]) == 0
    assert export.main(["--ckpts", "run.pth", "--out", "half.safetensors", "--half"]) == 0
    assert export.main(["--ckpts", "a.safetensors", "--out", "back.pth"]) == 0
    saved = read_checkpoint(Path("a.safetensors"))
    assert saved["config"] == before["config"] and saved["metrics"] == before["metrics"]
    assert saved["provenance"] == {"Command": "main.py --seed 3"}
    back = torch.load("back.pth", weights_only=True)["base_model"]
    assert all(torch.equal(back[f"module.{key}"], value) for key, value in before["base_model"].items())
    assert Path("half.safetensors").stat().st_size < 0.7 * Path("a.safetensors").stat().st_size

    features = {}
    for name in ("run.pth", "a.safetensors", "half.safetensors"):
        assert (
            embed.main(["--ckpts", name, "--input", "cloud.npy", "--out", "f.npz", "--device", "cpu", "--overwrite"])
            == 0
        )
        features[name] = np.load("f.npz")["features"]
    assert np.array_equal(features["run.pth"], features["a.safetensors"])
    assert np.allclose(features["run.pth"], features["half.safetensors"], rtol=0.02, atol=0.01)
    model = api.create_model("point_m2ae.pretrain", weights="a.safetensors")
    assert all(torch.equal(before["base_model"][key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--out", "a.pth", "--half"], "--half: is for safetensors, not for pth"),
        (["--out", "a.safetensors", "--clip", "c.pt"], "--clip: is for pth, not for safetensors"),
        (["--out", "nowhere/a.safetensors"], "the folder does not exist"),
        (["--out", "a.onx"], "--out a.onx: ends in none of .pth, .safetensors, .onnx, .pt2; rename it"),
    ],
)
def test_safetensors_messages(tmp_path, monkeypatch, capsys, flags, remedy):
    monkeypatch.chdir(tmp_path)
    write("own.pth", "h_encoder.x")
    assert export.main(["--ckpts", "own.pth", *flags]) == 2
    assert remedy in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["own.pth"]
