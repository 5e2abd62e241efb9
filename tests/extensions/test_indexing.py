"""Gathering, grouping, interpolation: hand-worked cases and errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from extensions import gather, group, three_interpolate
from extensions.m2ae_ops.reference import indexing as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_gather_any_dtype_and_index_shape(device, dtype):
    values = torch.arange(24, device=device).view(2, 4, 3).to(dtype)
    idx = torch.tensor([[[3, 0], [1, 1]], [[2, 2], [0, 3]]], device=device)
    out = gather(values, idx)
    assert out.dtype == dtype
    assert torch.equal(out, torch.stack([values[b][idx[b]] for b in range(2)]))
    assert torch.equal(gather(values, idx[:, 0, 0]), torch.stack([values[0, 3], values[1, 2]]))


@pytest.mark.parametrize("device", DEVICES)
def test_group_and_its_gradient_by_hand(device):
    points = torch.tensor([[[0.0, 0, 0], [1, 2, 3], [4, 5, 6]]], device=device, requires_grad=True)
    centers = torch.tensor([[[1.0, 1, 1], [2, 2, 2]]], device=device, requires_grad=True)
    out = group(points, centers, torch.tensor([[[1, 2], [1, 1]]], device=device))
    assert out.tolist() == [[[[0, 1, 2], [3, 4, 5]], [[-1, 0, 1], [-1, 0, 1]]]]
    out.sum().backward()
    assert points.grad[0, :, 0].tolist() == [0, 3, 1] and centers.grad[0, :, 0].tolist() == [-2, -2]


@pytest.mark.parametrize("device", DEVICES)
def test_three_interpolate_by_hand(device):
    values = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]], device=device)
    idx = torch.tensor([[[0, 1, 2], [2, 2, 0]]], device=device)
    weight = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 1.0, -1.0]]], device=device)
    assert three_interpolate(values, idx, weight).tolist() == [[[2.0, 20.0], [7.0, 70.0]]]
    assert three_interpolate(values.bfloat16(), idx, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    count=st.integers(1, 40),
    rows=st.sampled_from([0, 1, 7, 60]),
    channels=st.sampled_from([1, 3, 15, 16, 17, 33, 64, 130]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_sums_into_rows_agree_with_the_reference(device, batch, count, rows, channels, dtype):
    generator = torch.Generator().manual_seed(count)
    idx = torch.randint(0, count, (batch, rows, 3), generator=generator).to(device)
    grad = torch.randn(batch, rows, 3, channels, generator=generator).to(device, dtype)
    values = torch.randn(batch, count, channels, generator=generator).to(device, dtype)
    weight = torch.rand(batch, rows, 3, generator=generator).to(device, dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact == dtype else {"rtol": 1e-2, "atol": 1e-2}
    sums = torch.ops.m2ae.gather_backward(grad, idx, count)
    assert sums.dtype == dtype
    torch.testing.assert_close(sums, reference.gather_backward(grad, idx, count), **tolerance)
    ours = torch.ops.m2ae.three_interpolate_backward(grad[:, :, 0], values, idx, weight)
    expected = reference.three_interpolate_backward(grad[:, :, 0].to(exact), values.to(exact), idx, weight.to(exact))
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.to(exact), other, **tolerance)


def test_half_precision_sums_accumulate_in_float32():
    # 256 + 1 is 256 in bfloat16, so a sum kept in bfloat16 would stay at 256.
    grad = torch.ones(1, 256 * 3, 1, dtype=torch.bfloat16)
    sums = torch.ops.m2ae.gather_backward(grad, torch.zeros(1, 256 * 3, dtype=torch.int64), 2)
    assert sums.tolist() == [[[768.0], [0.0]]]


def test_thread_count_changes_no_sum():
    idx, weight = torch.randint(0, 20, (2, 300, 3)), torch.rand(2, 300, 3)
    grad, values = torch.randn(2, 300, 3, 100), torch.randn(2, 20, 100)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums = torch.ops.m2ae.gather_backward(grad, idx, 20)
            results.append((sums, *torch.ops.m2ae.three_interpolate_backward(grad[:, :, 0], values, idx, weight)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_three_interpolate_can_be_differentiated_twice(device):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator).to(device).requires_grad_()
    weight = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator).to(device).requires_grad_()
    idx = torch.randint(0, 5, (2, 6, 3), generator=generator).to(device)  # with repeated rows
    assert gradcheck(lambda v, w: three_interpolate(v, idx, w), (values, weight))
    assert gradgradcheck(lambda v, w: three_interpolate(v, idx, w), (values, weight))
    assert gradgradcheck(lambda v: three_interpolate(v, idx, weight.detach()), (values,))


def test_a_third_derivative_of_three_interpolate_by_hand():
    # With all rows the same value v, the output is v * (w0 + w1 + w2); (v * w0)^2 has the mixed third derivative 4 w0.
    v, w = torch.full((1, 1, 1), 3.0, requires_grad=True), torch.tensor([[[5.0, 0.0, 0.0]]], requires_grad=True)
    out = three_interpolate(v, torch.zeros(1, 1, 3, dtype=torch.int64), w).square().sum()
    for leaf in (v, v, w):
        (out,) = (g[..., :1].sum() for g in torch.autograd.grad(out, leaf, create_graph=True))
    assert out.item() == 4 * 5.0


@pytest.mark.parametrize("bad", [-1, 4])
@pytest.mark.parametrize("op", ["gather", "group", "three_interpolate"])
def test_an_index_out_of_range_is_an_error(op, bad):
    values, idx = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3, dtype=torch.int64)
    idx[1, 2, 1] = bad
    calls = {
        "gather": lambda: gather(values, idx),
        "group": lambda: group(values, torch.zeros(2, 5, 3), idx),
        "three_interpolate": lambda: three_interpolate(values, idx, torch.ones(2, 5, 3)),
    }
    with pytest.raises((IndexError, RuntimeError), match=r"index.* out"):
        calls[op]()


VALUES, IDX = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather(VALUES, IDX.int()), r"gather: idx must be int64, got torch.int32; call idx.long\(\)"),
        (lambda: gather(VALUES, IDX[:1]), "gather: values has batch size 2 but idx has shape"),
        (lambda: gather(VALUES[0], IDX), r"gather: values must have shape \(B, N, C\)"),
        (lambda: gather(VALUES[:, :0], IDX), "gather: values has zero rows"),
        (lambda: group(VALUES, VALUES, IDX), r"group: idx must have shape \(B, 4, K\), got \(2, 5, 3\)"),
        (lambda: group(VALUES, torch.zeros(2, 5, 2), IDX), r"centers must have shape \(B, G, 3\), got"),
        (lambda: three_interpolate(VALUES, IDX[..., :2], torch.ones(2, 5, 2)), r"idx must have shape \(B, N, 3\)"),
        (lambda: three_interpolate(VALUES, IDX, torch.ones(2, 4, 3)), r"weight must have shape \(2, 5, 3\), got"),
        (
            lambda: three_interpolate(VALUES.long(), IDX, torch.ones(2, 5, 3)),
            "values must be float16, .* got torch.int64",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
