"""I2P-MAE against numbers of the original network (`data/i2p-mae`, weights from `fill.py`).

Of `clip_image_tower_a.npz` every 32nd channel is kept instead of every 16th; the other files are whole.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from models.i2p_mae import encode_views, guide
from models.images.clip_layout import PREFIX, clip_keys, find_clip, with_clip
from models.images.projection import draw_depth, find_pixels, fit_frame, lift, turn_to_views
from models.images.teacher import TeacherConfig, build_teacher
from models.images.weights import load_tower
from models.masking import image_guided_mask
from tests.parity.fill import fill_state_dict, values_for

DATA = Path(__file__).parent / "data" / "i2p-mae"
LOOKS = {"size": 224, "depth": "signed_sum"}


def read(name):
    return dict(np.load(DATA / f"{name}.npz"))


def published(name="I2P_MAE"):
    return json.loads((DATA / f"state_dict_{name}.json").read_text())["entries"]


@pytest.fixture(scope="module")
def teacher():
    """Return CLIP's image tower with filled weights, loaded as it stands in a published checkpoint."""
    filled = {
        key: torch.from_numpy(values_for(key, shape)).float()
        for key, shape, _ in published()
        if key.startswith(f"{PREFIX}visual.")
    }
    teacher = build_teacher(TeacherConfig(name="vit_base_patch16_clip_quickgelu_224", weights="random"))
    load_tower(teacher.tower, filled, where="filled", projects=True)
    return teacher


@pytest.fixture(scope="module")
def model():
    model = build_model({"NAME": "I2P_MAE", "legacy": True}).eval()
    fill_state_dict(model.state_dict())
    return model


def test_projection_and_lifting():
    """Every pixel of three views, the images, and what a map says at the points."""
    ref = read("projection_a")
    points = torch.from_numpy(ref["points"])
    frame = fit_frame(turn_to_views(points))
    images, pixels = draw_depth(points, frame), find_pixels(points, frame)
    lifted = lift(torch.from_numpy(ref["feature_maps"]).repeat(3, 1, 1, 1), pixels, 224)
    for view in (1, 2, 3):
        rows = slice(2 * view - 2, 2 * view)
        np.testing.assert_array_equal(pixels[rows].numpy(), ref[f"pixel{view}"])
        np.testing.assert_array_equal(frame.corner[rows].numpy(), ref[f"pc_min{view}"][:, 0])
        np.testing.assert_array_equal(frame.cell[rows].numpy(), ref[f"grid_size{view}"].ravel())
        np.testing.assert_array_equal(frame.shift[rows].numpy(), ref[f"offset{view}"])
        for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
            shown = ((images[rows] - mean) / std).flatten(1)
            if channel == 0:
                np.testing.assert_allclose(shown.numpy(), ref[f"img{view}_ch0"].reshape(2, -1), atol=1e-6)
            found = torch.stack([shown.mean(1), shown.std(1)]).numpy()
            np.testing.assert_allclose(found, ref[f"img{view}_channel_mean_std"][..., channel], atol=1e-5)
        np.testing.assert_allclose(lifted[rows, ::8].numpy(), ref[f"lifted{view}__p8"], atol=2e-6)


def test_image_tower(teacher):
    ref = read("clip_image_tower_a")
    views = encode_views(torch.from_numpy(ref["points"]), teacher, **LOOKS)
    np.testing.assert_allclose(views.features[:, ::32].numpy(), ref["features__c32"], atol=2e-5)
    np.testing.assert_allclose(views.features.mean((2, 3)).numpy(), ref["features_channel_mean"], atol=5e-6)
    np.testing.assert_allclose(views.saliency.flatten(1).numpy(), ref["cls_attention"], atol=2e-8)


def test_guided_mask():
    """The draw is that of `torch.multinomial`, number for number, and its frequencies are the stored ones."""
    ref = read("guided_mask_a")
    saliency = torch.from_numpy(ref["saliency"])
    np.testing.assert_allclose(saliency.softmax(-1).numpy(), ref["probabilities"], rtol=1e-6)
    torch.manual_seed(int(ref["torch_seed"]))
    np.testing.assert_array_equal(image_guided_mask(saliency, 0.8).numpy(), ref["mask"])
    many = saliency.repeat(4000, 1)
    kept = (~image_guided_mask(many, 0.8, generator=torch.Generator().manual_seed(0))).view(4000, *saliency.shape)
    assert np.abs(kept.float().mean(0).numpy() - ref["keep_frequency_4000"]).max() < 5 * 0.008 * 2**0.5


