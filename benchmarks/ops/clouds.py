"""Fresh clouds for each round: uniform in a cube, or on the surfaces of the built-in shapes.

Shapes: `B` clouds, `N` points, `L` patches, `K` points of a patch.
"""

import functools

import torch
from torch import Tensor

from extensions import gather, group, knn

KINDS = ("uniform", "surface")
SURFACE_SHAPES = 64
SURFACE_POINTS = 8192
NOISE = 0.05


class Clouds:
    """Draw clouds of one kind on one device; the same seed draws the same ones."""

    def __init__(self, kind: str, *, device: str = "cpu", seed: int = 0):
        if kind not in KINDS:
            raise ValueError(f"clouds: kind={kind!r} is unknown; choose from {', '.join(KINDS)}")
        self.kind = kind
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def points(self, B: int, N: int) -> Tensor:
        """Return (B, N, 3): uniform in [-1, 1]^3, or on surfaces inside the unit sphere."""
        if self.kind == "uniform":
            return self._to(torch.rand(B, N, 3, generator=self._generator) * 2 - 1)
        return self._to(self._subset(self._shapes(B), N))

    def pair(self, B: int, N: int) -> tuple[Tensor, Tensor]:
        """Return two samples (B, N, 3) of the same shapes."""
        if self.kind == "uniform":
            return self.points(B, N), self.points(B, N)
        chosen = self._shapes(B)
        return self._to(self._subset(chosen, N)), self._to(self._subset(chosen, N))

    def patches(self, L: int, K: int) -> tuple[Tensor, Tensor]:
        """Return a patch and its reconstruction (L, K, 3) each, centre-relative.

        Uniform patches are unrelated; those on surfaces are nearest neighbours of a point, and the same points in another
        order with noise of 0.05, as a decoder half-way through its training gives them.
        """
        if self.kind == "uniform":
            return self._uniform_patches(L, K), self._uniform_patches(L, K)
        per_cloud = 64
        clouds = self._subset(self._shapes(-(-L // per_cloud)), 2048)  # (B, N, 3)
        centers = clouds[:, :per_cloud].contiguous()
        patches = group(clouds, centers, knn(centers, clouds, K)[1]).flatten(0, 1)[:L]  # (L, K, 3)
        order = torch.randperm(K, generator=self._generator)
        rebuilt = patches[:, order] + NOISE * torch.randn(L, K, 3, generator=self._generator)
        return self._to(rebuilt), self._to(patches)

    def values(self, *shape: int) -> Tensor:
        """Return standard normal values."""
        return self._to(torch.randn(shape, generator=self._generator))

    def indices(self, below: int, *shape: int) -> Tensor:
        """Return int64 positions in 0..below-1, any of them possibly several times."""
        return self._to(torch.randint(below, shape, generator=self._generator))

    def _uniform_patches(self, L: int, K: int) -> Tensor:
        return self._to(torch.rand(L, K, 3, generator=self._generator))

    def _shapes(self, B: int) -> Tensor:
        chosen = torch.randint(SURFACE_SHAPES, (B,), generator=self._generator)
        return _surfaces()[chosen]

    def _subset(self, clouds: Tensor, N: int) -> Tensor:
        order = torch.rand(clouds.shape[:2], generator=self._generator).argsort(1)[:, :N]
        return gather(clouds, order)

    def _to(self, values: Tensor) -> Tensor:
        return values.to(self.device)


def clear_origin(points: Tensor) -> Tensor:
    """Move points within 0.05 of the origin away by 0.1, so that the near-origin rule, which no peer has, finds none."""
    near = points.square().sum(-1, keepdim=True) < 0.05**2
    return torch.where(near, points + 0.1, points)


@functools.cache
def _surfaces() -> Tensor:
    """Return (64, 8192, 3), clouds of the built-in set."""
    from datasets import build_dataset

    config = {"NAME": "Synthetic", "N_POINTS": SURFACE_POINTS, "clouds": SURFACE_SHAPES, "subset": "test"}
    return torch.tensor(build_dataset(config).points[:])
