"""Batches: a function of (seed, epoch, step), the same for one process and several."""

import numpy as np
import pytest
import torch

from datasets import batches
from datasets.batches import Batches
from datasets.clouds import CloudSet
from utils.errors import UserError


def cloud_set(count=20, points=50, **keys):
    data = np.random.default_rng(0).normal(size=(count, points, 3)).astype(np.float32)
    keys = {"npoints": 16, "sampling": "random", "labels": np.arange(count), **keys}
    return CloudSet(points=data, name="Made", subset="train", **keys)


def epoch_of(batches, epoch=0, first_step=0):
    return list(batches.epoch(epoch, first_step))


def equal(first, second):
    return (
        first.step == second.step
        and torch.equal(first.points, second.points)
        and torch.equal(first.indices, second.indices)
        and torch.equal(first.labels, second.labels)
    )


def test_an_epoch_covers_the_set_once():
    batches = Batches(cloud_set(), batch_size=4, seed=3)
    seen = epoch_of(batches)
    assert len(seen) == len(batches) == 5
    assert sorted(torch.cat([batch.indices for batch in seen]).tolist()) == list(range(20))
    assert [batch.step for batch in seen] == list(range(5))
    for batch in seen:
        assert batch.points.shape == (4, 16, 3)
        assert torch.equal(batch.labels, batch.indices)


def test_points_come_from_their_own_cloud():
    source = cloud_set()
    batch = next(Batches(source, batch_size=4, seed=0).epoch(0))
    for cloud, index in zip(batch.points, batch.indices, strict=True):
        stored = {tuple(point) for point in source.points[index].tolist()}
        assert len({tuple(point) for point in cloud.tolist()} & stored) == 16


