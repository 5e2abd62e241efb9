"""Reconstruction losses: hand-worked values, patches of unequal sizes as a transport problem, a step with each loss."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from models import build_model
from models.losses import EMD_EPS, RECONSTRUCTION_LOSSES, ReconstructionLoss, transport_cost
from tests.models.small import SMALL


def patch(*positions: float) -> torch.Tensor:
    """Return one patch (1, n, 3) on the x axis."""
    return torch.tensor([[[p, 0.0, 0.0] for p in positions]])


def test_hand_worked_losses():
    rebuilt, target = patch(0, 1), patch(1, 3)  # nearest: 1, 0 one way and 0, 4 the other; matched: 1, 4
    assert ReconstructionLoss("cdl2")(rebuilt, target).item() == 0.5 + 2.0
    assert math.isclose(ReconstructionLoss("cdl1")(rebuilt, target).item(), (0.5 + 1.0) / 2, abs_tol=1e-6)
    assert ReconstructionLoss("emd")(rebuilt, target).item() == 2.5


def test_unequal_patches_share_their_points_out():
    # Two of four go to each target: 0 and 1 to 1, 3 and 5 to 3.
    cost = transport_cost(patch(5, 0, 1, 3), patch(1, 3))
    assert cost.tolist() == [(4 + 1 + 0 + 0) / 4]
    # Three against two: 0 and 4 go to their own, the one in the middle is split.
    assert transport_cost(patch(0, 2, 4), patch(0, 4)).tolist() == [pytest.approx(8 / 6)]
    assert transport_cost(patch(0, 4), patch(0, 2, 4)).tolist() == [pytest.approx(8 / 6)]


def test_patches_are_matched_nearly_as_well_as_possible():
    generator = torch.Generator().manual_seed(0)
    rebuilt, target = (0.2 * torch.randn(5, n, 3, generator=generator) for n in (16, 8))
    cost = (rebuilt[:, :, None] - target.repeat_interleave(2, 1)[:, None]).square().sum(-1)
    best = torch.tensor([c.numpy()[linear_sum_assignment(c.numpy())].mean() for c in cost])
    excess = transport_cost(rebuilt, target) - best
    assert (excess > -1e-6).all() and (excess <= EMD_EPS + 1e-6).all()


@pytest.mark.parametrize("kind", RECONSTRUCTION_LOSSES)
def test_a_model_takes_a_step_with_every_loss(kind):
    torch.manual_seed(0)
    model = build_model({**SMALL, "loss": kind})
    points = torch.rand(2, 128, 3) - 0.5
    out = model(points, generator=torch.Generator().manual_seed(0))
    assert out["rebuilt"].shape[1] != out["target"].shape[1]  # so that the sizes of patches matter here
    out["loss"].backward()
    assert out["loss"].isfinite() and model.rec_head.weight.grad.abs().max() > 0
    before = model.rec_head.weight.detach().clone()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.01).step()
    assert not torch.equal(before, model.rec_head.weight)


def test_an_unknown_loss_names_the_choices():
    with pytest.raises(ValueError, match="'cd' is unknown; choose from cdl1, cdl2, emd"):
        ReconstructionLoss("cd")(patch(0), patch(1))
