"""Which points a classifier sees, its predictions on a set, and voting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datasets import CloudSet
from datasets.batches import Batches
from extensions import fps
from tools.evaluate import Evaluator, Vote, check_class_names, check_classes, check_points
from tools.sampling import farthest, oversampled, subset, training_points
from utils.errors import UserError
from utils.seed import generator


def cloud_set(count=12, points=40, classes=3, **keys):
    draw = np.random.default_rng(0)
    labels = np.arange(count) % classes
    clouds = draw.normal(size=(count, points, 3)).astype(np.float32) + 4 * labels[:, None, None].astype(np.float32)
    names = [f"class {label}" for label in range(classes)]
    return CloudSet(clouds, "Made", "test", labels=labels, class_names=names, **{"sampling": "first", **keys})


def fake_run(npoints=20, augmentation="scale_translate", seed=0):
    model = SimpleNamespace(cls_dim=5)
    config = SimpleNamespace(npoints=npoints, total_bs=5, augmentation=augmentation, precision="fp32", model=model)

    def batches(clouds, size, **keys):
        return Batches(clouds, batch_size=size, seed=seed, **keys)

    return SimpleNamespace(config=config, seed=seed, device=torch.device("cpu"), batches=batches)


class ByMean(nn.Module):
    """Classify by the mean coordinate; remembers the clouds it saw."""

    votes_by_groups = False

    def __init__(self):
        super().__init__()
        self.seen = []
        self.dropout = nn.Dropout(0.5)

    def transform(self, points):
        return points

    def forward(self, points):
        self.seen.append(points.clone())
        mean = points.mean((1, 2))
        return -torch.stack([(mean - center).abs() for center in (0.0, 4.0, 8.0, 99.0, 99.0)], dim=1)


def test_oversampling_is_the_published_table():
    published = {1024: 1200, 2048: 2400, 4096: 4800}
    assert {count: oversampled(count, 8192) for count in published} == published
    assert oversampled(8192, 8192) == 8192 and oversampled(2048, 2048) == 2048


def test_training_points_are_one_subset_of_the_farthest_points():
    points = torch.randn(3, 100, 3, generator=torch.Generator().manual_seed(0))
    chosen = training_points(points, 32, torch.Generator().manual_seed(1))
    kept = farthest(points, 37)  # 32 * 75 // 64
    assert torch.equal(kept, points.gather(1, fps(points, 37, skip_near_origin=True).unsqueeze(-1).expand(-1, -1, 3)))
    positions = [(kept[0] == point).all(1).nonzero().item() for point in chosen[0]]
    assert len(set(positions)) == 32 and torch.equal(kept[:, positions], chosen)
    other = training_points(points, 32, torch.Generator().manual_seed(2))
    assert not torch.equal(other, chosen)


def test_points_near_the_origin_vanish_even_when_all_points_are_asked():
    """Published behaviour on clouds that are not normalised: a copy of another point takes their place."""
    points = torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(0)) + 2
    points[0, 4] = 0.01
    kept = farthest(points, 10)
    assert not (kept == points[0, 4]).all(-1).any() and len(kept[0].unique(dim=0)) == 9


def test_evaluation_is_deterministic_whole_and_leaves_the_mode_alone():
    clouds, model = cloud_set(), ByMean()
    model.train()
    model.dropout.eval()
    evaluator = Evaluator(fake_run(), clouds)
    assert evaluator.evaluate(model) == 1.0 and evaluator.evaluate(model) == 1.0
    assert model.training and not model.dropout.training
    assert [len(part) for part in model.seen[:3]] == [5, 5, 2]  # the last clouds are not dropped
    assert torch.equal(torch.cat(model.seen[:3]), farthest(torch.from_numpy(clouds.points), 20))
    matrix, names = evaluator.confusion()
    assert names == clouds.class_names and matrix.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


def test_voting_averages_ten_augmented_passes_of_one_subset_each():
    clouds, model = cloud_set(), ByMean()
    vote = Evaluator(fake_run(augmentation="rotate"), clouds).vote(model, rounds=2)
    assert len(vote.accuracies) == 2 and len(model.seen) == 2 * 10 * 3
    assert all(part.shape[1] == 20 for part in model.seen)
    assert not torch.equal(model.seen[0], model.seen[1]) and not torch.equal(model.seen[0], model.seen[30])
    again = ByMean()
    repeated = Evaluator(fake_run(augmentation="rotate"), clouds).vote(again, rounds=2)
    assert repeated == vote and all(torch.equal(a, b) for a, b in zip(model.seen, again.seen, strict=True))
    # A rotation about y leaves y alone: each pass shows points of the thinned cloud, the same positions in every cloud.
    pool = farthest(torch.from_numpy(clouds.points[:5]), 23)
    positions = [int((pool[0, :, 1] == y).nonzero()[0]) for y in model.seen[0][0, :, 1]]
    assert len(set(positions)) == 20 and torch.equal(pool[:, positions, 1], model.seen[0][..., 1])


class ByStart(ByMean):
    """Vote by groups: all that a pass draws is where they begin, and the scores follow from it."""

    votes_by_groups = True

    def group(self, points, *, generator):
        return torch.rand((), generator=generator)

    def forward(self, points, *, pyramid):
        self.seen.append(points.clone())
        return (super().forward(points) * 0 + pyramid * torch.arange(5)).log()


def test_voting_by_groups_takes_the_clouds_of_the_evaluation_and_averages_probabilities():
    clouds, model = cloud_set(), ByStart()
    vote = Evaluator(fake_run(augmentation="rotate"), clouds).vote(model, rounds=2)
    assert len(model.seen) == 2 * 2 * 10 * 3 and len(vote.accuracies) == 2
    assert all(torch.equal(part, farthest(torch.from_numpy(clouds.points[:5]), 20)) for part in model.seen[:20])
    drawn = [generator(0, 0, 0, f"vote {turn}") for turn in range(2)]
    scores = [Evaluator(fake_run(), clouds)._scores(model, torch.zeros(1, 20, 3), draw) for draw in drawn]
    torch.testing.assert_close(scores[0].sum(1), torch.ones(1))


def test_votes_are_summarised_as_what_they_are():
    vote = Vote([0.5, 0.6, 0.7])
    assert vote.row() == {"rounds": 3, "mean": pytest.approx(0.6), "std": pytest.approx(0.1), "max": 0.7}
    assert "60.00 % +- 10.00 over 3 rounds (best round 70.00 %, selected on the test set)" in str(vote)
    assert str(Vote([0.5])) == "50.00 %"


def test_subset_has_no_point_twice():
    points = torch.arange(30.0).view(1, 10, 3)
    assert len(subset(points, 10, torch.Generator().manual_seed(0))[0].unique(dim=0)) == 10


def test_bad_sets():
    clouds = cloud_set()
    with pytest.raises(
        UserError, match=r"model.cls_dim: 2 classes, but Made \(test\) has label 2; set model.cls_dim to 3"
    ):
        check_classes(clouds, 2)
    with pytest.raises(
        UserError, match=r"npoints: 50 are asked, Made \(test\) gives 40 points a cloud; set npoints to 40"
    ):
        check_points(clouds, 50)
    with pytest.raises(UserError, match="npoints: is missing"):
        check_points(clouds, None)
    with pytest.raises(UserError, match=r"Made \(test\): has no labels"):
        Evaluator(fake_run(), CloudSet(clouds.points, "Made", "test"))


def test_class_names_must_agree_where_both_sides_have_them():
    clouds = cloud_set()  # class 0 to class 2
    for names in (None, list(clouds.class_names), tuple(clouds.class_names)):
        check_class_names(names, clouds, "a.pth")
    check_class_names(["other"], CloudSet(clouds.points, "Made", "test"), "a.pth")
    with pytest.raises(
        UserError, match=r"Made \(test\): its 3 classes are not the 3 of a.pth: label 1 is 'chair' there and 'class 1'"
    ):
        check_class_names(["class 0", "chair", "class 2"], clouds, "a.pth")
    with pytest.raises(UserError, match=r"the 2 of a.pth: label 2 is no class there and 'class 2' here"):
        check_class_names(["class 0", "class 1"], clouds, "a.pth")
    with pytest.raises(UserError, match=r"the 4 of a.pth: label 3 is 'class 3' there and no class here"):
        check_class_names([f"class {label}" for label in range(4)], clouds, "a.pth")
    # Few-shot folds had numbers for names.
    check_class_names([f"class {label} of 40" for label in range(3)], clouds, "a.pth")
