"""Fused Chamfer loss: hand-worked cases, agreement with the unfused formulas and the reference, bounds and errors."""

import pytest
import torch

from extensions import chamfer_distance, chamfer_loss
from extensions.m2ae_ops.reference import chamfer as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def unfused(a: torch.Tensor, b: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the losses by plain formulas over the distances, through their own gradients."""
    d1, d2, _, _ = chamfer_distance(a, b)
    return reference.pair_losses(a, b, d1, d2, kind == "cdl1")


def leaves(pairs: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random clouds with duplicates, points that coincide across the pair, and gradients on."""
    generator = torch.Generator().manual_seed(pairs * n + m)
    a, b = (torch.randn(pairs, count, 3, generator=generator) for count in (n, m))
    a[:, -1], b[:, 0] = a[:, 0], a[:, n // 2]
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize("device", DEVICES)
def test_by_hand(device):
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], device=device, requires_grad=True)
    b = torch.tensor([[[3.0, 0, 0]]], device=device, requires_grad=True)
    losses = chamfer_loss(a, b)  # (9 + 4) / 2 + 4
    assert losses.tolist() == [10.5]
    losses.sum().backward()
    # Half of 2 * (0 - 3), half of 2 * (1 - 3), and 2 * (1 - 3) for being chosen; b balances them.
    assert a.grad[0, :, 0].tolist() == [-3, -6] and b.grad[0, :, 0].tolist() == [9]
    assert chamfer_loss(a, b, "cdl1").tolist() == [2.25]  # ((3 + 2) / 2 + 2) / 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["cdl1", "cdl2"])
@pytest.mark.parametrize(
    ("pairs", "n", "m"),
    [(1, 1, 1), (3, 4, 7), (4, 1, 5), (16, 16, 8), (17, 32, 32), (35, 48, 32), (5, 64, 63), (6, 65, 20), (2, 300, 170)],
)
def test_agrees_with_the_unfused_form(device, kind, pairs, n, m):
    for dtype in (torch.float32, torch.float64):
        a, b = (x.detach().to(device).requires_grad_() for x in leaves(pairs, n, m, dtype))
        flow = torch.rand(pairs, dtype=dtype).to(device)
        ours, expected = chamfer_loss(a, b, kind), unfused(a, b, kind)
        torch.testing.assert_close(ours, expected)
        ours_grads = torch.autograd.grad(ours, (a, b), flow)
        torch.testing.assert_close(ours_grads, torch.autograd.grad(expected, (a, b), flow))
        only_b = torch.autograd.grad(chamfer_loss(a.detach(), b, kind), b, flow)
        assert torch.equal(only_b[0], ours_grads[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("root", [False, True])
def test_the_op_with_gradients_agrees_with_the_unfused_form(device, root):
    """What GPUs run; on the CPU this is the reference, which has no other judge there."""
    a, b = (x.detach().to(device).requires_grad_() for x in leaves(20, 24, 40))
    losses = unfused(a, b, "cdl1" if root else "cdl2")
    expected = (losses, *torch.autograd.grad(losses.sum(), (a, b)))
    a, b = a.detach(), b.detach()
    torch.testing.assert_close(torch.ops.m2ae.chamfer_loss(a, b, root, True, True), expected)
    _, to_a, to_b = torch.ops.m2ae.chamfer_loss(a, b, root, False, True)
    assert to_a.shape == (0, 24, 3)
    torch.testing.assert_close(to_b, expected[2])


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("pairs", "n", "m"), [(1, 1, 1), (3, 4, 7), (17, 32, 32), (35, 48, 31), (5, 64, 63), (2, 300, 170)]
)
def test_who_chose_whom_is_what_the_reference_says(root, dtype, pairs, n, m):
    a, b = (x.detach() for x in leaves(pairs, n, m, dtype))
    flow = torch.rand(pairs, dtype=dtype)
    losses, i1, i2 = torch.ops.m2ae.chamfer_chosen(a, b, root)
    expected, *chosen = reference.chamfer_chosen(a, b, root)
    torch.testing.assert_close(losses, expected)
    assert torch.equal(i1, chosen[0]) and torch.equal(i2, chosen[1])
    for wanted in ((True, True), (True, False), (False, True)):
        ours = torch.ops.m2ae.chamfer_chosen_backward(flow, a, b, i1, i2, root, *wanted)
        torch.testing.assert_close(ours, reference.chamfer_chosen_backward(flow, a, b, i1, i2, root, *wanted))


def test_gradients_of_points_that_do_not_exist_are_refused():
    a, b = (x.detach() for x in leaves(6, 40, 20))
    _, i1, i2 = torch.ops.m2ae.chamfer_chosen(a, b, False)
    for place in (0, 39):  # in a whole register, and in what is left of it
        for index in (-1, 20):
            wrong = i1.clone()
            wrong[3, place] = index
            with pytest.raises(IndexError, match="chamfer_chosen_backward: an index of pair 3 is outside"):
                torch.ops.m2ae.chamfer_chosen_backward(torch.ones(6), a, b, wrong, i2, False, True, True)
    distances, *_, i2 = torch.ops.m2ae.chamfer(a, b)
    too_large = torch.full((6, 40), 2**32)  # 0 in 32 bits
    with pytest.raises(IndexError, match="chamfer_backward: an index of pair 0 is outside"):
        torch.ops.m2ae.chamfer_backward(distances, torch.ones(6, 20), a, b, too_large, i2)


@pytest.mark.parametrize("device", DEVICES)
def test_coinciding_points_have_no_gradient(device):
    points = torch.rand(8, 20, 3, device=device).requires_grad_()
    loss = chamfer_loss(points, points.detach().flip(1), "cdl1")
    torch.testing.assert_close(loss, torch.full_like(loss, 1e-6))  # the root of the clamp
    (grad,) = torch.autograd.grad(loss.sum(), points, create_graph=True)
    assert grad.eq(0).all()
    assert torch.autograd.grad(grad.sum(), points)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    a, b = leaves(20, 12, 9, dtype)
    losses = chamfer_loss(a, b)
    expected = chamfer_loss(a.float(), b.float())
    assert losses.dtype == torch.float32 and torch.equal(losses, expected)
    ours, full = (torch.autograd.grad(x.sum(), (a, b)) for x in (losses, expected))
    assert all(x.dtype == dtype and torch.equal(x, y) for x, y in zip(ours, full, strict=True))


def test_each_pair_is_on_its_own_and_threads_change_nothing():
    a, b = leaves(200, 32, 30)
    a.data[3, 5, 1], b.data[60, 2, 0] = float("nan"), float("inf")

    def run():
        losses = chamfer_loss(a, b)
        return losses, *torch.autograd.grad(losses.sum(), (a, b))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(before)
    broken = torch.tensor([3, 60])
    assert one[0][3].isnan() and one[0][60].isinf()
    for x, y in zip(one, three, strict=True):
        assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))
    good = torch.ones(200, dtype=torch.bool).index_fill(0, broken, False)
    assert one[1][good].isfinite().all() and one[2][good].isfinite().all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", ["cdl1", "cdl2"])
