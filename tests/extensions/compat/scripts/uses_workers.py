"""Processes that start afresh: workers, spawned functions, subprocesses. Argument: how many processes a launcher has started."""

import argparse
import os
import subprocess
import sys

import pointnet2_ops  # at the top, as published models do
import torch
from pointnet2_ops import pointnet2_utils
from torch import nn

from extensions.chamfer_dist import ChamferDistanceL2


class Clouds(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return pointnet2_utils.furthest_point_sample(torch.rand(1, 8, 3).cuda(), 2)[0]


def spawned(rank):
    assert torch.cuda.is_available() and ChamferDistanceL2()(torch.rand(1, 4, 3).cuda(), torch.rand(1, 4, 3)).item() > 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=0)
    args = parser.parse_args()
    torch.multiprocessing.set_start_method("spawn", force=True)
    if args.world:
        torch.cuda.set_device(args.local_rank)
        torch.distributed.init_process_group("nccl")
        assert args.local_rank == torch.distributed.get_rank() and torch.distributed.get_world_size() == args.world
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2).cuda(), device_ids=[args.local_rank])
        model(torch.rand(4, 3).cuda()).sum().backward()
    loader = torch.utils.data.DataLoader(Clouds(), batch_size=2, num_workers=1, pin_memory=True)
    assert [batch.shape for batch in loader] == [(2, 2), (2, 2)]
    if not args.world:
        torch.multiprocessing.spawn(spawned, nprocs=1)
        code = "import knn_cuda, torch; assert torch.cuda.is_available(); print('below')"
        for interpreter in (sys.executable, "python"):
            below = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
            assert below.stdout == "below\n", below.stderr
    else:
        torch.distributed.destroy_process_group()
    print(f"workers of rank {args.local_rank} ran on {pointnet2_ops.__name__}")


if __name__ == "__main__":
    assert "M2AE_COMPAT" in os.environ
    main()
