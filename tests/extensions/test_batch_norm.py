"""Batch normalisation with and without a ReLU, and pooling over points, against PyTorch and by hand."""

import copy

import pytest
import torch
from torch import nn

from extensions import batch_norm, peak_and_mean
from extensions.m2ae_ops.private import choice
from extensions.m2ae_ops.reference import layers as reference


def norm_of(channels: int, dtype=torch.float64, **options) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(0)
    nn.init.uniform_(norm.weight, -1, 2, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    return norm


@pytest.mark.parametrize("serves", [True, False], ids=["own", "plain"])
@pytest.mark.parametrize("relu", [True, False])
def test_equals_pytorch_while_training_and_after(relu, serves, monkeypatch):
    monkeypatch.setattr(choice, "eager_cpu", lambda x: serves)
    norm = norm_of(6)
    twin, x = copy.deepcopy(norm), torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    finish = torch.relu if relu else lambda y: y
    for _ in range(3):
        found, expected = batch_norm(x, norm, relu=relu), finish(twin(x))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(finish(reference.batch_norm(x, norm)), expected)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)
    norm.eval(), twin.eval()
    torch.testing.assert_close(batch_norm(x, norm, relu=relu), finish(twin(x)))
    torch.testing.assert_close(finish(reference.batch_norm(x, norm)), finish(twin(x)))
    for training in (True, False):
        inputs = (x[:8].detach().requires_grad_(), norm.train(training).weight, norm.bias)
        assert torch.autograd.gradcheck(lambda x, *_: batch_norm(x, norm, relu=relu), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_and_relu_in_one_are_both_in_turn(dtype):
    """Output, gradients, running statistics; in bf16 rows stay what they are, where the two in turn give fp32."""
    norm = norm_of(24, torch.float64 if dtype == torch.float64 else torch.float32)
    twin, x, flow = copy.deepcopy(norm), (torch.randn(500, 24) * 3 + 1).to(dtype), torch.randn(500, 24).to(dtype)
    results = []
    for module, form in (
        (norm, lambda x: batch_norm(x, norm, relu=True)),
        (twin, lambda x: batch_norm(x, twin).relu()),
    ):
        rows = x.clone().requires_grad_()
        y = form(rows)
        grads = torch.autograd.grad(y, (rows, module.weight, module.bias), flow.to(y.dtype))
        results.append([y.detach(), *grads, module.running_mean, module.running_var, module.num_batches_tracked])
    assert results[0][0].dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=close, atol=close)


def test_statistics_are_exact_over_many_rows():
    """PyTorch's channels-last statistics on the CPU miss mean and gradients by 1e-5; ours must not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 4, generator=generator).mul_(0.5).add_(1.0).requires_grad_()
    weight = torch.randn(200_000, 4, generator=generator)
    norm, exact = nn.BatchNorm1d(4, momentum=1.0), nn.BatchNorm1d(4, momentum=1.0).double()
    (batch_norm(x, norm) * weight).sum().backward()
    double = x.detach().double().requires_grad_()
    (exact(double) * weight.double()).sum().backward()
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=0, atol=1e-7)
    torch.testing.assert_close(x.grad.double(), double.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad.double(), exact.weight.grad, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_under_the_compiler(shared):
    """One graph without breaks, with statistics of several processes too."""
    norm, x = norm_of(6, torch.float32), torch.randn(50, 6, requires_grad=True)
    if shared:
        norm.all_reduce = lambda tensor: tensor.clone()
    twin = copy.deepcopy(norm)
    compiled = torch.compile(lambda x: batch_norm(x, norm, relu=True), backend="aot_eager", fullgraph=True)
    found, expected = compiled(x), batch_norm(x, twin, relu=True)
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(norm.running_var, twin.running_var)


def test_errors_of_the_norm():
    norm = norm_of(6)
    for relu in (True, False):
        with pytest.raises(ValueError, match="more than one row while training; raise the batch size"):
            batch_norm(torch.zeros(1, 6).double(), norm, relu=relu)
    with pytest.raises(ValueError, match=r"batch_norm: x must be \(R, C\), got \(2, 3, 6\); flatten"):
        batch_norm(torch.zeros(2, 3, 6).double(), norm)
    assert batch_norm(torch.zeros(1, 6).double(), norm.eval()).shape == (1, 6)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad,) = torch.autograd.grad(
            batch_norm(x := torch.randn(9, 6).double().requires_grad_(), norm.train()).square().sum(),
            x,
            create_graph=True,
        )
        grad.sum().backward()


@pytest.mark.parametrize("points", [96, 300, 509])  # whole blocks, blocks of 150, a prime number
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_peak_and_mean_over_the_points(points, dtype):
    generator = torch.Generator().manual_seed(points)
    x = torch.stack([torch.randperm(points, generator=generator) for _ in range(10)], 1)  # no two alike
    x = (x.view(1, points, 10) * torch.tensor([1.0, -1.0]).view(2, 1, 1) / 512).to(dtype).requires_grad_()
    flow = torch.randn(2, 10, generator=generator).to(dtype)
    found, expected = peak_and_mean(x), reference.peak_and_mean(x)
    assert torch.equal(found, expected) and found.dtype == dtype
    close = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {}
    (ours,), (theirs,) = (torch.autograd.grad(y, x, flow) for y in (found, expected))
    if dtype == torch.bfloat16:  # rounding makes some alike, which share the gradient there
        ours, theirs = ours.sum(1), theirs.sum(1)
    torch.testing.assert_close(ours, theirs, **close)


def test_the_first_of_several_peaks_gets_the_gradient():
    """As with `torch.max`, for any number of points."""
    x = torch.zeros(1, 48, 3)
    x[0, [5, 30, 47], 0], x[0, 47, 1] = 2.0, 1.0
    x.requires_grad_()
    (ours,) = torch.autograd.grad(peak_and_mean(x).sum(), x)
    (theirs,) = torch.autograd.grad((x.max(1).values + x.mean(1)).sum(), x)
    torch.testing.assert_close(ours, theirs)
    assert ours[0, 5, 0] > 1 > ours[0, 30, 0] and ours[0, 47, 1] > 1 and ours[0, 0, 2] > 1


def test_errors_of_the_pooling():
    with pytest.raises(ValueError, match=r"peak_and_mean: x must be \(B, N, C\) with N > 0, got \(2, 0, 3\)"):
        peak_and_mean(torch.zeros(2, 0, 3))
