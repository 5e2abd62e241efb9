"""`python -m tools.export`: checkpoints in the published layout. I2P-MAE's stands in tests/test_image_guided_runs.py."""

import pytest
import torch

from tools import export


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