def test_pretraining_forward_and_backward(teacher, model):
    """Saliency, the drawn mask, tokens, both targets, both losses and gradients."""
    ref = read("pretrain_eval_a")
    points = torch.from_numpy(ref["points"])
    pyramid = model.group(points)
    guidance = guide(points, pyramid, encode_views(points, teacher, **LOOKS), size=224, scale=model.decoded_scale)
    np.testing.assert_allclose(guidance.saliency.numpy(), ref["saliency"], atol=2e-8)
    torch.manual_seed(int(ref["torch_seed"]))
    masked = model.mask_by_saliency(guidance.saliency)
    np.testing.assert_array_equal(masked.numpy(), ref["mask2"])

    stages = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: stages.update({name: output}))
        for name, module in {"tokens": model.decoder_norm, "semantics": model.rec_head_2d}.items()
    ]
    out = model(points, masked, pyramid=pyramid, targets=guidance.targets)
    for handle in handles:
        handle.remove()
    for scale in range(3):
        np.testing.assert_array_equal(pyramid.centers[scale].numpy(), ref[f"center{scale}"])
        np.testing.assert_array_equal(pyramid.idx[scale].numpy(), ref[f"knn_idx{scale}"])
    np.testing.assert_array_equal(out["masked_finest"].numpy(), ref["mask0"])
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(stages["tokens"][:, ::8].detach().numpy(), ref["dec_norm__t8"], **close)
    np.testing.assert_allclose(out["rebuilt"].detach().numpy(), ref["rec_3d"], **close)
    np.testing.assert_array_equal(out["target"].numpy(), ref["gt_3d"])
    visible = torch.from_numpy(~ref["mask1"])
    meant = stages["semantics"].detach().view(-1, 8, 1536)
    np.testing.assert_allclose(meant[::16, :, ::48].numpy(), ref["rec_2d__r16c48"], **close)
    samples, groups = visible.nonzero(as_tuple=True)
    wanted = guidance.targets[samples.unsqueeze(1), pyramid.idx[1][samples, groups]]  # (V, 8, 1536)
    np.testing.assert_allclose(wanted[::16, :, ::48].numpy(), ref["target_2d__r16c48"], atol=2e-5)
    np.testing.assert_allclose(wanted.mean((1, 2)).numpy(), ref["target_2d_row_mean"], atol=5e-6)
    for part in ("loss_3d", "loss_2d"):
        assert out[part].item() == pytest.approx(float(ref[part]), rel=1e-5)

    out["loss"].backward()
    named = dict(model.named_parameters())
    for name, norm, head in zip(ref["grad_names"], ref["grad_norms"], ref["grad_first8"], strict=True):
        grad = named[str(name)].grad
        if np.isnan(norm):
            assert grad is None, name
            continue
        assert float(grad.double().norm()) == pytest.approx(float(norm), rel=1e-3, abs=1e-6), name
        first = grad.flatten()[:8].numpy()
        np.testing.assert_allclose(first, head[: len(first)], rtol=1e-2, atol=1e-3 * float(norm) + 1e-6, err_msg=name)


def test_svm_features(model):
    ref = read("svm_features")
    with torch.no_grad():
        features = model.encode(torch.from_numpy(ref["points"]))
    np.testing.assert_allclose(features.numpy(), ref["features"], rtol=1e-3, atol=1e-4)


def test_published_keys_and_checkpoint():
    """Names, shapes and order are the published ones; a checkpoint with CLIP inside loads, and an exported one is that layout."""
    entries = published()
    model = build_model({"NAME": "I2P_MAE"})
    own = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert own == [[key, shape] for key, shape, _ in entries if not key.startswith(PREFIX)]
    weights = {
        key: torch.full(shape, 0.5, dtype=getattr(torch, dtype.removeprefix("torch."))) for key, shape, dtype in entries
    }
    report = load_weights(
        model, {"base_model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 300}
    )
    assert len(report.used) == 295 and len(report.ignored) == 302
    assert not (report.missing or report.unexpected)

    clip = {key: value.float() for key, value in reversed(find_clip(weights).items())}
    assert clip_keys(clip) == [key.removeprefix(PREFIX) for key, _, _ in entries if key.startswith(PREFIX)]
    exported = with_clip(model.state_dict(), clip)
    found = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in exported.items()]
    assert found == [[key, shape, dtype.removeprefix("torch.")] for key, shape, dtype in entries]
    assert all((value == 0.5).all() for key, value in exported.items() if not key.endswith("num_batches_tracked"))
