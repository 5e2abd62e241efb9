"""`torch.hub.load(repository, ..., source="local")`, as another program calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import build_model
from tests.models.small import SMALL
from tools.doctor import methods
from utils.config.load import read_recipe
from utils.errors import UserError
from utils.files import save_checkpoint

ROOT = Path(__file__).parent.parent
KEYS = {key: value for key, value in SMALL.items() if key != "NAME"}


def load(**options):
    return torch.hub.load(str(ROOT), "point_m2ae", source="local", **options)


@pytest.fixture
def source():
    torch.manual_seed(1)
    return build_model(SMALL)


def test_keys_override_the_published_defaults():
    model = load(**KEYS)
    assert not model.training and model.config.mask_ratio == 0.8 and model.config.num_groups == SMALL["num_groups"]
    published = json.loads((ROOT / "tests/parity/data/point-m2ae/state_dict_Point_M2AE.json").read_text())
    assert sum(parameter.numel() for parameter in load().parameters()) == published["n_parameters"]
    with pytest.raises(ValueError, match="mask_ratio"):
        load(mask_ration=0.5)


@pytest.mark.parametrize("method", methods())
def test_every_method_has_an_entry(method):
    keys = {
        key: value
        for key, value in read_recipe(ROOT / "cfgs" / "debug" / f"{method}.yaml")["model"].items()
        if key != "NAME"
    }
    model = torch.hub.load(str(ROOT), method.replace("-", "_"), source="local", **keys)
    assert not model.training and model.method == method
    with torch.inference_mode():
        features, tokens = model.encode(torch.randn(2, 128, 3)), model.patch_tokens(torch.randn(2, 128, 3))
    assert len(features) == len(tokens) == 2 and torch.isfinite(features).all()


def test_published_layout(tmp_path, source):
    """Such a checkpoint does not say its size: the keys do."""
    torch.save({"base_model": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "official.pth")
    model = load(ckpts=str(tmp_path / "official.pth"), **KEYS)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"official\.pth.*another shape"):
        load(ckpts=str(tmp_path / "official.pth"))
    with pytest.raises(UserError, match="does not exist"):
        load(ckpts=str(tmp_path / "none.pth"))


def test_our_checkpoints_say_their_size(tmp_path, source):
    model = {**SMALL, "mask_ratio": 0.5}
    save_checkpoint(tmp_path / "ours.pth", {"base_model": source.state_dict(), "config": {"model": model}})
    assert load(ckpts=tmp_path / "ours.pth").config.mask_ratio == 0.5
    assert load(ckpts=tmp_path / "ours.pth", mask_ratio=0.75).config.mask_ratio == 0.75


def test_from_another_program(tmp_path, source):
    """The repository is on the import path only while the entry point runs; the model must work after that."""
    save_checkpoint(tmp_path / "ours.pth", {"base_model": source.state_dict(), "config": {"model": SMALL}})
    points = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    with torch.inference_mode():
        expected = source.eval().encode(points)
    code = f"""
import torch
model = torch.hub.load({str(ROOT)!r}, "point_m2ae", source="local", ckpts="ours.pth")
points = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4
with torch.inference_mode():
    torch.save([model.encode(points), model.patch_tokens(points), model(points)["loss"]], "out.pth")
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    features, tokens, loss = torch.load(tmp_path / "out.pth")
    torch.testing.assert_close(features, expected)
    assert tokens.shape == (2, 8, 48) and torch.isfinite(loss)
