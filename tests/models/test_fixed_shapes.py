"""Fixed shapes and those that follow the masks: the same losses, gradients and statistics."""

import pytest
import torch

from models import build_model
from models.layers.group import group_pyramid
from models.layers.packing import packed_rows, plan_packing, rows_of
from models.masking import KnownMask, back_project, capacities, hide_pyramid, random_mask
from tests.models.small import SMALL
from tests.steps import HIERARCHICAL, Pretraining, fix_shapes


def taken(name, tmp_path, *, fixed, masked=None, overrides=()):
    """Return the values, gradients and buffers of a step."""
    step = Pretraining.build(name, tmp_path, overrides=overrides)
    if fixed:
        fix_shapes(step)
    out = step.loss(masked=masked)
    out["loss"].backward()
    gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.double() for name, buffer in step.model.named_buffers()}
    return out, gradients, buffers


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


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_a_step_is_the_same(name, tmp_path):
    follow, fixed = (taken(name, tmp_path, fixed=fixed) for fixed in (False, True))
    assert_same_step(follow, fixed)
    valid = fixed[0]["valid"]
    assert "valid" not in follow[0] and 0 < valid.sum() == len(follow[0]["rebuilt"]) < len(valid)
    for key in ("target", "centers", "samples"):
        assert torch.equal(fixed[0][key][valid], follow[0][key])
    torch.testing.assert_close(fixed[0]["rebuilt"][valid], follow[0]["rebuilt"], rtol=1e-4, atol=1e-6)


def test_a_mask_of_unknown_count_is_the_same(tmp_path):
    """Samples that hide different numbers, which nobody counted: shapes are the largest there are."""
    masked = torch.zeros(4, 8, dtype=torch.bool)
    for sample in range(4):
        masked[sample, : 2 + sample] = True
    assert_same_step(*(taken("point-m2ae", tmp_path, fixed=fixed, masked=masked) for fixed in (False, True)))


def test_the_published_token_is_the_same(tmp_path):
    """`flat_token` shows one group more than visible groups hold."""
    overrides = ["model.legacy=[flat_token]"]
    follow, fixed = (taken("point-m2ae", tmp_path, fixed=fixed, overrides=overrides) for fixed in (False, True))
    assert_same_step(follow, fixed)


def test_tokens_that_see_padding_keep_shapes_that_follow_the_mask(tmp_path):
    follow, asked = (
        taken("point-m2ae", tmp_path, fixed=fixed, overrides=["model.legacy=[near_padding]"]) for fixed in (False, True)
    )
    assert "valid" not in asked[0] and torch.equal(asked[0]["loss"], follow[0]["loss"])


def test_evaluation_is_the_same():
    points = torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    model = build_model(SMALL).eval()
    with torch.no_grad():
        follow = model.encode(points)
        model.h_encoder.fixed_shapes = True
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


def test_what_is_known_of_a_mask():
    pyramid = group_pyramid(torch.randn(2, 64, 3), [16, 8], [4, 4])
    masked = torch.arange(8).expand(2, 8) < 6
    keys = {"ratio": 0.5, "method": "test"}
    assert hide_pyramid(pyramid, **keys).shown == 4
    assert hide_pyramid(pyramid, KnownMask(masked, 6), **keys).shown == 2
    assert hide_pyramid(pyramid, masked, **keys).shown is None
    assert hide_pyramid(pyramid, KnownMask(masked, 6), flat_token=True, **keys).shown is None
    with pytest.raises(ValueError, match=r"test: masked must be \(2, 8\)"):
        hide_pyramid(pyramid, KnownMask(masked[:, :7], 6), **keys)
    with pytest.raises(ValueError, match=r"masked hides \[8\] groups"):
        hide_pyramid(pyramid, KnownMask(masked, 8), **keys)


def test_rows_hold_the_chosen_groups():
    chosen = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.arange(12.0).view(2, 3, 2)
    exact, every = rows_of(chosen, fixed=False), rows_of(chosen, fixed=True)
    packed = packed_rows(plan_packing(chosen, 2), fixed=True)
    assert exact.take(values).tolist() == [[0, 1], [4, 5], [8, 9]] and exact.samples().tolist() == [0, 0, 1]
    for rows, count in ((every, 6), (packed, 4)):
        assert len(rows.take(values)) == len(rows.samples()) == count
        assert torch.equal(rows.take(values)[rows.valid], exact.take(values))
        assert torch.equal(rows.samples()[rows.valid], exact.samples())
    assert torch.equal(packed_rows(plan_packing(chosen), fixed=False).take(values), exact.take(values))
    spread = [[1.0, 0, 2], [0, 3, 0]]
    assert exact.spread(torch.tensor([1.0, 2, 3])).tolist() == spread
    assert every.spread(torch.tensor([1.0, 9, 2, 9, 3, 9])).tolist() == spread
