"""I2P-MAE's guide: what it hands to the model, its store of features, its section, and what it refuses."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datasets import DATASETS, Batches, build_dataset
from models import MODELS, build_model
from tests.runs import quiet_run
from tools.guides import i2p_mae as module
from tools.guides.base import build_guide
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.errors import UserError
from utils.files import save_checkpoint
from utils.seed import generator

RECIPE = Path(__file__).parent.parent.parent / "cfgs" / "debug" / "i2p-mae.yaml"
FIXED = ("augmentation=none", "dataset.train.sampling=first", "model.teacher.cache=true")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from extensions import fps

    fps(torch.zeros(1, 1, 3), 1)  # the ops, before the cache is another one
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def guided(folder, *settings, **flags):
    """Return the guide of the debug recipe, and the first batch of its set."""
    config = load_config(RECIPE, overrides=["dataset.train.clouds=40", *settings], models=MODELS, datasets=DATASETS)
    torch.manual_seed(0)
    model, clouds = build_model(config.model), build_dataset(config.dataset.train)
    guide = build_guide(quiet_run(config, folder, **flags), model, clouds)
    return guide, next(Batches(clouds, batch_size=8, seed=0).epoch(0))


def prepare(guide, batch, **changes):
    return guide.prepare(batch.points, batch, epoch=0, draw=partial(generator, 0, 0, batch.step), **changes)


def test_what_forward_takes(folder):
    guide, batch = guided(folder)
    given = prepare(guide, batch)
    assert set(given) == {"masked", "pyramid", "targets"}
    assert (given["masked"].sum(1) == 6).all() and given["targets"].shape == (8, 32, 72)
    again = prepare(guide, batch)
    assert torch.equal(given["masked"], again["masked"]) and torch.equal(given["targets"], again["targets"])
    out = guide.model(batch.points, **given)
    assert torch.equal(out["masked"], given["masked"]) and out["loss_2d"] > 0


def test_the_mask_follows_the_teacher(folder, monkeypatch):
    """Cold masks keep the most salient groups; at the published temperature others stay as well."""
    guide, batch = guided(folder, "model.mask_temperature=1e-7")
    pyramid = guide.model.group(batch.points)
    saliency = guide.guide(batch.points, pyramid, guide.encode_views(batch.points)).saliency
    kept = ~prepare(guide, batch)["masked"]
    best = torch.zeros_like(kept).scatter_(1, saliency.topk(2).indices, True)
    assert torch.equal(kept, best)
    guide.model.config.mask_temperature = 1.0
    assert not torch.equal(~prepare(guide, batch)["masked"], best)


def test_low_precision_moves_no_pixel(folder):
    guide, batch = guided(folder)
    plain = prepare(guide, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = prepare(guide, batch)
    assert torch.equal(plain["targets"], low["targets"]) and torch.equal(plain["masked"], low["masked"])


def test_the_teacher_is_no_part_of_the_model(folder):
    guide, _ = guided(folder)
    own = {id(parameter) for parameter in guide.model.parameters()}
    assert not any(id(parameter) in own or parameter.requires_grad for parameter in guide.teacher.parameters())
    assert not any(key.startswith(("teacher", "tower", "clip")) for key in guide.model.state_dict())
    assert guide.ema is None


def test_features_are_kept_in_half_precision(folder, monkeypatch):
    """One row a cloud and view; the second run encodes nothing; what is read agrees with what was encoded."""
    guide, batch = guided(folder, *FIXED)
    assert guide.store["features"].dtype == np.float16 and guide.store["features"].shape == (40, 3, 24, 4, 4)
    assert guide.store["saliency"].shape == (40, 3, 4, 4)
    kept = prepare(guide, batch)
    guide.store = None
    encoded = prepare(guide, batch)
    torch.testing.assert_close(kept["targets"], encoded["targets"], rtol=2e-3, atol=2e-3)
    assert not torch.equal(kept["targets"], encoded["targets"])

    def refuse(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr(module, "encode_views", refuse)
    again, batch = guided(folder, *FIXED)
    assert torch.equal(prepare(again, batch)["targets"], kept["targets"])
    with pytest.raises(AssertionError, match="encoded again"):
        guided(folder, *FIXED, "model.teacher.depth=nearest")
    with pytest.raises(AssertionError, match="encoded again"):
        guided(folder, *FIXED, "dataset.train.clouds=41")


@pytest.mark.parametrize("changed", ["augmentation=scale_translate", "dataset.train.sampling=random"])
def test_features_of_points_that_change_are_not_kept(folder, changed):
    with pytest.raises(UserError, match=r"teacher.cache: features can be kept only where points stay the same"):
        guided(folder, *FIXED, changed)


def test_the_head_must_be_as_wide_as_the_features(folder):
    with pytest.raises(UserError, match=r"feat_dim: is 512, and features of vit_tiny.* have 24 channels; set it to 24"):
        guided(folder, "model.clip_config.feat_dim=512")


def test_weights_are_named_in_the_configuration_and_checked_on_resume(folder):
    from safetensors.torch import save_file

    first, _ = guided(folder)
    path = folder / "teacher.safetensors"
    save_file(first.teacher.tower.state_dict(), path)
    guide, _ = guided(folder, f"model.teacher.weights={path}")
    saved = yaml.safe_load((folder / "config.yaml").read_text())["model"]["teacher"]
    assert saved["sha256"] == guide.run.config.model.teacher.sha256 and len(saved["sha256"]) == 64
    save_checkpoint(folder / "ckpt-last.pth", {"config": to_dict(guide.run.config)})
    guided(folder, f"model.teacher.weights={path}", resume=True)
    with torch.no_grad():
        first.teacher.tower.cls_token += 1
    save_file(first.teacher.tower.state_dict(), path)
    with pytest.raises(UserError, match=r"teacher.sha256: is .*, and the run began with"):
        guided(folder, f"model.teacher.weights={path}", resume=True)


def test_the_report_shows_what_the_teacher_sees(folder):
    guide, _ = guided(folder)
    training = guide.model.training
    shown = guide.pages(guide.model)
    [section], items = shown["sections"], shown["galleries"]["saliency"]
    assert "weights random" in section.body and "none of this means anything" in section.lead
    assert "at temperature 1" in section.body and guide.model.training == training
    for item in items:
        assert list(item.pictures) == ["view 1: x, y", "view 2: z, x", "view 3: y, z"]
        size = guide.model.config.teacher.image_size
        assert all(picture.shape == (size, size) and picture.max() > 0 for picture in item.pictures.values())
        whole, visible, hidden = (item.clouds[name] for name in ("saliency", "visible", "hidden"))
        assert np.array_equal(*(np.sort(part, axis=0) for part in (whole, np.concatenate([visible, hidden]))))
        assert item.values["saliency"].mean() == pytest.approx(
            np.concatenate([item.values["visible"], item.values["hidden"]]).mean(), rel=1e-4
        )


def test_a_flat_cloud_and_a_batch_of_one(folder):
    guide, batch = guided(folder)
    flat = dataclasses.replace(
        batch, points=batch.points[:1] * torch.tensor([1.0, 1.0, 0.0]), indices=batch.indices[:1]
    )
    given = prepare(guide, flat)
    assert torch.isfinite(given["targets"]).all() and given["masked"].shape == (1, 8)


def test_the_teacher_by_a_name_of_weights(folder):
    """Published I2P-MAE has CLIP inside; a name leads to its file, which the guide notes by its hash, the name stays."""
    settings = "model.teacher.weights=i2p-mae-pretrain"
    with pytest.raises(
        UserError, match=r"model\.teacher\.weights: i2p-mae-pretrain: is not on this machine .* fetch i2p"
    ):
        guided(folder, settings)
    path = folder / "cache" / "weights" / "i2p-mae-pretrain.pth"
    path.parent.mkdir(parents=True)
    guide, _ = guided(folder)
    torch.save(guide.teacher.tower.state_dict(), path)
    guide, _ = guided(folder, settings)
    keys = guide.run.config.model.teacher
    assert keys.weights == "i2p-mae-pretrain" and keys.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
