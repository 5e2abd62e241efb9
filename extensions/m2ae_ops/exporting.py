"""The ops of this package in a graph that leaves PyTorch: as standard operators.

Shape legend: B batch, N points, S samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .private.registration import NAMESPACE, REFERENCES
from .reference import sampling
from .reference.distance import squared_distance, to_compute


def decompositions(*, onnx: bool) -> dict[torch._ops.OpOverload, Callable]:
    """Return op -> its plain form, for `ExportedProgram.run_decompositions`.

    Each is the reference, except that farthest point sampling is one loop in the graph and not a copy of its body for every sample.

    Args:
        onnx: the graph becomes ONNX, whose TopK prefers the lower index of equal values, so that it serves as a stable sort.
    """
    forms = {**REFERENCES, "fps": fps} | ({"knn": knn} if onnx else {})
    table = {getattr(getattr(torch.ops, NAMESPACE), name).default: form for name, form in forms.items()}
    return table | ({torch.ops.aten.argsort.stable: argsort} if onnx else {})


def fps(points: Tensor, num_samples: int, skip_near_origin: bool, tie_break: str) -> Tensor:
    """Sample as `reference.sampling.fps` does, in a loop of the graph: (B, S) int64."""
    points = to_compute(points)
    order, candidates, running, some = sampling.start(points, skip_near_origin, tie_break)
    places = torch.arange(num_samples, device=points.device)
    chosen = torch.zeros_like(points[:, :1, 0], dtype=torch.int64) * places  # (B, S)
    # The loop takes tensors only, and gives them in the shapes in which it got them.
    carried = (torch.ones((), dtype=torch.int64, device=points.device), running, points[:, :1].clone(), chosen)
    fixed = (points, candidates, some.unsqueeze(1), order, places)

    def unfinished(step, running, last, chosen, points, candidates, some, order, places):
        return step < num_samples

    def choose(step, running, last, chosen, points, candidates, some, order, places):
        sqdist = squared_distance(candidates, last)
        running = torch.where(sqdist < running, sqdist, running)
        index = torch.where(some, order[running.argmax(-1, keepdim=True)], 0)  # (B, 1)
        last = points.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
        return step + 1, running, last, torch.where(places == step, index, chosen)

    return torch.ops.higher_order.while_loop(unfinished, choose, carried, fixed)[3]


def knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search as `reference.neighbors.knn` does, where a top-k prefers the lower index of equal values."""
    sqdist = squared_distance(to_compute(query).unsqueeze(2), to_compute(support).unsqueeze(1))  # (B, Q, N)
    found = torch.where(sqdist.isnan(), torch.inf, sqdist).topk(k, dim=-1, largest=False)
    return found.values, found.indices


def argsort(values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Sort stably where a top-k prefers the lower index of equal values."""
    values = values if values.is_floating_point() else values.long()
    return values.topk(values.shape[dim], dim=dim, largest=descending).indices
