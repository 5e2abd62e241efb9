"""Inter-MAE: what the model returns, what trains, its keys, and its image encoders."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models import MODELS, build_model, load_weights
from models.images.branch import ImageBranchConfig, build_image_branch
from utils.errors import UserError

PARITY = Path(__file__).parent.parent / "parity" / "data"
SMALL = {
    "NAME": "Inter_MAE",
    "num_group": 12,
    "group_size": 8,
    "transformer_config": {
        "trans_dim": 24,
        "encoder_dims": 24,
        "embed_widths": [8, 16, 24],
        "depth": 2,
        "num_heads": 3,
        "drop_path_rate": 0.0,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "contrast_weight": 0.5,
}
VIT = {"width": 24, "depth": 1, "num_heads": 2, "patch": 8}
IMAGES = {"mode": "trained", "encoder": "vit", "weights": "none", "vit": VIT, "hidden": 16, "size": 16}


def image_branch(**keys):
    config = MODELS.config({**SMALL, "image_branch": {**IMAGES, **keys}}).image_branch
    return build_image_branch(config)


def batch(seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 64, 3, generator=generator) - 0.5
    images = torch.randint(256, (count, 2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return points, images


def small():
    torch.manual_seed(0)
    return build_model(SMALL).train()


def test_outputs():
    model = small()
    points, images = batch()
    model.image_branch = image_branch()
    out = model(points, targets=images, generator=torch.Generator().manual_seed(1))
    assert out["rebuilt"].shape == (3 * 7, 8, 3) and out["masked"].sum(1).tolist() == [7] * 3
    assert out["features"].shape == out["image_features"].shape == (3, 256)
    torch.testing.assert_close(out["loss"], out["loss_pc"] + out["loss_fea"])
    assert out["loss_fea"] > 0
    alone = model(points, masked=out["masked"])  # for pictures: no targets, no contrastive term
    torch.testing.assert_close(alone["loss"], out["loss_pc"])
    assert "loss_fea" not in alone and "features" not in alone
    assert model.encode(points).shape == (3, 24) and model.patch_tokens(points).shape == (3, 12, 24)


def test_what_trains():
    """All of the point side and all of a trained image branch; of features from outside, the head alone."""
    points, images = batch()
    model = small()
    model.image_branch = image_branch()
    model(points, targets=images)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(name.startswith("image_branch.vit.") for name, _ in model.named_parameters())

    model = small()
    branch = image_branch()
    with torch.no_grad():
        features = branch.encode(images)
    assert features.shape == (3, 2, 24)
    model.image_branch = branch
    with torch.no_grad():
        expected = model(points, targets=images, generator=torch.Generator().manual_seed(1))["loss"]
    del branch.vit
    out = model(points, targets=features, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(out["loss"], expected)
    out["loss"].backward()
    assert model.image_branch.inv_head[0].weight.grad.any()


def test_the_contrastive_term_aligns_pairs():
    """A few steps on one batch: pairs become nearer than others, and the weight 0 leaves them where they were."""
    points, images = batch(count=6)
    nearness = {}
    for weight in (0.5, 0.0):
        model = small()
        model.config.contrast_weight = weight
        torch.manual_seed(1)
        model.image_branch = image_branch()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(30):
            out = model(points, targets=images, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            out["loss"].backward()
            optimizer.step()
        a, b = (nn.functional.normalize(out[key], dim=1) for key in ("features", "image_features"))
        cosines = (a @ b.T).detach()
        nearness[weight] = cosines.diagonal().mean() - cosines.mean()
    print(nearness)
    assert nearness[0.5] > 0.15 and abs(nearness[0.0]) < 0.05


def test_views_are_averaged():
    branch = image_branch().eval()
    _, images = batch()
    with torch.no_grad():
        both, one, other = branch(images), branch(images[:, :1]), branch(images[:, 1:])
        torch.testing.assert_close(both, (one + other) / 2)
        torch.testing.assert_close(branch(images.float() / 255), both)


def test_a_checkpoint_with_an_image_branch_loads_without_one():
    model = small()
    model.image_branch = image_branch()
    report = load_weights(build_model(SMALL), {"base_model": model.state_dict()})
    assert not (report.missing or report.unexpected)
    assert {key.split(".")[0] for key in report.ignored} == {"image_branch"}
    with pytest.raises(UserError, match="is a checkpoint of inter-mae, and PointMAE is a model of point-mae"):
        load_weights(build_model({"NAME": "Point_MAE"}), {"base_model": model.state_dict()})


def test_another_name_of_the_width_and_heads_that_do_not_divide(caplog):
    """Published files say trans_dim where the model read embed_dim, and 6 heads for a width of 256."""
    keys = {"embed_dim": 192, "encoder_dims": 192, "num_heads": 6, "decoder_num_heads": 6}
    config = MODELS.config({"NAME": "Inter_MAE", "transformer_config": keys})
    assert config.transformer_config.trans_dim == 192 and config.transformer_config.decoder_num_heads == 4
    assert "published 6 does not divide the published width of 256" in caplog.text
    with pytest.raises(ValueError, match="decoder_num_heads: 6 does not divide decoder_embed_dim 128"):
        MODELS.config({"NAME": "Inter_MAE", "transformer_config": {"decoder_embed_dim": 128, "decoder_num_heads": 6}})


def test_weights_of_an_image_encoder_from_files(tmp_path):
    from safetensors.torch import save_file

    source = image_branch()
    plain = {f"vit.{key}": value for key, value in source.vit.state_dict().items()}
    torch.save({"state_dict": {**plain, "head.weight": torch.zeros(2, 24)}}, tmp_path / "vit.pth")
    save_file(dict(source.vit.state_dict()), tmp_path / "vit.safetensors")
    for name in ("vit.pth", "vit.safetensors"):
        loaded = image_branch(weights=str(tmp_path / name)).vit.state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in source.vit.state_dict().items())
    with pytest.raises(UserError, match=r"vit\.pth: does not fit the image encoder .* choose image_branch.encoder"):
        image_branch(weights=str(tmp_path / "vit.pth"), vit={**VIT, "width": 32})
    with pytest.raises(UserError, match=r"none\.pth does not exist; give a file of weights, 'timm' or 'none'"):
        image_branch(weights=str(tmp_path / "none.pth"))
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match=r"bad\.safetensors: is damaged or no safetensors file"):
        image_branch(weights=str(tmp_path / "bad.safetensors"))


def test_an_encoder_of_timm_normalises_as_it_was_trained():
    branch = build_image_branch(ImageBranchConfig(encoder="vit_tiny_patch16_224", weights="none", size=32)).eval()
    assert branch.mean.flatten().tolist() == pytest.approx([0.5] * 3) and branch.inv_head[0].in_features == 192
    assert branch(torch.zeros(2, 1, 3, 32, 32)).shape == (2, 256)


def test_a_missing_image_encoder_is_named(monkeypatch):
    import timm

    with pytest.raises(
        UserError, match=r"timm .* has no model 'vit_smal_patch16_224'; did you mean .*vit_small_patch16_224"
    ):
        build_image_branch(ImageBranchConfig(encoder="vit_smal_patch16_224"))

    def unreachable(*args, **kwargs):
        raise OSError("no network\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"vit_small_patch16_224 cannot be had with weights 'timm' \(no network\)"):
        build_image_branch(ImageBranchConfig())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"image_branch": {**IMAGES, "size": 20}}, "patch 8 must divide size 20"),
        ({"image_branch": {**IMAGES, "weights": "timm"}}, "timm has none for an encoder 'vit'"),
        ({"image_branch": {**IMAGES, "n_imgs": 0}}, "image_branch.n_imgs: 0 must be at least 1"),
        ({"contrast_weight": -1.0}, "contrast_weight: -1.0 must not be negative"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"legacy": ["old_image_branch"]}, "old_image_branch is unknown here; choose from fresh_image_branch"),
        ({"loss": "cd"}, "model.loss: 'cd' is unknown"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model({**SMALL, **keys})


def test_bad_pairs():
    model = small()
    model.image_branch = image_branch()
    points, images = batch()
    with pytest.raises(ValueError, match="3 clouds and 2 sets of images do not pair up"):
        model(points, targets=images[:2])
    with pytest.raises(ValueError, match=r"images must be \(B, n, 3, S, S\), got \(3, 2, 1, 16, 16\)"):
        model(points, targets=images[:, :, :1])
    with pytest.raises(ValueError, match="batch of one has no negatives"):
        model.eval()(points[:1], targets=images[:1])


def published(name):
    listed = json.loads((PARITY / f"{name}.json").read_text())["state_dict"]
    return [(key, tuple(shape)) for key, shape, _ in listed]


def test_the_published_part_segmenter_has_the_old_patch_encoder():
    """It has the keys of Point-MAE's segmenter, so what it was trained to, ours or published, must load into it again."""
    keys = {"NAME": "Inter_MAE_SEG", "legacy": ["old_patch_encoder"]}
    model = build_model(keys)
    old = published("point-mae/state_dict_partseg")
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == old
    assert not load_weights(build_model(keys), {"model_state_dict": model.state_dict()}).missing
    with pytest.raises(UserError, match="is a checkpoint of point-mae, and InterMAESegmenter is a model of inter-mae"):
        load_weights(build_model({"NAME": "Inter_MAE_SEG"}), {"model_state_dict": model.state_dict()})
