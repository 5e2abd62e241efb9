"""Shapes that no mask changes and those that follow the masks: the same losses, gradients and statistics."""

import pytest
import torch

from models import build_model
from models.layers.group import group_pyramid
from models.layers.packing import rows_of
from models.masking import back_project, capacities, random_mask
from tests.models.small import SMALL
from tests.steps import HIERARCHICAL, STEPS, PretrainingStep, fixed_shapes


def taken(name, tmp_path, *, masked=None, overrides=()):
    """Return the values, gradients and buffers of a step."""
    step = PretrainingStep.build(name, tmp_path, overrides=overrides)
    out = step.loss(masked=masked)
    out["loss"].backward()
    gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.double() for name, buffer in step.model.named_buffers()}
    return out, gradients, buffers


def both(name, tmp_path, **keys):
    """Return a step whose shapes follow the mask, and one whose shapes are fixed."""
    follow = taken(name, tmp_path, **keys)
    with fixed_shapes():
        return follow, taken(name, tmp_path, **keys)


def assert_same_step(follow, fixed):
    """Compare two steps: scalars, gradients (against the largest one of each tensor) and buffers."""
    for name, value in follow[0].items():
        if value.dim() == 0:
            assert fixed[0][name].item() == pytest.approx(value.item(), rel=2e-6, abs=1e-7), name
    assert fixed[1].keys() == follow[1].keys()
    for name, grad in follow[1].items():
        atol = 2e-5 * max(grad.abs().max().item(), 1e-4)
        torch.testing.assert_close(
            fixed[1][name], grad, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name, buffer in follow[2].items():
        torch.testing.assert_close(fixed[2][name], buffer, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same(name, tmp_path):
    follow, fixed = both(name, tmp_path)
    assert_same_step(follow, fixed)
    valid = fixed[0]["valid"]
    assert follow[0]["valid"].all() and valid.sum() == len(follow[0]["rebuilt"])
    assert (valid.sum() < len(valid)) == (name in HIERARCHICAL)  # one scale has no padding
    for key in ("target", "centers", "samples"):
        assert torch.equal(fixed[0][key][valid], follow[0][key])
    torch.testing.assert_close(fixed[0]["rebuilt"][valid], follow[0]["rebuilt"], rtol=1e-4, atol=1e-6)


def test_samples_that_show_fewer_groups_are_the_same(tmp_path):
    masked = torch.ones(4, 8, dtype=torch.bool)
    masked[:2, 3], masked[:, 5] = False, False
    follow, fixed = both("point-m2ae", tmp_path, masked=masked)
    assert_same_step(follow, fixed)
    assert follow[0]["masked"].sum(1).tolist() == [6, 6, 7, 7]


def test_the_published_token_is_the_same(tmp_path):
    """`flat_token` shows one group more than visible groups hold."""
    assert_same_step(*both("point-m2ae", tmp_path, overrides=["model.legacy=[flat_token]"]))


def test_tokens_that_attend_to_padding_keep_shapes_that_follow_the_mask(tmp_path):
    follow, fixed = both("point-m2ae", tmp_path, overrides=["model.legacy=[near_padding]"])
    assert fixed[0]["valid"].all() and torch.equal(fixed[0]["loss"], follow[0]["loss"])


def test_evaluation_is_the_same():
    points = torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    model = build_model(SMALL).eval()
    with torch.no_grad():
        follow = model.encode(points)
        with fixed_shapes():
            torch.testing.assert_close(model.encode(points), follow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("sizes", [(8, 4, 4), (16, 8, 8)])
def test_no_mask_shows_more_than_the_bound(ratio, sizes):
    points = torch.randn(16, 256, 3, generator=torch.Generator().manual_seed(0))
    pyramid = group_pyramid(points, [64, 32, 16], sizes)
    masked = random_mask(16, 16, ratio, generator=torch.Generator().manual_seed(1))
    shown = 16 - int(ratio * 16)
    most = capacities(pyramid, shown)
    assert most == [min(64, sizes[1] * min(32, sizes[2] * shown)), min(32, sizes[2] * shown), shown]
    for hidden, bound in zip(back_project(masked, pyramid.idx, [64, 32, 16]), most, strict=True):
        assert (~hidden).sum(1).max() <= bound


def test_rows_hold_the_chosen_groups():
    chosen = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.arange(12.0).view(2, 3, 2)
    exact = rows_of(chosen)
    with fixed_shapes():
        every = rows_of(chosen, 2)
    assert exact.take(values).tolist() == [[0, 1], [4, 5], [8, 9]] and exact.samples().tolist() == [0, 0, 1]
    assert exact.valid.all() and every.valid.tolist() == [True, True, True, False]
    assert torch.equal(every.take(values)[every.valid], exact.take(values))
    assert torch.equal(every.samples()[every.valid], exact.samples())
    spread = [[1.0, 0, 2], [0, 3, 0]]
    assert exact.spread(torch.tensor([1.0, 2, 3])).tolist() == spread
    assert every.spread(torch.tensor([1.0, 2, 3, 9])).tolist() == spread
    with pytest.raises(ValueError, match="more than room=2; give a mask with as many hidden groups"):
        rows_of(chosen, 1)
