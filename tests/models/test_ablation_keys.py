"""Keys that take a part of a published method away: what each changes, and that the published value is the default."""

import pytest
import torch

from models import build_model
from tests.models.small import SMALL
from utils.errors import UserError


def clouds(count, points):
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(0)) * 0.4


def build(**keys):
    torch.manual_seed(0)
    return build_model({**SMALL, **keys})


def step(model, points):
    """Run forward and backward; returns the outputs."""
    out = model(points, generator=torch.Generator().manual_seed(0))
    out["loss"].backward()
    return out


@pytest.mark.parametrize(
    "keys",
    [
        {"skip_connections": False},
        {"multi_scale_mask": False},
        {"local_attention": True},
        {"encoder_depths": [0, 0, 3]},
        {"decoder_dims": [48], "decoder_depths": [1], "decoder_up_blocks": []},
        {"decoder_dims": [48, 24, 12], "decoder_depths": [1, 1, 1], "decoder_up_blocks": [1, 1]},
        {"loss": "emd"},
    ],
)
def test_a_step_trains_all_that_is_there(keys):
    model = build(**keys)
    out = step(model, clouds(4, 128))
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert torch.isfinite(out["loss"]) and not idle
    assert model.encode(clouds(2, 128)).shape == (2, 48)


def test_without_skip_connections_the_decoder_sees_what_is_propagated_alone():
    with_skip, without = build(), build(skip_connections=False)
    widths = [model.token_prop[0].fuse.net[0].weight.shape[1] for model in (with_skip, without)]
    assert widths == [48 + 24, 48]


def test_without_multi_scale_masking_each_scale_hides_its_own():
    points = clouds(4, 128)
    model = build(multi_scale_mask=False)
    pyramid = model.group(points)
    masks = model.mask(pyramid, generator=torch.Generator().manual_seed(0))
    assert [int(mask.visible.sum(1).unique()) for mask in masks] == [32 - 25, 16 - 12, 8 - 6]
    follows = build().mask(pyramid, masked=~masks[-1].visible)
    assert (follows[0].visible != masks[0].visible).any() and torch.equal(follows[-1].visible, masks[-1].visible)
    assert all(mask.visible.all() for mask in model.mask_nothing(pyramid))


def test_local_attention_stops_at_the_radius():
    """A token that is far from all others changes none of them."""
    model = build(local_attention=True, local_radius=[0.5, 0.5, 0.5], encoder_depths=[2, 1, 1]).eval()
    encoder = model.h_encoder
    tokens = torch.randn(1, 6, 12)
    centers = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0], [0, 0.2, 0], [9.0, 9, 9], [0, 0, 0.2], [0.1, 0.1, 0]]])
    packing = model.mask_nothing(model.group(clouds(1, 128)))[0]
    packing = packing._replace(
        order=torch.arange(6)[None],
        valid=torch.ones(1, 6, dtype=torch.bool),
        visible=torch.ones(1, 6, dtype=torch.bool),
    )
    before = encoder._attend_visible(0, tokens, centers, packing)
    tokens[0, 3] += 1
    after = encoder._attend_visible(0, tokens, centers, packing)
    near = [0, 1, 2, 4, 5]
    assert torch.equal(before[0, near], after[0, near]) and not torch.equal(before[0, 3], after[0, 3])
    encoder.local_visible = False
    assert not torch.allclose(encoder._attend_visible(0, tokens, centers, packing)[0, near], after[0, near])


def test_keys_that_go_with_nothing():
    with pytest.raises(UserError, match="needs a radius above 0"):
        build(local_attention=True, local_radius=[0.0, 0.0, 0.0])
    with pytest.raises(UserError, match="GM3D guides the coarsest scale alone"):
        build(NAME="GM3D_Point_M2AE", multi_scale_mask=False)


def test_schemes_of_i2p_mae_one_by_one():
    keys = {"NAME": "I2P_MAE", "clip_config": {"feat_dim": 4}}
    points = clouds(4, 128)
    targets = torch.randn(4, 32, 12)
    for image_targets in (True, False):
        model = build(**keys, image_targets=image_targets)
        out = model(points, targets=targets)
        assert ("loss_2d" in out) == image_targets == model.rec_head_2d.weight.requires_grad
    saliency = torch.zeros(64, 8)
    saliency[:, 0] = 100.0
    draw = torch.Generator().manual_seed(0)
    guided, random = (build(**keys, guided_mask=on).mask_by_saliency(saliency, generator=draw) for on in (True, False))
    assert not guided[:, 0].any() and 0.5 < random[:, 0].float().mean() < 1


def test_inter_mae_without_its_gate():
    encoder = {"trans_dim": 48, "encoder_dims": 48, "depth": 2, "num_heads": 3, "embed_widths": [16, 16, 32]}
    decoder = {"decoder_depth": 1, "decoder_num_heads": 4, "decoder_embed_dim": 32}
    keys = {"NAME": "Inter_MAE", "num_group": 16, "group_size": 8}
    torch.manual_seed(0)
    model = build_model({**keys, "transformer_config": {**encoder, **decoder, "gate": "none"}})
    assert not [name for name, _ in model.named_parameters() if "q_conv" in name]
    step(model, clouds(4, 128))
