"""Row sums, and the way back through a norm with a ReLU: exact to double precision, whatever the threads."""

import pytest
import torch

from extensions.m2ae_ops.private.patches import norm_relu
from extensions.m2ae_ops.private.rows import norm_relu_backward, norm_relu_sums, row_sums
from extensions.m2ae_ops.reference import rows as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (5, 3), (700, 32), (5000, 45)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_the_reference(device, rows, channels, dtype):
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, channels, generator=generator).to(device, dtype) for _ in range(2))
    shift = torch.randn(channels, generator=generator).to(device)
    torch.testing.assert_close(row_sums(x, y, shift), reference.row_sums(x, y, shift), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_by_hand_and_not_contiguous(device):
    x, y = torch.tensor([[1.0, 3.0], [2.0, 5.0]]).T, torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    sums = row_sums(x.to(device), y.to(device), torch.tensor([1.0, 1.0], device=device))  # x - shift = [[0, 1], [2, 4]]
    assert sums.tolist() == [[101.0, 1010.0], [200.0, 4010.0]]


def test_large_values_do_not_lose_small_ones():
    x = torch.ones(100_000, 1)
    x[0] = 1e8
    assert row_sums(x, x, torch.zeros(1))[0].item() == 1e8 + 99_999


def operands(rows, channels, dtype, device="cpu"):
    """Return grad and x (R, C), and mean, scale, shift, slope and offset (C,)."""
    generator = torch.Generator().manual_seed(rows)
    grad, x = (torch.randn(rows, channels, generator=generator).to(device, dtype) for _ in range(2))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return grad, x, *(torch.randn(channels, generator=generator).to(device, real) for _ in range(5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (5, 3), (700, 32), (2500, 45)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_way_back_agrees_with_the_reference(device, rows, channels, dtype):
    grad, x, *norm, slope, offset = operands(rows, channels, dtype, device)
    sums = norm_relu_sums(grad, x, *norm)
    torch.testing.assert_close(sums, reference.norm_relu_sums(grad, x, *norm), rtol=1e-12, atol=1e-9)
    names = dict(zip(("mean", "scale", "shift"), norm, strict=True))
    found = norm_relu_backward(grad, x, **names, slope=slope, offset=offset)
    exact = reference.norm_relu_backward(grad, x, *norm, slope, offset)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_way_back_is_the_derivative(dtype):
    """Of the plain form: the first sum is the gradient of the shift, the second times the scale that of the mean, negated."""
    grad, x, *norm, _, _ = operands(300, 40, dtype)
    x, (mean, scale, shift) = x.double().requires_grad_(), (t.double().requires_grad_() for t in norm)
    y = ((x - mean) * scale + shift).relu()
    to_x, to_scale, to_shift = torch.autograd.grad(y, (x, scale, shift), grad.double())
    sums = norm_relu_sums(grad, x.detach().to(dtype), *norm)
    torch.testing.assert_close(sums, torch.stack([to_shift, to_scale]), rtol=1e-6, atol=1e-5)
    zero = torch.zeros(40)
    names = dict(zip(("mean", "scale", "shift"), norm, strict=True))
    found = norm_relu_backward(grad, x.detach().to(dtype), **names, slope=zero, offset=zero)
    torch.testing.assert_close(
        found.double(),
        to_x,
        **({"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}),
    )


def test_what_the_way_forward_let_through_is_what_flows_back():
    """Bit for bit: of values around zero, none is let through one way and not the other."""
    x = torch.linspace(-1e-6, 1e-6, 4096).unsqueeze(1) + 0.3
    norm = (torch.full((1,), 0.3), torch.full((1,), 1.7), torch.full((1,), 1e-8))
    through = norm_relu(x, *norm) > 0
    zero = {"slope": torch.zeros(1), "offset": torch.zeros(1)}
    back = norm_relu_backward(torch.ones_like(x), x, **dict(zip(("mean", "scale", "shift"), norm, strict=True)), **zero)
    assert torch.equal(back > 0, through) and 0 < through.sum() < 4096
    assert norm_relu_sums(torch.ones_like(x), x, *norm)[0].item() == through.sum()


def every_op(grad, x, *vectors):
    names = dict(zip(("mean", "scale", "shift", "slope", "offset"), vectors, strict=True))
    return row_sums(grad, x, vectors[0]), norm_relu_sums(grad, x, *vectors[:3]), norm_relu_backward(grad, x, **names)


def test_any_number_of_threads_gives_the_same_bits():
    given = operands(30_000, 24, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(every_op(*given))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_other_instruction_sets_agree(lesser_processor):
    """None of them fuses products with sums."""
    given = operands(300, 45, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(lesser_processor(every_op, *given), every_op(*given), strict=True))


def test_opcheck_and_errors():
    x = torch.randn(6, 4)
    torch.library.opcheck(torch.ops.m2ae.row_sums.default, (x, x, torch.zeros(4)))
    with pytest.raises(ValueError, match=r"row_sums: x and y must be \(R, C\)"):
        row_sums(x, x[:3], torch.zeros(4))
    grad, x, *vectors = operands(6, 4, torch.float32)
    torch.library.opcheck(torch.ops.m2ae.norm_relu_sums.default, (grad, x, *vectors[:3]))
    torch.library.opcheck(torch.ops.m2ae.norm_relu_backward.default, (grad, x, *vectors))
    with pytest.raises(ValueError, match=r"norm_relu_sums: grad is torch.float32 but x is torch.float64"):
        norm_relu_sums(grad, x.double(), *vectors[:3])
    with pytest.raises(
        ValueError, match=r"norm_relu_sums: grad and x must be \(R, C\) and mean, scale, shift \(C,\), got"
    ):
        norm_relu_sums(grad, x, vectors[0][:2], *vectors[1:3])