@pytest.mark.parametrize(("pairs", "n", "m"), [(2, 7, 5), (20, 32, 30), (3, 300, 170)])
def test_a_coordinate_that_is_not_a_number_breaks_its_pair(kind, pairs, n, m, device):
    """In either cloud, in every form; an infinite one makes the loss infinite, and other pairs stay as they are."""
    a, b = (x.detach().to(device) for x in leaves(pairs, n, m))
    root, whole = kind == "cdl1", chamfer_loss(a, b, kind)
    for side, pair in ((0, 0), (1, 1)):
        broken = [a.clone(), b.clone()]
        broken[side][pair, 3, 1], broken[side][1 - pair, 2, 2] = float("nan"), float("inf")
        ops = torch.ops.m2ae
        forms = (
            chamfer_loss(*broken, kind),
            ops.chamfer_chosen(*broken, root)[0],
            ops.chamfer_loss(*broken, root, True, True)[0],
            reference.chamfer_loss(*broken, root, False, False)[0],
        )
        for losses in forms:
            assert losses[pair].isnan() and losses[1 - pair].isinf()
            torch.testing.assert_close(losses[2:], whole[2:])


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(("pairs", "n", "m"), [(3, 7, 5), (20, 32, 30), (3, 300, 170)])
def test_a_coordinate_that_is_not_finite_takes_the_gradients_of_its_pair(pairs, n, m, root, wanted):
    """All gradients of the pair are NaN, as in the reference; those of an overflow are not."""
    a, b = (x.detach() for x in leaves(pairs, n, m))
    a[0, 3, 1], b[1, 2, 2], a[2] = float("inf"), float("nan"), a[2] * 1e30
    flow = torch.rand(pairs)
    losses, *chosen = torch.ops.m2ae.chamfer_chosen(a, b, root)
    assert losses[0].isinf() and losses[1].isnan() and losses[2].isinf()
    ours = torch.ops.m2ae.chamfer_chosen_backward(flow, a, b, *chosen, root, *wanted)
    i1, i2 = torch.ops.m2ae.chamfer(a, b)[2:]
    expected = reference.chamfer_chosen_backward(flow, a, b, i1, i2, root, *wanted)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    for gradient, want in zip(ours, wanted, strict=True):
        assert not want or (gradient[:2].isnan().all() and not gradient[2:].isnan().any())


def test_no_pairs():
    a = torch.zeros(0, 4, 3, requires_grad=True)
    losses = chamfer_loss(a, torch.zeros(0, 6, 3))
    losses.sum().backward()
    assert losses.shape == (0,) and a.grad.shape == (0, 4, 3)


def test_errors():
    with pytest.raises(ValueError, match="chamfer_loss: kind='cdl3' is unknown; choose from cdl1, cdl2"):
        chamfer_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "cdl3")
    with pytest.raises(ValueError, match="chamfer_loss: b has zero points"):
        chamfer_loss(torch.zeros(1, 2, 3), torch.zeros(1, 0, 3))