def test_same_seed_and_epoch_give_the_same_numbers():
    first, second = (epoch_of(Batches(cloud_set(), batch_size=4, seed=3), 2) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    for other in (
        epoch_of(Batches(cloud_set(), batch_size=4, seed=4), 2),
        epoch_of(Batches(cloud_set(), batch_size=4, seed=3), 1),
    ):
        assert not torch.equal(first[0].indices, other[0].indices)


def test_points_are_fresh_at_each_visit():
    batches = Batches(cloud_set(), batch_size=4, seed=3, shuffle=False)
    first, second = next(batches.epoch(0)), next(batches.epoch(1))
    assert torch.equal(first.indices, second.indices)
    assert not torch.equal(first.points, second.points)


def test_first_step_continues_the_epoch():
    batches = Batches(cloud_set(), batch_size=4, seed=3)
    whole, rest = epoch_of(batches, 1), epoch_of(batches, 1, first_step=3)
    assert len(rest) == 2
    assert all(equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_take_contiguous_slices_of_the_global_batch(world_size):
    alone = epoch_of(Batches(cloud_set(), batch_size=8, seed=3))
    ranks = [
        epoch_of(Batches(cloud_set(), batch_size=8, seed=3, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert all(len(part.points) == 8 // world_size for part in parts)
        assert torch.equal(torch.cat([part.points for part in parts]), batch.points)
        assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)


@pytest.mark.parametrize("world_size, drop_last", [(2, True), (4, True), (4, False)])
def test_shards_are_dealt_once_and_cover_the_set(world_size, drop_last):
    sizes = {"batch_size": 4 * world_size // 2, "seed": 3, "world_size": world_size, "drop_last": drop_last}
    source = cloud_set(count=22)
    ranks = [Batches(source, rank=r, shard=True, **sizes) for r in range(world_size)]
    dealt = [set(rank.own.tolist()) for rank in ranks]
    assert sorted(torch.cat([rank.own for rank in ranks]).tolist()) == list(range(22))
    for r, rank in enumerate(ranks):
        alone = Batches(source, rank=r, **sizes)
        for epoch in (0, 1):
            found, expected = epoch_of(rank, epoch), epoch_of(alone, epoch)
            assert [len(batch.indices) for batch in found] == [len(batch.indices) for batch in expected]
            seen = torch.cat([batch.indices for batch in found]).tolist()
            assert len(set(seen)) == len(seen) and set(seen) <= dealt[r] and (drop_last or set(seen) == dealt[r])
            for batch in found:
                assert torch.equal(batch.labels, batch.indices)
                for cloud, index in zip(batch.points, batch.indices, strict=True):
                    assert {tuple(point) for point in cloud.tolist()} <= {
                        tuple(p) for p in source.points[index].tolist()
                    }
        assert [batch.indices.tolist() for batch in rank.epoch(0)] != [
            batch.indices.tolist() for batch in rank.epoch(1)
        ]
        with pytest.raises(ValueError, match=f"rank {r} has .* of 22 clouds; evaluate without shard"):
            next(rank.evaluation())


def test_one_process_has_no_shards():
    ours = epoch_of(Batches(cloud_set(), batch_size=4, seed=3, shard=True))
    assert all(equal(a, b) for a, b in zip(ours, epoch_of(Batches(cloud_set(), batch_size=4, seed=3)), strict=True))


def test_a_shard_that_was_moved_gives_the_same_batches(monkeypatch):
    """As on a GPU, where a rank has room for its own clouds only."""
    options = {"batch_size": 4, "seed": 3, "rank": 1, "world_size": 2, "shard": True}
    here = epoch_of(Batches(cloud_set(), **options))
    monkeypatch.setattr(batches, "_place", lambda points, device, resident, *, rows: points[rows])
    moved = Batches(cloud_set(), **options)
    assert len(moved.points) == 10
    assert all(equal(a, b) for a, b in zip(here, moved.epoch(0), strict=True))


def test_partial_batch():
    assert len(Batches(cloud_set(), batch_size=6, seed=0)) == 3
    kept = epoch_of(Batches(cloud_set(), batch_size=6, seed=0, drop_last=False))
    assert [len(batch.indices) for batch in kept] == [6, 6, 6, 2]


def test_evaluation_is_in_order_and_independent_of_the_batch_size():
    few = list(Batches(cloud_set(), batch_size=3, seed=1).evaluation())
    many = list(Batches(cloud_set(), batch_size=20, seed=1).evaluation())
    assert [len(batch.indices) for batch in few] == [3] * 6 + [2]
    assert torch.equal(torch.cat([batch.indices for batch in few]), torch.arange(20))
    assert torch.equal(torch.cat([batch.points for batch in few]), many[0].points)


def test_sampling_first_and_all():
    source = cloud_set(sampling="first", npoints=7)
    batch = next(Batches(source, batch_size=4, seed=0, shuffle=False).epoch(0))
    assert torch.equal(batch.points, torch.from_numpy(source.points[:4, :7]))
    whole = next(Batches(cloud_set(sampling="all", npoints=7), batch_size=4, seed=0).epoch(0))
    assert whole.points.shape == (4, 50, 3)


def test_normalize_happens_after_sampling():
    batch = next(Batches(cloud_set(normalize=True), batch_size=4, seed=0).epoch(0))
    torch.testing.assert_close(batch.points.norm(dim=2).amax(dim=1), torch.ones(4))
    torch.testing.assert_close(batch.points.mean(dim=1), torch.zeros(4, 3), atol=1e-6, rtol=0)


def test_bad_sizes():
    with pytest.raises(UserError, match=r"batch of 21 is larger than the set of 20.*20 or less"):
        Batches(cloud_set(), batch_size=21, seed=0)
    with pytest.raises(UserError, match="5 is not divisible by the 2 processes"):
        Batches(cloud_set(), batch_size=5, seed=0, world_size=2)
    with pytest.raises(UserError, match="at least 1"):
        Batches(cloud_set(), batch_size=0, seed=0)
    assert len(Batches(cloud_set(), batch_size=21, seed=0, drop_last=False)) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"npoints": 51}, "51 points a sample are asked, but its clouds hold 50"),
        ({"sampling": "some"}, "sampling 'some' is unknown"),
        ({"up_axis": "up"}, "UP_AXIS 'up' is unknown"),
        ({"labels": np.arange(3)}, "3 labels for 20 clouds"),
        ({"count": 0}, "holds no points"),
    ],
)
def test_cloud_set_checks_itself(keys, message):
    with pytest.raises(UserError, match=message):
        cloud_set(**keys)


def test_select_keeps_rows_together():
    chosen = cloud_set(names=[f"cloud {i}" for i in range(20)]).select([7, 2])
    assert len(chosen) == 2 and chosen.labels.tolist() == [7, 2] and chosen.names == ["cloud 7", "cloud 2"]
    assert np.array_equal(chosen.points, cloud_set().points[[7, 2]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_gives_the_same_batches(resident):
    here = epoch_of(Batches(cloud_set(), batch_size=4, seed=3))
    there = epoch_of(Batches(cloud_set(), batch_size=4, seed=3, device="cuda", resident=resident))
    for a, b in zip(here, there, strict=True):
        assert b.points.is_cuda
        assert torch.equal(a.points, b.points.cpu())
