"""Point-M2AE beyond parity: what it promises to the runners and to other code."""

import pytest
import torch

from models import build_model
from tests.models.small import SMALL
from utils.errors import UserError


@pytest.fixture
def points():
    return torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4


def test_outputs(points):
    model = build_model(SMALL)
    out = model(points, generator=torch.Generator().manual_seed(0))
    patches = len(out["rebuilt"])
    assert out["loss"].dim() == 0 and out["masked"].shape == (4, 8)
    assert (out["masked"].sum(1) == 6).all()
    assert out["rebuilt"].shape == (patches, 8, 3) and out["target"].shape == (patches, 4, 3)
    assert out["centers"].shape == (patches, 3) and out["samples"].shape == (patches,)
    assert model.encode(points).shape == (4, 48) and model.patch_tokens(points).shape == (4, 8, 48)


def test_masks_and_pyramids_replay(points):
    model = build_model(SMALL)
    first = model(points, generator=torch.Generator().manual_seed(3))
    again = model(points, first["masked"], pyramid=model.group(points))
    assert torch.equal(first["loss"], again["loss"]) and torch.equal(first["rebuilt"], again["rebuilt"])


def test_encode_is_independent_of_the_batch(points):
    model = build_model(SMALL).eval()
    with torch.no_grad():
        together = model.encode(points)
        alone = torch.cat([model.encode(cloud[None]) for cloud in points])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_masks_may_differ_in_number_between_samples(points):
    masked = torch.zeros(4, 8, dtype=torch.bool)
    for sample in range(4):
        masked[sample, : 2 + sample] = True
    out = build_model({**SMALL, "mask_ratio": 0.25})(points, masked)
    assert torch.isfinite(out["loss"]) and set(out["samples"].tolist()) == {0, 1, 2, 3}


def test_only_undecoded_norms_lack_gradients(points):
    model = build_model(SMALL)
    model(points, generator=torch.Generator().manual_seed(0))["loss"].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.0.bias"}
    assert all(not dict(model.named_parameters())[name].requires_grad for name in without)


def test_overfits_one_batch(points):
    torch.manual_seed(0)
    model = build_model(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(points, generator=torch.Generator().manual_seed(0))["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.25 * losses[0]


def test_legacy_names(points):
    masked = torch.ones(4, 8, dtype=torch.bool)
    masked[:, -2:] = False
    torch.manual_seed(0)
    published = build_model({**SMALL, "legacy": True}).eval()
    clean = build_model({**SMALL, "legacy": ["near_padding"]}).eval()
    clean.load_state_dict(published.state_dict())
    with torch.no_grad():
        assert len(published(points, masked)["rebuilt"]) <= len(clean(points, masked)["rebuilt"])
        assert published.flat_token and not clean.flat_token
        assert published.h_encoder.near_padding and clean.h_encoder.near_padding
    with pytest.raises(ValueError, match="near_paddin is unknown here; choose from flat_token, near_padding"):
        build_model({**SMALL, "legacy": ["near_paddin"]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask_ratio": 1.2}, "mask_ratio: 1.2"),
        ({"mask_ratio": 0.05}, "must hide at least one"),
        ({"encoder_depths": [1, 1]}, "one entry a scale"),
        ({"num_heads": 5}, "does not divide by num_heads 5"),
        ({"decoder_dims": [48, 12]}, "must be the coarsest encoder widths"),
        ({"mask_ration": 0.5}, "mask_ratio"),
        ({"NAME": "Point_M2AEE"}, "Point_M2AE"),
    ],
)
def test_bad_configuration(keys, message):
    with pytest.raises((ValueError, UserError), match=message):
        build_model({**SMALL, **keys})


def test_bad_input(points):
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="wants 32 groups of 8 from 20 points"):
        model(points[:, :20])
    with pytest.raises(ValueError, match=r"masked must be \(4, 8\)"):
        model(points, torch.zeros(4, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="targets"):
        model(points, targets=points)
