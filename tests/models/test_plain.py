"""The plain model computes what the fast one computes: same weights, same loss and gradients."""

import pytest
import torch

from extensions import fps, knn
from models import build_model
from models.hierarchical import HierarchicalMAEConfig
from models.plain import PlainPointM2AE, nearest, sample
from tests.models.small import SMALL

# Batch statistics take these away: what the plain form has there is rounding.
BEFORE_NORM = (
    "first_conv.0.bias",
    "first_conv.3.bias",
    "second_conv.0.bias",
    "net.0.bias",
    "net1.0.bias",
    "net2.0.bias",
)


def test_same_weights_give_the_same_loss_and_gradients():
    torch.manual_seed(0)
    model = build_model({**SMALL, "encoder_depths": [2, 1, 1]}).train()
    plain = PlainPointM2AE(HierarchicalMAEConfig(**{**SMALL, "encoder_depths": [2, 1, 1]})).train()
    report = plain.load_state_dict(model.state_dict())
    assert not report.missing_keys and not report.unexpected_keys
    points = torch.randn(4, 100, 3) * 0.4
    masked = torch.zeros(4, 8, dtype=torch.bool)
    masked[:, 2:] = True  # the plain form wants as many hidden groups in every sample

    ours, theirs = model(points, masked)["loss"], plain(points, masked)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    ours.backward()
    theirs.backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None or name.endswith(BEFORE_NORM):
            continue
        error = (parameter.grad - expected[name]).norm()
        assert error < 1e-4 * expected[name].norm() + 1e-6, f"{name}: {float(error):.1e}"
        compared += 1
    assert compared > 80
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, dict(plain.named_buffers())[name], rtol=1e-4, atol=1e-5)


def test_the_vectorised_ops_choose_as_ours_do():
    points = torch.randn(3, 300, 3, generator=torch.Generator().manual_seed(1)) * 0.2
    assert torch.equal(sample(points, 40), fps(points, 40, skip_near_origin=True))
    assert torch.equal(nearest(points[:, :50], points, 9)[1], knn(points[:, :50].contiguous(), points, 9)[1])


def test_a_changed_weight_changes_the_loss():
    torch.manual_seed(0)
    plain = PlainPointM2AE(HierarchicalMAEConfig(**SMALL)).eval()
    points, masked = torch.randn(2, 100, 3) * 0.4, torch.arange(8).expand(2, 8) >= 2
    before = plain(points, masked)
    with torch.no_grad():
        plain.h_encoder.token_embed[0].first_conv[0].weight.mul_(1.5)
    assert plain(points, masked).item() != pytest.approx(before.item(), rel=1e-6)
