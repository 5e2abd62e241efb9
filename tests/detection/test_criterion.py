"""The set criterion: several processes add up to one; outputs that are not finite."""

import numpy as np
import pytest
import torch

from datasets.scenes import Scene, targets
from models import build_model
from models.detection import criterion
from models.detection.layers import Near, PackedAttention, within_radius
from tests.models.test_contract import KEYS


def model_and_points():
    torch.manual_seed(0)
    model = build_model({**KEYS["3DETR_M"], "NAME": "3DETR_M"}).eval()
    return model, torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(1)) * 0.5


def wanted(points):
    """Return targets of four scenes with 3, 0, 1 and 2 boxes."""
    rng = np.random.RandomState(0)
    rows = []
    for cloud, count in zip(points.numpy(), (3, 0, 1, 2), strict=True):
        boxes = np.concatenate(
            [rng.randn(count, 3) * 0.2, 0.2 + rng.rand(count, 3), *[rng.randint(0, 3, (count, 1))] * 2], axis=1
        )
        rows.append(targets(Scene(cloud, boxes, np.arange(len(cloud)))))
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def part_of(out, rows):
    return {
        "outputs": {key: value[rows] for key, value in out["outputs"].items()},
        "aux_outputs": [{key: value[rows] for key, value in layer.items()} for layer in out["aux_outputs"]],
    }


def test_processes_add_up_to_one(monkeypatch):
    """The mean of two processes' losses is the loss of one process with all scenes; one of them has no boxes at all."""
    model, points = model_and_points()
    aim = wanted(points)
    with torch.no_grad():
        out = model(points)
    alone = model.loss(out, aim)
    rows = [torch.tensor([0, 2, 3]), torch.tensor([1])]
    totals = []

    def record(value):
        totals.append(value.clone())
        return value

    monkeypatch.setattr(criterion, "all_reduce_sum", record)
    own = []
    for part in rows:
        totals.clear()
        model.loss(part_of(out, part), {key: value[part] for key, value in aim.items()})
        own.append(list(totals))
    sums = [a + b for a, b in zip(*own, strict=True)]
    monkeypatch.setattr(criterion, "world_size", lambda: 2)
    means = {}
    for part in rows:
        following = iter(sums)
        monkeypatch.setattr(criterion, "all_reduce_sum", lambda value, following=following: next(following))
        losses = model.loss(part_of(out, part), {key: value[part] for key, value in aim.items()})
        means = {key: means.get(key, 0) + value / 2 for key, value in losses.items()}
    for key in (key for key in alone if "cardinality" not in key):
        assert means[key].item() == pytest.approx(alone[key].item(), rel=1e-5, abs=1e-7), key


def test_outputs_that_are_not_finite_give_such_a_loss():
    """The matching does not raise: the loop says which scenes it were."""
    model, points = model_and_points()
    with torch.no_grad():
        model.mlp_heads["center_head"].layers[8].weight.fill_(float("nan"))
        loss = model.loss(model(points), wanted(points))["loss"]
    assert not torch.isfinite(loss)


@pytest.mark.parametrize("training", [False, True])
def test_lists_of_neighbours_give_what_masks_give(training):
    centers = torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(0))
    near = within_radius(centers, 0.2, 20)
    mask = within_radius(centers, 0.2, 1)
    assert isinstance(near, Near) and mask.dtype == torch.bool and near.present.sum() == mask.sum()
    layer = PackedAttention(32, 2, 0.0).train(training)
    x = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(1))
    a, b = (x.clone().requires_grad_() for _ in range(2))
    one, other = layer(a, near), layer(b, mask)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for out in (one, other):
        out.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_dropped_weights_of_attention_keep_their_mean():
    layer = PackedAttention(16, 2, 0.4).train()
    x = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    centers = torch.rand(1, 12, 3, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for allowed in (within_radius(centers, 0.6, 12), within_radius(centers, 0.6, 1)):
            mean = torch.stack([layer(x, allowed) for _ in range(400)]).mean(0)
            layer.eval()
            torch.testing.assert_close(mean, layer(x, allowed), rtol=0, atol=0.12)
            layer.train()
