"""I2P-MAE beyond parity: what it promises to the runners, with and without a teacher."""

import pytest
import torch

from models import build_model, load_weights
from models.i2p_mae import VISUAL_ENCODERS, encode_views, guide
from models.images.teacher import build_teacher
from tests.models.small import SMALL
from utils.errors import UserError

TEACHER = {
    "name": "vit_tiny_patch16_224",
    "weights": "random",
    "image_size": 64,
    "arguments": {"embed_dim": 12, "depth": 2, "num_heads": 3},
}
TAUGHT = {
    **SMALL,
    "NAME": "I2P_MAE",
    "local_radius": [0, 0, 0],
    "clip_config": {"feat_dim": 12},
    "teacher": TEACHER,
}


@pytest.fixture
def points():
    return torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4


def guidance_of(model, points):
    pyramid = model.group(points)
    views = encode_views(points, build_teacher(model.config.teacher), size=64, depth="signed_sum")
    return pyramid, guide(points, pyramid, views, size=64, scale=model.decoded_scale)


def test_outputs_with_a_teacher(points):
    model = build_model(TAUGHT).eval()
    pyramid, guidance = guidance_of(model, points)
    assert guidance.saliency.shape == (4, 8) and guidance.targets.shape == (4, 32, 36)
    masked = model.mask_by_saliency(guidance.saliency, generator=torch.Generator().manual_seed(0))
    assert (masked.sum(1) == 6).all()
    out = model(points, masked, pyramid=pyramid, targets=guidance.targets)
    assert torch.equal(out["loss"], out["loss_3d"] + out["loss_2d"])
    assert out["rebuilt"].shape == out["target"].shape == (len(out["samples"]), 4, 3)
    out["loss"].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"}


def test_the_2d_loss_is_the_definition(points):
    """A mean over visible tokens, their members and all channels, neighbour by neighbour and view by view."""
    model = build_model(TAUGHT).eval()
    pyramid, guidance = guidance_of(model, points)
    masked = model.mask_by_saliency(guidance.saliency, generator=torch.Generator().manual_seed(0))
    meant = {}
    model.rec_head_2d.register_forward_hook(lambda module, inputs, output: meant.update(x=output.detach()))
    out = model(points, masked, pyramid=pyramid, targets=guidance.targets)
    scales = [guidance.targets[b][pyramid.idx[1][b]] for b in range(4)]  # (G, K, 36) each
    seen = [{int(i) for group in (~masked[b]).nonzero()[:, 0] for i in pyramid.idx[2][b, group]} for b in range(4)]
    wanted = torch.stack([scales[b][group] for b in range(4) for group in sorted(seen[b])])  # (V, K, 36)
    expected = (meant["x"].view(-1, 4, 36) - wanted).square().mean()
    torch.testing.assert_close(out["loss_2d"], expected)


def test_without_a_teacher_it_masks_and_rebuilds(points):
    model = build_model(TAUGHT).eval()
    out = model(points, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out["loss"], out["loss_3d"]) and "loss_2d" not in out
    assert (out["masked"].sum(1) == 6).all()
    assert torch.equal(model.encode(points), model.patch_tokens(points).amax(1))


def test_decoding_to_the_finest_scale_takes_features_of_points(points):
    model = build_model(
        {**TAUGHT, "decoder_dims": [48, 24, 12], "decoder_depths": [1, 1, 1], "decoder_up_blocks": [1, 1]}
    )
    pyramid, guidance = guidance_of(model, points)
    assert guidance.targets.shape == (4, 100, 36)
    assert torch.isfinite(model(points, pyramid=pyramid, targets=guidance.targets)["loss"])


@pytest.mark.parametrize("scale", [(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0)])
def test_odd_clouds_and_a_batch_of_one_train(points, scale):
    """Flat clouds, lines and single points, one in a batch: losses and gradients are finite."""
    cloud = points[:1] * torch.tensor(scale) + 0.1
    model = build_model(TAUGHT).train()
    pyramid, guidance = guidance_of(model, cloud)
    assert torch.isfinite(guidance.targets).all() and torch.isfinite(guidance.saliency).all()
    out = model(cloud, model.mask_by_saliency(guidance.saliency), pyramid=pyramid, targets=guidance.targets)
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_guidance_of_a_cloud_does_not_depend_on_its_batch(points):
    model = build_model(TAUGHT).eval()
    _, together = guidance_of(model, points)
    alone = [guidance_of(model, cloud[None])[1] for cloud in points]
    torch.testing.assert_close(together.saliency, torch.cat([one.saliency for one in alone]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.targets, torch.cat([one.targets for one in alone]), rtol=1e-4, atol=1e-5)


def test_the_published_file_says_which_teacher():
    published = {"NAME": "I2P_MAE", "clip_config": {"visual_encoder": "ViT-B/32", "feat_dim": 512}}
    with torch.device("meta"):
        assert build_model(published).config.teacher.name == VISUAL_ENCODERS["ViT-B/32"]
        default = build_model({"NAME": "I2P_MAE"}).config
    assert default.teacher.name == "vit_base_patch16_clip_quickgelu_224" and default.teacher.weights == "hub"
    assert (default.teacher.depth, default.teacher.statistics, default.mask_temperature) == (
        "signed_sum",
        "imagenet",
        1.0,
    )


def test_a_checkpoint_of_another_method_is_refused(points):
    model = build_model(TAUGHT)
    with pytest.raises(UserError, match="is a checkpoint of point-m2ae, and I2PMAE is a model of i2p-mae"):
        load_weights(model, build_model(SMALL).state_dict())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clip_config": {"visual_encoder": "RN50"}, "teacher": {}}, r"visual_encoder: 'RN50' is unknown; choose from ViT-B/16"),
        ({"clip_config": {"feat_dim": 0}}, r"feat_dim: 0 must be at least 1"),
        ({"mask_temperature": 0}, r"mask_temperature: 0.0 must be above 0"),
        ({"teacher": {**TEACHER, "depth": "sum"}}, "depth"),
        ({"teacher": {**TEACHER, "wieghts": "random"}}, "weights"),
    ],
)  # fmt: skip
def test_bad_configuration(keys, message):
    with pytest.raises((ValueError, UserError), match=message):
        build_model({**TAUGHT, **keys})


def test_targets_of_another_teacher_are_refused(points):
    model = build_model(TAUGHT)
    pyramid, guidance = guidance_of(model, points)
    with pytest.raises(
        ValueError, match=r"targets must be \(4, groups below the decoded scale, 36\), got \(4, 32, 24\)"
    ):
        model(points, pyramid=pyramid, targets=guidance.targets[..., :24])
