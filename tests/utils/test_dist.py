"""The process group: free with one process, sums and broadcasts with two."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from utils import ROOT, dist
from utils.errors import UserError

WORKER = """
import torch
from utils import dist
dist.init("pytorch", "cpu")
mine = torch.full((2,), float(dist.rank() + 1))
total = dist.all_reduce_sum(mine)
assert mine.tolist() == [dist.rank() + 1.0] * 2, "the input changed"
said = dist.broadcast_object({"from": dist.rank()})
dist.barrier()
print(dist.rank(), dist.world_size(), dist.is_main(), total.tolist(), said)
dist.cleanup()
assert dist.world_size() == 1
"""


def environment(rank, port):
    return {
        **{key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")},
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    }


@pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux", reason="needs torch.distributed with gloo"
)
def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment(rank, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank, worker in enumerate(workers):
        out, err = worker.communicate(timeout=100)
        assert out.strip() == f"{rank} 2 {rank == 0} [3.0, 3.0] {{'from': 0}}", err


def test_one_process_needs_nothing():
    dist.init("none")
    assert (dist.rank(), dist.world_size(), dist.is_main(), dist.is_initialized()) == (0, 1, True, False)
    mine = torch.ones(2, requires_grad=True)
    total = dist.all_reduce_sum(mine)
    assert total.tolist() == [1, 1] and not total.requires_grad and total.data_ptr() != mine.data_ptr()
    assert dist.broadcast_object("x") == "x"
    dist.barrier()
    dist.cleanup()


def test_environment_that_does_not_fit(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"--launcher pytorch: RANK, .* is not set; start with torchrun"):
        dist.init("pytorch")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="started 2 times by torchrun, but without --launcher pytorch; add it"):
        dist.init("none")
