"""Gathering, grouping, interpolation: hand-worked cases and errors."""

import pytest
import torch

from extensions import gather, group, three_interpolate

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
