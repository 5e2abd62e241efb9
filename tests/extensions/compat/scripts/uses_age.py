"""What only age took away from published code, with --shims. Argument: a folder to write to."""

import argparse
import collections
import os
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch_scatter
from timm.scheduler import CosineLRScheduler
from torch._six import container_abcs, inf, int_classes, string_classes
from torch_scatter import scatter

assert issubclass(list, collections.Iterable) and issubclass(dict, collections.Mapping)
assert np.zeros(2, dtype=np.float).dtype == np.float64 and np.array([1.9]).astype(np.int)[0] == 1
assert np.bool(1) is True or np.bool(1) == np.True_
assert np.float_ is np.float64 and np.isinf(np.Inf) and np.product([2, 3]) == 6 and np.object is object
assert np.fromstring(b"\x01\x02", dtype=np.uint8).tolist() == [1, 2] and np.fromstring("1 2", sep=" ").tolist() == [
    1,
    2,
]
assert isinstance("a", string_classes) and isinstance(1, int_classes) and inf > 1
assert issubclass(list, container_abcs.Sequence)

# The scheduler of the family, with the keys of timm 0.4: epoch 5 of ten epochs of warm-up.
optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters(), lr=0.001)
scheduler = CosineLRScheduler(
    optimizer, t_initial=300, t_mul=1, lr_min=1e-6, decay_rate=0.1, warmup_lr_init=1e-6, warmup_t=10, cycle_limit=1,
    t_in_epochs=True,
)  # fmt: skip
scheduler.step(5)
assert abs(optimizer.param_groups[0]["lr"] - (1e-6 + 5 * (0.001 - 1e-6) / 10)) < 1e-12

# A checkpoint as the family writes it after an SVM validation.
folder = Path(sys.argv[1])
torch.save({"metrics": {"acc": np.float64(0.5)}, "base_model": {"w": torch.ones(2)}}, folder / "ckpt.pth")
assert torch.load(folder / "ckpt.pth", map_location=torch.device("cpu"))["metrics"]["acc"] == 0.5

# torch_scatter, by hand.
values, index = torch.tensor([[1.0, 5, 2, 8]], requires_grad=True), torch.tensor([[0, 2, 0, 2]])
assert scatter(values, index, dim=1, reduce="sum").tolist() == [[3, 0, 13]]
assert scatter(values, index, dim=1, dim_size=4, reduce="mean").tolist() == [[1.5, 0, 6.5, 0]]
assert scatter(values, index[0], reduce="mul").tolist() == [[2, 1, 40]]
assert scatter(values, index[0], 1, out=torch.ones(1, 3), reduce="max").tolist() == [[2, 1, 8]]
largest, where = torch_scatter.scatter_max(-values, index)
assert largest.tolist() == [[-1, 0, -5]] and where.tolist() == [[0, 4, 1]]
assert torch_scatter.scatter_min(values, index)[1].tolist() == [[0, 4, 1]]
rows = torch.arange(6.0).view(1, 3, 2).requires_grad_()
assert scatter(rows, torch.tensor([1, 0, 1]), dim=1, reduce="max").tolist() == [[[2, 3], [4, 5]]]
scatter(values, index, dim=1, reduce="mean").sum().backward()
assert values.grad.tolist() == [[0.5] * 4]
try:
    scatter(values, index, reduce="median")
except ValueError as error:
    assert "reduce='median' is none of sum" in str(error)

# A picture as main_vis draws it.
figure = plt.figure(figsize=(2, 2))
axes = figure.gca(projection="3d", adjustable="box")
assert (
    axes.name == "3d" and figure.gca(projection="3d") is axes and plt.gca(projection="3d") is axes and plt.gca() is axes
)
axes.scatter([0, 1], [0, 1], [0, 1], zdir="z", c=[0, 1], cmap="jet")
figure.canvas.draw()
picture = np.fromstring(figure.canvas.tostring_rgb(), dtype=np.uint8, sep="")
assert picture.size == 3 * np.prod(figure.canvas.get_width_height())

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=0)
assert parser.parse_args([]).local_rank == 0  # no launcher, no rank
os.environ["LOCAL_RANK"] = "1"
assert parser.parse_args([]).local_rank == 1 and parser.parse_args(["--local_rank", "2"]).local_rank == 2
assert parser.parse_args(["--local-rank=3"]).local_rank == 3  # as torch.distributed.launch spells it
print("gave back what age took away")
