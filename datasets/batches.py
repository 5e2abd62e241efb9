"""Batches of a `CloudSet`: what a step sees depends on (seed, epoch, step) alone.

Legend: B clouds a rank sees in one step, N points a sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.clouds import CloudSet
from datasets.transforms import (
    draw_seeds,
    normalize_unit_sphere,
    sample_indices,
    sample_scenes,
    sample_with_replacement,
)
from utils.device import send
from utils.errors import UserError
from utils.seed import generator

DRAWN = ("random", "replacement", "scene")  # samplings that need random numbers
RESIDENT_SHARE = 0.4  # of the free device memory that a resident set may take


@dataclass(frozen=True)
class Batch:
    """One step's input on the device; `indices` stays on the CPU, for messages."""

    points: Tensor  # (B, N, 3) float32
    labels: Tensor | None  # (B,) int64
    indices: Tensor  # (B,) int64, CPU: positions in the set
    step: int
    parts: Tensor | None = None  # (B, N) int64, the part of each point
    piece: int = 0  # which piece of the step's batch this is

    def split(self, pieces: int) -> "list[Batch]":
        """Cut into up to `pieces` pieces of nearly equal size."""

        def cut(column: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * pieces if column is None else column.tensor_split(pieces)

        columns = map(cut, (self.points, self.labels, self.indices, self.parts))
        found = [
            Batch(points, labels, indices, self.step, parts, piece)
            for piece, (points, labels, indices, parts) in enumerate(zip(*columns, strict=True))
        ]
        return [batch for batch in found if len(batch.indices)]

    def stream(self, name: str) -> str:
        """Name the stream of random numbers for this piece; that of a whole batch is `name` itself."""
        return f"{name}, piece {self.piece}" if self.piece else name

    def draw(self, seed: int, epoch: int) -> Callable[[str], torch.Generator]:
        """Return what gives this step of an epoch its random numbers: name of the stream -> generator."""
        return lambda name: generator(seed, epoch, self.step, self.stream(name))


class Batches:
    """Draw the batches of a set for one rank of a run.

    `batch_size` is the size of the global batch. Order and points of a step are drawn on the CPU for the global batch,
    so one process and several, CPU and GPU see the same numbers; rank r takes the r-th contiguous slice.

    Args:
        resident: keep the clouds on a CUDA device when they fit into 40 % of its free memory. Otherwise, and on the
            CPU, they are taken from the memory-mapped file.
        shard: each rank keeps and draws a part of the set of its own, the same one all through a run, so that less has to fit. Other clouds
            meet in a batch than without, and the numbers of a run depend on how many ranks there are. Not for `evaluation`.

    Raises:
        UserError: if the batch is larger than the set, or not divisible by the number of processes.
    """

    def __init__(
        self,
        cloud_set: CloudSet,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        shuffle: bool = True,
        resident: bool = True,
        shard: bool = False,
    ) -> None:
        _check_sizes(cloud_set, batch_size, world_size, drop_last)
        self.cloud_set, self.batch_size, self.seed = cloud_set, batch_size, seed
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.drop_last, self.shuffle = drop_last, shuffle
        # The positions of this rank's clouds in the set; None: all of them.
        self.own = self._deal() if shard and world_size > 1 else None
        points = torch.from_numpy(cloud_set.points)
        self.points = _place(points, self.device, resident, rows=self.own)
        self._placed = self.points is not points
        self.labels = None if cloud_set.labels is None else torch.from_numpy(cloud_set.labels)
        self.parts = None if cloud_set.part_labels is None else torch.from_numpy(cloud_set.part_labels)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.cloud_set), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from `first_step` on; the steps before it cost nothing.

        Without `drop_last` the last batch may be smaller, its slices of unequal size and, with fewer clouds than ranks,
        empty.
        """
        order, count = self._order(epoch), len(self.cloud_set)
        for step in range(first_step, len(self)):
            size = min(self.batch_size, count - step * self.batch_size)
            begin, end = (part * size // self.world_size for part in (self.rank, self.rank + 1))
            # Of its own clouds a rank has as many left as there are in its slice of the global batch.
            first = step * self.batch_size + begin if self.own is None else step * (self.batch_size // self.world_size)
            seeds = None
            if self.cloud_set.sampling in DRAWN:
                seeds = draw_seeds(size, generator=generator(self.seed, epoch, step, "points"))[begin:end]
            yield self._batch(order[first : first + end - begin], seeds, step)

    def _deal(self) -> Tensor:
        """Return the positions of this rank's clouds, dealt from the seed: as many as its slices of the batches take."""
        dealt = torch.randperm(len(self.cloud_set), generator=generator(self.seed, 0, 0, "shards"))
        begin, end = (part * len(dealt) // self.world_size for part in (self.rank, self.rank + 1))
        return dealt[begin:end]

    def _order(self, epoch: int) -> Tensor:
        """Return positions in the order of an epoch: in the set, or among the clouds of this rank."""
        count = len(self.cloud_set) if self.own is None else len(self.own)
        if not self.shuffle:
            return torch.arange(count)
        stream = "order" if self.own is None else f"order {self.rank}"
        return torch.randperm(count, generator=generator(self.seed, epoch, 0, stream))

    def evaluation(self) -> Iterator[Batch]:
        """Yield all clouds in stored order, the same on every rank, the last partial batch included.

        A set that draws points draws those of cloud i from (seed, i): independent of the batch size.

        Raises:
            ValueError: this rank has a part of the set only.
        """
        if self.own is not None:
            raise ValueError(
                f"batches: rank {self.rank} has {len(self.own)} of {len(self.cloud_set)} clouds; evaluate without shard"
            )
        size = max(1, self.batch_size // self.world_size)
        count = len(self.cloud_set)
        seeds = None
        if self.cloud_set.sampling in DRAWN:
            seeds = draw_seeds(count, generator=generator(self.seed, 0, 0, "evaluation"))
        for step, begin in enumerate(range(0, count, size)):
            rows = torch.arange(begin, min(begin + size, count))
            yield self._batch(rows, None if seeds is None else seeds[rows], step)

    def _batch(self, rows: Tensor, seeds: Tensor | None, step: int) -> Batch:
        """Return the clouds at positions in the set, or among those of this rank."""
        npoints = self.cloud_set.npoints
        where = self.points.device
        stored = rows
        if self.own is not None:
            rows = self.own[rows]
            # On the device lie the clouds of this rank, elsewhere all of them.
            stored = stored if self._placed else rows
        chosen = slice(None, npoints) if seeds is None else self._chosen(rows, seeds)
        stored = send(stored if seeds is None else stored[:, None], where)
        points = self.points[stored, chosen if seeds is None else send(chosen, where)]  # (B, N, 3)
        points = send(points, self.device)
        if self.cloud_set.normalize:
            points = normalize_unit_sphere(points)
        labels = None if self.labels is None else send(self.labels[rows], self.device)
        parts = None
        if self.parts is not None:
            parts = self.parts[rows if seeds is None else rows[:, None], chosen]  # (B, N)
            parts = send(parts, self.device, torch.int64)
        return Batch(points=points, labels=labels, indices=rows, step=step, parts=parts)

    def _chosen(self, rows: Tensor, seeds: Tensor) -> Tensor:
        """Return the positions (B, N) that are drawn of each cloud."""
        stored, npoints = self.points.shape[1], self.cloud_set.npoints
        if self.cloud_set.sampling == "random":
            return sample_indices(seeds, stored, npoints)
        counts = self.cloud_set.counts
        totals = torch.full_like(rows, stored) if counts is None else torch.from_numpy(counts)[rows]
        draw = sample_scenes if self.cloud_set.sampling == "scene" else sample_with_replacement
        return draw(seeds, totals, npoints)


class Samples(Dataset):
    """A set as PyTorch's `DataLoader` takes it: (points (N, 3) float32, label int64), and in sets with parts (N,) int64 part ids.

    The label is -1 in sets without labels. Sets that draw points give sample i the same ones each time, those of `Batches.evaluation`.

    Args:
        fresh: draw other points each time, from torch's global generator, as for training.
    """

    def __init__(self, cloud_set: CloudSet, *, seed: int = 0, fresh: bool = False) -> None:
        self.fresh, self.count = fresh, len(cloud_set)
        self.batches = Batches(cloud_set, batch_size=1, seed=seed, shuffle=False, drop_last=False)
        drawn = cloud_set.sampling in DRAWN
        self.seeds = draw_seeds(self.count, generator=generator(seed, 0, 0, "evaluation")) if drawn else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not -self.count <= index < self.count:
            raise IndexError(f"cloud {index} of a set of {self.count}")
        row = index % self.count
        seeds = None if self.seeds is None else self.seeds[row : row + 1]
        if self.fresh and seeds is not None:
            seeds = torch.randint(2**62, (1,))
        batch = self.batches._batch(torch.tensor([row]), seeds, 0)
        label = torch.tensor(-1) if batch.labels is None else batch.labels[0]
        return (batch.points[0], label) if batch.parts is None else (batch.points[0], label, batch.parts[0])


def _check_sizes(cloud_set: CloudSet, batch_size: int, world_size: int, drop_last: bool) -> None:
    count, where = len(cloud_set), f"{cloud_set.name} ({cloud_set.subset})"
    if batch_size < 1:
        raise UserError(f"batch of {batch_size}: total_bs must be at least 1")
    if drop_last and batch_size > count:
        raise UserError(
            f"{where}: the batch of {batch_size} is larger than the set of {count} clouds, so that an epoch would have "
            f"no step; set total_bs to {count} or less"
        )
    if batch_size % world_size:
        raise UserError(
            f"{where}: total_bs {batch_size} is not divisible by the {world_size} processes; "
            f"use {max(1, batch_size // world_size) * world_size} or another multiple of {world_size}"
        )


def _place(points: Tensor, device: torch.device, resident: bool, *, rows: Tensor | None) -> Tensor:
    """Move clouds, all or some rows of them, to a CUDA device if asked and if they fit, else leave all where they are."""
    if device.type != "cuda" or not resident:
        return points
    free, _ = torch.cuda.mem_get_info(device)
    count = len(points) if rows is None else len(rows)
    fits = count * points[0].numel() * points.element_size() <= RESIDENT_SHARE * free
    return (points if rows is None else points[rows]).to(device) if fits else points
