"""PointGST: adapters in the spectral domain of graphs of the patches (Liang et al. 2024, arXiv 2410.08114).

Shapes: `B` batch, `G` patches, `L` tokens: the patches, and in front of them what is no patch; `C` channels, `r` the width of an adapter;
`P` parts of a graph, of `n` patches each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import along_a_curve, gather
from models.layers.transformer import MLP, Stack
from models.tuning.base import Tuning, attach
from models.tuning.config import TuneConfig

NAME = "adapter"
NEAREST = 1e-6  # patches that are nearer count as this far apart
SMALLEST = 2  # patches of a part


@torch.no_grad()
def spectral_basis(points: Tensor) -> Tensor:
    """Return the eigenvectors (..., n, n), one a column, of the Laplacian of the complete graph of points (..., n, 3).

    The weight of two points is the smallest distance in the graph over theirs; eigenvalues ascend. Of each vector the sign is taken
    with which its largest component is positive.
    """
    size = points.shape[-2]
    itself = torch.eye(size, dtype=torch.bool, device=points.device)
    difference = points.unsqueeze(-2) - points.unsqueeze(-3)
    distance = difference.square().sum(-1).sqrt().clamp(min=NEAREST)  # (..., n, n)
    smallest = distance.masked_fill(itself, torch.inf).amin((-2, -1), keepdim=True)
    weight = (smallest / distance).masked_fill(itself, 0)
    laplacian = torch.diag_embed(weight.sum(-1)) - weight
    basis = torch.linalg.eigh(laplacian).eigenvectors
    largest = basis.gather(-2, basis.abs().argmax(-2, keepdim=True))  # (..., 1, n)
    return basis * torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)


class Basis(NamedTuple):
    """One scale of the graph of a batch's patches."""

    vectors: Tensor  # (B, P, n, n)
    order: Tensor  # (B, G) patches in the order of the parts
    place: Tensor  # (B, G) where each patch stands in that order

    def filter(self, patches: Tensor, spectral: nn.Linear) -> Tensor:
        """Transform patches (B, G, r), change their coefficients, transform back."""
        parts, size = self.vectors.shape[1:3]
        vectors = self.vectors.to(patches.dtype)
        ordered = gather(patches, self.order).unflatten(1, (parts, size))  # (B, P, n, r)
        changed = F.silu(spectral(vectors.transpose(-2, -1) @ ordered))
        return gather((vectors @ changed).flatten(1, 2), self.place)


class PatchGraphs:
    """The bases of a stack's patches, found anew each time that their positions are embedded.

    Args:
        graphs: parts of the graph at each scale.
    """

    def __init__(self, graphs: Sequence[int]):
        self.graphs = graphs
        self.count, self.bases = 0, []

    @torch.no_grad()
    def follow(self, position: nn.Module, args: tuple[Tensor]) -> None:
        """Find the bases of the centres (B, G, 3) whose positions are being embedded."""
        centers = args[0].detach()
        self.count = centers.shape[1]
        order = along_a_curve(centers)
        place, ordered = order.argsort(1), gather(centers, order)
        parts = (parts_of(self.count, wanted) for wanted in self.graphs)
        self.bases = [Basis(spectral_basis(ordered.unflatten(1, (part, -1))), order, place) for part in parts]


def parts_of(count: int, wanted: int) -> int:
    """Return into how many equal parts `count` patches are divided: at least as many as wanted, if that leaves `SMALLEST` in each."""
    return next((parts for parts in range(wanted, count // SMALLEST + 1) if count % parts == 0), 1)


class SpectralAdapter(nn.Module):
    """Up(z + sum over the scales of U SiLU(S(U^T z))) with z = Down(x) and bases U; Up is zero at the start, S is the same for all scales.

    A token that is no patch is a graph of its own.
    """

    def __init__(self, width: int, keys: TuneConfig, graphs: PatchGraphs):
        super().__init__()
        self.down, self.up = nn.Linear(width, keys.rank), nn.Linear(keys.rank, width)
        self.spectral = nn.Linear(keys.rank, keys.rank)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.factor, self.graphs = keys.scale, graphs

    def forward(self, x: Tensor) -> Tensor:
        """Map the input of an MLP (B, L, C) to what is added to its output."""
        narrow = self.down(x)  # (B, L, r)
        others, patches = narrow.split([x.shape[1] - self.graphs.count, self.graphs.count], dim=1)
        changed = sum(basis.filter(patches, self.spectral) for basis in self.graphs.bases)
        alone = F.silu(self.spectral(others)) * len(self.graphs.bases)
        return self.up(narrow + torch.cat([alone, changed], dim=1)) * self.factor


def add_spectral(mlp: MLP, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Add what the adapter makes of the input of an MLP to its output."""
    return output + mlp.get_submodule(NAME)(args[0])


class SpectralTuning(Tuning):
    """Put a spectral adapter next to every MLP.

    With several scales of patches, the graph of a finer one is divided into as many times more parts as it has more patches than the
    coarsest one, so that no part is larger than the graph of that.
    """

    data_dependent = "the eigenvectors of the patch graphs are found by a library that cannot be recorded"

    def __init__(self, model: nn.Module, keys: TuneConfig):
        self.coarsest = model.config.num_groups[-1]
        self.groups = iter(model.config.num_groups)
        super().__init__(model, keys)

    def insert(self, stack: Stack) -> None:
        """Attach an adapter to each block, and what finds the bases to what embeds the positions."""
        finer = next(self.groups) // self.coarsest
        graphs = PatchGraphs([parts * max(finer, 1) for parts in self.keys.graphs])
        stack.position.register_forward_pre_hook(graphs.follow)
        for block in stack.blocks.blocks:
            attach(block.mlp, NAME, SpectralAdapter(block.norm1.normalized_shape[0], self.keys, graphs), add_spectral)
