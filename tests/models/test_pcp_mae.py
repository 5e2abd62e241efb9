"""What PCP-MAE promises apart from its numbers."""

import pytest
import torch

from models import build_model, load_weights
from models.layers.drop import DropPath
from models.pcp_mae import CENTER_LOSSES, drop_by_stream
from tests.models.test_contract import KEYS, build, clouds
from utils.errors import UserError

NAMES = ("PCP_MAE", "PCP_MAE_Classifier", "PCP_MAE_SEG")


def run(model, points, **keys):
    return model(points, generator=torch.Generator().manual_seed(0), **keys)


def test_visible_stream_is_that_of_the_visible_patches_alone():
    """Hidden tokens see visible ones, not the other way round, and their order is their groups'."""
    model, points = build("PCP_MAE").eval(), clouds()
    pyramid = model.group(points)
    masks = model.mask(pyramid, generator=torch.Generator().manual_seed(0))
    hidden = model.hidden_rows(masks)
    visible, masked = model.MAE_encoder.both_streams(pyramid, masks[0], hidden)
    torch.testing.assert_close(visible, model.MAE_encoder(pyramid, masks[0]))
    with torch.no_grad():
        model.MAE_encoder.mask_pos_token.add_(1.0)
    again = model.MAE_encoder.both_streams(pyramid, masks[0], hidden)
    assert torch.equal(again[0], visible) and not torch.allclose(again[1], masked)


def test_rebuilding_does_not_train_the_head_for_centers():
    for detach in (True, False):
        model = build("PCP_MAE", add_detach=detach)
        run(model, clouds())["loss_recon"].backward()
        assert all((p.grad is None) == detach for p in model.pred_pos_proj.parameters())


@pytest.mark.parametrize("kind", CENTER_LOSSES)
def test_losses_of_centers(kind):
    """The total is the sum of its parts; the weight is `ita`; the published code lets the loss for centres be any of four."""
    out = run(build("PCP_MAE", pred_loss=kind, ita=0.5).eval(), clouds())
    whole = run(build("PCP_MAE", pred_loss=kind, ita=1.0).eval(), clouds())
    torch.testing.assert_close(out["loss"], out["loss_recon"] + out["loss_center"])
    torch.testing.assert_close(2 * out["loss_center"], whole["loss_center"])
    assert out["predicted_centers"].shape == out["centers"].shape


def test_each_stream_is_dropped_by_itself():
    drop = DropPath(0.5).train()
    torch.manual_seed(0)
    kept = drop_by_stream(drop, torch.ones(400, 6, 2), 4)
    assert all((part == part[:, :1, :1]).all() for part in (kept[:, :4], kept[:, 4:]))
    both = (kept[:, 0, 0] > 0) == (kept[:, -1, 0] > 0)
    assert 0.4 < both.float().mean() < 0.6
    assert torch.equal(drop_by_stream(drop.eval(), kept, 4), kept)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("PCP_MAE", {"ita": -0.1}, r"model\.ita: -0\.1 must not be negative"),
        ("PCP_MAE", {"pred_pos_transformer_layer": -1}, "pred_pos_transformer_layer: -1 must not be negative"),
        ("PCP_MAE", {"pred_loss": "huber"}, "pred_loss"),
        (
            "PCP_MAE_Classifier",
            {"trans_dim": 32, "encoder_dims": 32, "num_heads": 2},
            "trans_dim: 32 does not divide by 6",
        ),
        ("PCP_MAE_SEG", {"trans_dim": 32, "encoder_dims": 32, "num_heads": 2}, "trans_dim: 32 does not divide by 6"),
    ],
)
def test_keys_that_are_refused(name, keys, message):
    with pytest.raises(ValueError, match=message):
        build_model({**KEYS[name], "NAME": name, **keys})


def test_checkpoints_of_other_methods_are_refused():
    with pytest.raises(UserError, match="is a checkpoint of point-mae, and PCPMAE is a model of pcp-mae"):
        load_weights(build("PCP_MAE"), {"base_model": build("Point_MAE").state_dict()})
    for name in NAMES[1:]:  # the same names, other shapes
        with pytest.raises(UserError, match=r"first pos_embed\.0\.weight: \(128, 3\) in the checkpoint"):
            load_weights(build(name), {"base_model": build("Point_MAE").state_dict()})
    with pytest.raises(UserError, match="is a checkpoint of pcp-mae, and PointMAEClassifier is a model of point-mae"):
        load_weights(build("PointTransformer"), {"base_model": build("PCP_MAE").state_dict()})
