"""Row sums: exact to double precision, whatever the threads."""

import pytest
import torch

from extensions import row_sums
from extensions.m2ae_ops.reference.rows import row_sums as reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (5, 3), (700, 32), (5000, 45)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_the_reference(device, rows, channels, dtype):
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, channels, generator=generator).to(device, dtype) for _ in range(2))
    shift = torch.randn(channels, generator=generator).to(device)
    torch.testing.assert_close(row_sums(x, y, shift), reference(x, y, shift), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_by_hand_and_not_contiguous(device):
    x, y = torch.tensor([[1.0, 3.0], [2.0, 5.0]]).T, torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    sums = row_sums(x.to(device), y.to(device), torch.tensor([1.0, 1.0], device=device))  # x - shift = [[0, 1], [2, 4]]
    assert sums.tolist() == [[101.0, 1010.0], [200.0, 4010.0]]


def test_large_values_do_not_lose_small_ones():
    x = torch.ones(100_000, 1)
    x[0] = 1e8
    assert row_sums(x, x, torch.zeros(1))[0].item() == 1e8 + 99_999


def test_any_number_of_threads_gives_the_same_bits():
    x = torch.randn(30_000, 24, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(row_sums(x, x, torch.zeros(24)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_opcheck_and_errors():
    x = torch.randn(6, 4)
    torch.library.opcheck(torch.ops.m2ae.row_sums.default, (x, x, torch.zeros(4)))
    with pytest.raises(ValueError, match=r"row_sums: x and y must be \(R, C\)"):
        row_sums(x, x[:3], torch.zeros(4))
