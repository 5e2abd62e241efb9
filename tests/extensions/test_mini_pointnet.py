"""The mini-PointNet op in plain PyTorch: against the formula, gradients, given statistics, errors, as a citizen of PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from extensions.m2ae_ops.private import mini_pointnet as module
from extensions.m2ae_ops.private.mini_pointnet import mini_pointnet

channels = pytest.mark.parametrize("channels", [3, 5], ids=["points", "tokens"])


def operands(channels, *, groups=4, k=3, widths=(6, 5, 8, 7), dtype=torch.float64, device="cpu", seed=0):
    """Return members that get a gradient unless they are points, and the weights and affines, which do."""
    generator = torch.Generator().manual_seed(seed)
    A, W, C, D = widths

    def leaf(*shape, gradient=True):
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device).requires_grad_(gradient)

    rows = leaf(groups * k, channels, gradient=channels != 3)
    return rows, [leaf(*shape) for shape in ((A, channels), (W, A), (C, A), (C, W), (D, C), (2, A), (2, C))]


def call(rows, weights, k=3, **options):
    return mini_pointnet(rows, weights=weights[:5], affines=tuple(weights[5:]), k=k, **options)


def by_formula(rows, weights, k=3, stats=None):
    lift, widen, from_hidden, from_group, last, *affines = weights

    def norm(x, which):
        mean, variance = (x.mean(0), x.var(0, correction=0)) if stats is None else stats[which]
        return (x - mean) * torch.rsqrt(variance + 1e-5) * affines[which][0] + affines[which][1]

    hidden = norm(rows @ lift.T, 0).relu()
    pooled = (hidden @ widen.T).unflatten(0, (-1, k)).amax(1)
    joined = (hidden @ from_hidden.T).unflatten(0, (-1, k)) + (pooled @ from_group.T).unsqueeze(1)
    return (norm(joined.flatten(0, 1), 1).relu() @ last.T).unflatten(0, (-1, k)).amax(1)


@channels
@pytest.mark.parametrize(("groups", "k"), [(4, 3), (9, 1), (1, 16)])
def test_equals_the_formula(channels, groups, k):
    rows, weights = operands(channels, groups=groups, k=k)
    tokens, first, second = call(rows, weights, k)
    torch.testing.assert_close(tokens, by_formula(rows, weights, k), rtol=1e-10, atol=1e-10)
    plain = rows @ weights[0].T
    torch.testing.assert_close(first, torch.stack([plain.mean(0), plain.var(0, correction=0)]))
    assert second.shape == (2, 8) and not first.requires_grad and not second.requires_grad
    inputs = [*weights, *([rows] if rows.requires_grad else [])]
    flow = torch.randn(tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(out, inputs, flow) for out in (tokens, by_formula(rows, weights, k)))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@channels
def test_given_statistics(channels):
    rows, weights = operands(channels)
    stats = tuple(torch.stack([torch.full((n,), 0.3), torch.full((n,), 2.0)]).double() for n in (6, 8))
    with torch.no_grad():
        tokens, first, second = call(rows, weights, stats=stats)
        torch.testing.assert_close(tokens, by_formula(rows, weights, stats=stats))
    assert torch.equal(first, stats[0]) and torch.equal(second, stats[1])
    with pytest.raises(RuntimeError, match="given stats have no gradient"):
        call(rows, weights, stats=stats)[0].sum().backward()


@channels
def test_gradcheck_and_opcheck(channels):
    rows, weights = operands(channels)
    assert gradcheck(lambda rows, *weights: call(rows, weights)[0], (rows, *weights), fast_mode=True)
    op = torch.ops.m2ae.mini_pointnet
    torch.library.opcheck(op.default, (rows, *weights, None, None, 3, 1e-5, 1e-5, torch.float64))
    detached = [w.detach() for w in weights]
    out = op(rows.detach(), *detached, None, None, 3, 1e-5, 1e-5, torch.float32)
    backward = (out[0], rows.detach(), *detached, *out[1:], 3, 1e-5, 1e-5)
    torch.library.opcheck(torch.ops.m2ae.mini_pointnet_backward.default, backward)
    with torch.no_grad():
        stats = (out[1], out[2])
        torch.library.opcheck(op.default, (rows.detach(), *detached, *stats, 3, 1e-5, 1e-5, torch.bfloat16))


def test_points_that_need_a_gradient():
    """As rows like others; values and statistics are those of points without."""
    rows, weights = operands(3)
    moving = rows.detach().requires_grad_()
    assert gradcheck(lambda rows, *weights: call(rows, weights)[0], (moving, *weights), fast_mode=True)
    for found, expected in zip(call(moving, weights), call(rows, weights), strict=True):
        torch.testing.assert_close(found, expected)


def test_under_the_compiler():
    rows, weights = operands(5, dtype=torch.float32)
    compiled = torch.compile(
        lambda rows, weights: call(rows, weights)[0].square().sum(), fullgraph=True, backend="aot_eager"
    )
    ours = torch.autograd.grad(compiled(rows, weights), [rows, *weights])
    theirs = torch.autograd.grad(call(rows, weights)[0].square().sum(), [rows, *weights])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_does_not_reach_inside():
    rows, weights = operands(5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(rows, weights)[0], call(rows, weights)[0].float())
        assert call(rows, weights, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_bfloat16_stays_near():
    rows, weights = operands(3, groups=30, k=8, widths=(16, 24, 32, 12), dtype=torch.float32)
    exact = call(rows, weights, 8)[0]
    found = call(rows, weights, 8, dtype=torch.bfloat16)[0]
    assert found.dtype == torch.bfloat16 and (found - exact).norm() < 0.02 * exact.norm()


def test_what_serves_cuda_tensors():
    """Kernels where they can, PyTorch elsewhere; the choice is made for CUDA tensors alone."""
    for name in ("mini_pointnet", "mini_pointnet_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"m2ae::{name}", "CUDA")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"m2ae::{name}", "CPU")
    rows = torch.zeros(8, 3)
    assert module._steps(rows, 129, torch.bfloat16) is module.reference
    assert module._steps(rows, 8, torch.float64) is module._steps(rows.double(), 8, torch.float32) is module.reference
    if module.has_triton():
        assert module._steps(rows, 128, torch.bfloat16).__name__.endswith("fused.launch")


def test_importing_the_ops_imports_no_compiler():
    code = "import sys, extensions; sys.exit(any(name in sys.modules for name in ('triton', 'torch._dynamo')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_errors():
    rows, weights = operands(3)
    with pytest.raises(
        ValueError, match=r"mini_pointnet: rows must be \(G \* 5, P\) of at least one group, got \(12, 3\)"
    ):
        call(rows, weights, 5)
    with pytest.raises(ValueError, match=r"mini_pointnet: widen must be \(5, 6\), got \(5, 4\)"):
        call(rows, [weights[0], weights[1][:, :4], *weights[2:]])
    with pytest.raises(ValueError, match=r"mini_pointnet: stats\[1\] must be \(2, 8\), got \(2, 6\)"):
        call(rows, weights, stats=(torch.ones(2, 6), torch.ones(2, 6)))
    with pytest.raises(ValueError, match=r"dtype must be floating, got torch.int64"):
        call(rows, weights, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"rows must be float16, bfloat16, float32 or float64, got torch.int64"):
        call(rows.long(), weights)
    (grad,) = torch.autograd.grad(call(rows, weights)[0].sum(), weights[0], create_graph=True)
    if grad.requires_grad:
        with pytest.raises(RuntimeError, match="there is no second derivative"):
            grad.sum().backward()
