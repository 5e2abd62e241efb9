"""NT-Xent: by hand, against the formula, over two processes, and what it refuses."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from models.losses import NTXent
from utils import ROOT

WORKER = """
import sys, torch
from models.losses import NTXent
from utils import dist
dist.init("pytorch", "cpu")
torch.manual_seed(0)
a, b, weight = torch.randn(6, 5), torch.randn(6, 5), torch.randn(5, 5)
own = slice(3 * dist.rank(), 3 * dist.rank() + 3)
weight.requires_grad_()
mine, partners = a[own].clone().requires_grad_(), b[own].clone().requires_grad_()
loss = NTXent(0.1)(mine @ weight, partners @ weight)
loss.backward()
total = dist.all_reduce_sum(torch.stack([loss.detach()])) / 2
shared = dist.all_reduce_sum(weight.grad) / 2
torch.save({"loss": total, "weight": shared, "a": mine.grad / 2, "b": partners.grad / 2}, f"{sys.argv[1]}/{dist.rank()}.pt")
dist.cleanup()
"""


def by_hand(a, b, temperature):
    """Sum over the 2B rows of -log of the partner's share among all others."""
    rows = F.normalize(torch.cat([a, b]), dim=1)
    similarity = rows @ rows.T / temperature
    count, loss = len(rows), 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        others = sum(math.exp(similarity[i, j]) for j in range(count) if j != i)
        loss -= math.log(math.exp(similarity[i, partner]) / others)
    return loss / count


def test_two_pairs_by_hand():
    """Partners agree, others are at a right angle: one logit of 1 / t beside two of 0."""
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    assert NTXent(0.5)(rows, 2 * rows).item() == pytest.approx(math.log(math.exp(2) + 2) - 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_formula(temperature):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator) for _ in range(2))
    assert NTXent(temperature)(a, b).item() == pytest.approx(by_hand(a, b, temperature), rel=1e-5)
    order = torch.randperm(5, generator=generator)
    assert NTXent(temperature)(a[order], b[order]).item() == pytest.approx(by_hand(a, b, temperature), rel=1e-5)
    assert NTXent(temperature)(b, a).item() == pytest.approx(by_hand(a, b, temperature), rel=1e-5)


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss = NTXent(0.5)(a, b)
    loss.backward()
    step = 1e-2
    moved = NTXent(0.5)((a - step * a.grad).detach(), (b - step * b.grad).detach())
    expected = step * (a.grad.square().sum() + b.grad.square().sum())
    assert (loss - moved).item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux", reason="needs torch.distributed with gloo"
)
def test_two_processes_equal_one(tmp_path):
    """All rows of both processes are negatives; losses and gradients, averaged as training does, are those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", WORKER, str(tmp_path)]
        workers.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place, **address}))
    assert [worker.wait(timeout=100) for worker in workers] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    torch.manual_seed(0)
    a, b, weight = torch.randn(6, 5), torch.randn(6, 5), torch.randn(5, 5)
    for tensor in (a, b, weight):
        tensor.requires_grad_()
    loss = NTXent(0.1)(a @ weight, b @ weight)
    loss.backward()
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach().view(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(part["weight"], weight.grad, rtol=1e-5, atol=1e-6)
    for name, whole in (("a", a), ("b", b)):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole.grad, rtol=1e-5, atol=1e-6)
    half = NTXent(0.1)(a[:3] @ weight, b[:3] @ weight)
    assert abs(half - loss) > 0.05  # without the others' rows it is another number


def test_refused():
    with pytest.raises(ValueError, match=r"a batch of one has no negatives .* raise total_bs to at least 2"):
        NTXent()(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\) do not pair up"):
        NTXent()(torch.ones(3, 4), torch.ones(2, 4))
