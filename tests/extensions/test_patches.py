"""Ops on members of patches: by hand, against the reference, against the gradients of what they stand for."""

import pytest
import torch

from extensions.m2ae_ops import backend
from extensions.m2ae_ops.private import patches as ops
from extensions.m2ae_ops.reference import patches as reference

compiled = pytest.mark.skipif(not backend().startswith("compiled"), reason="of the compiled kernels")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
SIZES = [(1, 1, 1, 1), (5, 3, 7, 4), (40, 16, 96, 45), (150, 8, 64, 40)]  # groups, members, outputs, channels


def operands(sizes, dtype, device="cpu"):
    """Return rows, the peak (grad, winners, weight) and the norm (mean, scale, shift) of a size."""
    groups, k, outputs, channels = sizes
    generator = torch.Generator().manual_seed(groups)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    winners = torch.randint(k, (groups, outputs), generator=generator).to(torch.uint8).to(device)
    peak = (draw(groups, outputs), winners, draw(outputs, channels))
    return draw(groups * k, channels).to(dtype), peak, (draw(channels), draw(channels), draw(channels))


def tolerance(dtype, scale=1.0):
    exact = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    return {"rtol": exact, "atol": exact * scale}


def results(module, sizes, dtype, device="cpu"):
    """Run every op of `module` (the public one or the reference) on the same operands."""
    x, peak, norm = operands(sizes, dtype, device)
    k, points = sizes[1], x[:, :1].float().expand(-1, 3).contiguous() * torch.tensor([1.0, 0.5, -2.0], device=device)
    weight, named = torch.stack(norm, 1), dict(zip(("mean", "scale", "shift"), norm, strict=True))
    extra = {"slope": norm[1] * 0.1, "offset": norm[2] * 0.2}
    joined, spread = x.clone(), x.clone()
    return {
        "group_max": module.group_max(x, k),
        "join_rows": (module.join_rows(joined, peak[0][:, :1].expand(-1, x.shape[1]).contiguous(), k), joined),
        "norm_relu": (module.norm_relu(x, *norm),),
        "lift_rows": (module.lift_rows(points, weight, norm[0], dtype),),
        "lift_rows_sums": (module.lift_rows_sums(x, x.flip(0), points),),
        "spread_winners": (module.spread_winners(*peak, x, spread), spread),
        "peak_sums": module.peak_sums(*peak, x, **named),
        "peak_backward": module.peak_backward(*peak, x, **named, **extra),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agree_with_the_reference(sizes, dtype):
    ours, theirs = results(ops, sizes, dtype), results(reference, sizes, dtype)
    for name, expected in theirs.items():
        for a, b in zip(ours[name], expected, strict=True):
            assert a.dtype == b.dtype or b.dtype == torch.float32, name
            torch.testing.assert_close(
                a, b, **tolerance(dtype, scale=float(b.abs().max()) + 1), check_dtype=False, msg=name
            )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_run_on_a_gpu(dtype):
    ours, theirs = results(ops, SIZES[2], dtype, "cuda"), results(reference, SIZES[2], dtype)
    for name, expected in theirs.items():
        for a, b in zip(ours[name], expected, strict=True):
            torch.testing.assert_close(
                a.cpu(), b, **tolerance(dtype, scale=float(b.abs().max()) + 1), check_dtype=False
            )


def test_maximum_by_hand():
    nan = float("nan")
    x = torch.tensor(
        [[1.0, 5.0, 0.0], [1.0, 2.0, nan], [3.0, 5.0, 7.0], [-1.0, -2.0, -3.0], [-1.0, -1.0, -3.0], [-4.0, -9.0, -3.0]]
    )
    values, winners = ops.group_max(x, 3)
    assert winners.tolist() == [[2, 0, 1], [0, 1, 0]]  # the first of equals; NaN before numbers
    assert values[1].tolist() == [-1.0, -1.0, -3.0] and values[0, :2].tolist() == [3.0, 5.0] and values[0, 2].isnan()


def test_join_by_hand():
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    sums = ops.join_rows(x, torch.tensor([[10.0], [0.0]]), 2)
    assert x.flatten().tolist() == [11.0, 12.0, 3.0, 4.0] and sums.flatten().tolist() == [30.0, 121.0 + 144 + 9 + 16]


def test_not_a_number_stays_one():
    x = torch.tensor([[float("nan")] * 9, [1.0] * 9])
    one, zero = torch.ones(9), torch.zeros(9)
    for dtype in DTYPES:
        rows = x.to(dtype)
        assert ops.norm_relu(rows, zero, one, zero).isnan().tolist() == x.isnan().tolist()
        ops.join_rows(rows, torch.zeros(1, 9), 2)
        assert rows.isnan().tolist() == x.isnan().tolist()


def test_way_back_is_the_gradient_of_the_way_forward():
    """`peak_sums` and `peak_backward` against autograd through normalisation, ReLU, product and maximum."""
    x, (grad, _, weight), _ = operands((6, 4, 5, 11), torch.float64)
    grad, weight = grad.double(), weight.double().requires_grad_()
    x.requires_grad_()
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    tokens = (((x - mean) * torch.rsqrt(variance)).relu() @ weight.T).view(6, 4, 5).amax(1)
    expected = torch.autograd.grad(tokens, (x, weight), grad)

    mean, inverse = mean.detach(), torch.rsqrt(variance.detach())
    norm = {"mean": mean, "scale": inverse, "shift": torch.zeros_like(mean)}
    _, winners = ops.group_max(ops.norm_relu(x.detach(), **norm) @ weight.detach().T, 4)
    sums, to_weight = ops.peak_sums(grad, winners, weight.detach(), x.detach(), **norm)
    slope, offset = -(inverse**3) * sums[1] / len(x), -inverse * sums[0] / len(x)
    to_x, to_groups = ops.peak_backward(grad, winners, weight.detach(), x.detach(), **norm, slope=slope, offset=offset)
    torch.testing.assert_close(to_x, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_weight, expected[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_groups, to_x.view(6, 4, -1).sum(1))


@compiled
def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(ops, (300, 16, 24, 40), torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, expected in found[0].items():
            assert all(torch.equal(a, b) for a, b in zip(other[name], expected, strict=True)), name


def test_opcheck():
    x, peak, norm = operands((3, 4, 5, 9), torch.float32)
    check, library = torch.library.opcheck, torch.ops.m2ae
    check(library.group_max.default, (x, 4))
    check(library.join_rows.default, (x.clone(), torch.ones(3, 9), 4))
    check(library.norm_relu.default, (x, *norm))
    check(library.lift_rows.default, (x[:, :3].contiguous(), torch.ones(9, 3), norm[0], torch.bfloat16))
    check(library.lift_rows_sums.default, (x, x, x[:, :3].contiguous()))
    check(library.spread_winners.default, (*peak, x, x.clone()))
    check(library.peak_sums.default, (*peak, x, *norm))
    check(library.peak_backward.default, (*peak, x, *norm, *norm[:2]))


def test_errors():
    x, (grad, winners, weight), norm = operands((3, 4, 5, 9), torch.float32)
    named = dict(zip(("mean", "scale", "shift"), norm, strict=True))
    with pytest.raises(ValueError, match="group_max: k=5 must be 1 to 255 and divide the 12 rows"):
        ops.group_max(x, 5)
    with pytest.raises(ValueError, match=r"group_max: rows must be floating \(R, C\), got torch.int64"):
        ops.group_max(x.long(), 4)
    with pytest.raises(ValueError, match=r"join_rows: group must be \(3, 9\), got \(2, 9\)"):
        ops.join_rows(x, torch.zeros(2, 9), 4)
    with pytest.raises(ValueError, match=r"norm_relu: scale must be \(9,\)"):
        ops.norm_relu(x, norm[0], norm[1][:3], norm[2])
    with pytest.raises(ValueError, match=r"lift_rows: points must be \(12, 3\)"):
        ops.lift_rows(x, torch.zeros(9, 3), norm[0], torch.float32)
    with pytest.raises(ValueError, match="lift_rows: dtype must be"):
        ops.lift_rows(x[:, :3], torch.zeros(9, 3), norm[0], torch.int32)
    with pytest.raises(ValueError, match="peak_sums: winners must be uint8"):
        ops.peak_sums(grad, winners.long(), weight, x, **named)
    with pytest.raises(ValueError, match="spread_winners: 11 rows do not divide by 3 groups"):
        ops.spread_winners(grad, winners, weight, x[:11], x[:11].clone())


@compiled
def test_winners_out_of_range():
    x, (grad, winners, weight), norm = operands((3, 4, 5, 9), torch.float32)
    with pytest.raises(IndexError, match=r"member 4 is outside 0\.\.3"):
        ops.peak_sums(grad, winners.fill_(4), weight, x, mean=norm[0], scale=norm[1], shift=norm[2])
