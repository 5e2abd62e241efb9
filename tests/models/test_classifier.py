"""Classifiers beyond parity: what they promise to the runners, and what they refuse."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from models import MODELS, build_model, load_weights
from models.classifier import POOLINGS
from models.layers.group import group_pyramid
from models.losses import smoothed_cross_entropy
from utils.errors import UserError

ENCODER = {
    "num_groups": [32, 16, 8],
    "group_sizes": [8, 4, 4],
    "encoder_dims": [12, 24, 48],
    "encoder_depths": [1, 1, 1],
    "num_heads": 3,
    "drop_path_rate": 0.0,
}
SMALL = {"NAME": "Point_M2AE_ModelNet40", **ENCODER, "cls_dim": 7}
SCAN = {**SMALL, "NAME": "Point_M2AE_ScanObjectNN"}
PRETRAINING = {"NAME": "Point_M2AE", **ENCODER, "decoder_dims": [48, 24]}


@pytest.fixture
def points():
    return torch.randn(6, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.4


@pytest.mark.parametrize(("config", "width"), [(SMALL, 48), (SCAN, 96)])
def test_shapes(config, width, points):
    model = build_model(config)
    logits = model(points)
    assert logits.shape == (6, 7) and model.features(points).shape == (6, width)
    assert model.patch_tokens(points).shape == (6, 8, 48)
    loss = model.loss(logits, torch.arange(6))
    assert loss.dim() == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.method == "point-m2ae"


def test_published_defaults():
    modelnet, scan = (MODELS.config({"NAME": f"Point_M2AE_{name}"}) for name in ("ModelNet40", "ScanObjectNN"))
    assert (modelnet.cls_dim, modelnet.smooth, modelnet.pooling) == (40, 0.3, "mean+max")
    assert (scan.cls_dim, scan.smooth, scan.pooling) == (15, 0.0, "mean,max[1:]")
    assert (modelnet.group_sizes, scan.group_sizes) == ([16, 8, 8], [32, 16, 16])


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling(name, points):
    """Against a loop over the tokens, with token 0 the largest so that leaving it out shows."""
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    tokens[:, 0] += 10
    mean = torch.stack([sum(row) / 5 for row in tokens])
    largest = torch.tensor([[max(token[c] for token in row) for c in range(3)] for row in tokens])
    rest = torch.tensor([[max(token[c] for token in row[1:]) for c in range(3)] for row in tokens])
    expected = {
        "mean": mean,
        "max": largest,
        "mean+max": mean + largest,
        "mean,max": torch.cat([mean, largest], 1),
        "mean,max[1:]": torch.cat([mean, rest], 1),
        "max,mean": torch.cat([largest, mean], 1),
        "class": tokens[:, 0],
        "class,max,mean": torch.cat([tokens[:, 0], rest, torch.stack([sum(row[1:]) / 4 for row in tokens])], 1),
        "class,max": torch.cat([tokens[:, 0], rest], 1),
    }[name]
    torch.testing.assert_close(POOLINGS[name].pool(tokens), expected)
    assert build_model({**SMALL, "pooling": name}).features(points).shape == (6, 48 * POOLINGS[name].widths)


def test_initialisation():
    """Only the encoder has the truncated normal of std 0.02; the head has PyTorch's own."""
    torch.manual_seed(0)
    model = build_model({**SCAN, "encoder_dims": [96, 192, 384]})
    for block in model.h_encoder.encoder_blocks[2].blocks:
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    first, last = model.cls_head_finetune[0], model.cls_head_finetune[8]
    for layer in (first, last):  # U(-1/sqrt(inputs), 1/sqrt(inputs)), biases included
        bound = layer.in_features**-0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
        assert layer.bias.any()


def test_smoothed_cross_entropy():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    target = torch.full((5, 4), 0.3 / 3, dtype=torch.float64)
    target[torch.arange(5), labels] = 0.7
    by_hand = -(target * logits.log_softmax(1)).sum(1).mean()
    assert smoothed_cross_entropy(logits, labels, 0.3).item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert smoothed_cross_entropy(logits, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item())
    assert abs(F.cross_entropy(logits, labels, label_smoothing=0.3).item() - by_hand.item()) > 1e-3
    tiny = smoothed_cross_entropy(logits, labels, 1e-7).item()
    assert tiny == pytest.approx(smoothed_cross_entropy(logits, labels).item(), rel=1e-5)
    assert smoothed_cross_entropy(logits.bfloat16(), labels, 0.3).dtype == torch.float32
    # The best logits are those of the target: no gradient there.
    best = target.log().float().requires_grad_()
    smoothed_cross_entropy(best, labels, 0.3).backward()
    assert best.grad.abs().max() < 1e-7
    with pytest.raises(ValueError, match="at least 2 classes"):
        smoothed_cross_entropy(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 0.1)


def test_eval_is_independent_of_the_batch(points):
    model = build_model(SMALL).eval()
    with torch.no_grad():
        alone = torch.cat([model(cloud[None]) for cloud in points])
        torch.testing.assert_close(model(points), alone, rtol=1e-5, atol=1e-5)


def test_attention_is_local(points):
    """A change far away leaves the tokens here as they are with a small radius, and changes them without one."""
    points[:, :30] += 50
    pyramid = group_pyramid(points, SMALL["num_groups"], SMALL["group_sizes"])
    far = pyramid.centers[0].norm(dim=-1) > 25  # (B, G)
    assert far.any(1).all() and not far.all(1).any()
    finest = torch.where(far[..., None, None], pyramid.neighborhoods[0] * 1.5, pyramid.neighborhoods[0])
    changed = pyramid._replace(neighborhoods=[finest, *pyramid.neighborhoods[1:]])
    for radius, spreads in ((1.0, False), (0.0, True)):
        encoder = build_model({**SMALL, "local_radius": [radius] * 3}).eval().h_encoder
        with torch.no_grad():
            before, after = (encoder(pyramid)[0] for pyramid in (pyramid, changed))
        moved = (before != after).any(-1)
        assert moved[far].all() and moved[~far].any() == spreads


def test_biases_before_batch_norm_keep_still(points):
    """Their gradient is zero up to rounding; Adam would make full steps of the rounding."""
    model = build_model(SMALL).train()
    model.loss(model(points), torch.arange(6)).backward()
    assert not model.cls_head_finetune[0].bias.grad.any() and not model.cls_head_finetune[4].bias.grad.any()
    assert model.cls_head_finetune[8].bias.grad.any()


def test_a_single_cloud(points):
    model = build_model(SMALL)
    with pytest.raises(ValueError, match="more than one row while training; raise the batch size"):
        model.train()(points[:1])
    assert model.eval()(points[:1]).shape == (1, 7)


def test_overfits_one_batch(points):
    torch.manual_seed(0)
    model = build_model({**SCAN, "cls_dim": 3}).train()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model.loss(model(points), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 0.7 and losses[-1] < 0.1


def test_copies_and_saves(points, tmp_path):
    model = build_model(SCAN).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    again = build_model(SCAN).eval()
    report = load_weights(again, tmp_path / "weights.pth")
    assert not report.missing and not report.unexpected
    expected = model(points)
    assert torch.equal(again(points), expected) and torch.equal(copy.deepcopy(model)(points), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(points), expected)


def test_starts_from_pretraining(points):
    source = build_model(PRETRAINING)
    model = build_model(SMALL)
    report = load_weights(model, {"base_model": source.state_dict()})
    assert not report.unexpected and report.ignored and {key.split(".")[0] for key in report.used} == {"h_encoder"}
    for key in report.used:
        assert torch.equal(model.state_dict()[key], source.state_dict()[key])


def test_checkpoints_that_must_not_load():
    model = build_model(SCAN)
    with pytest.raises(UserError, match=r"checkpoint of point-mae, and PointM2AEClassifier is a model of point-m2ae"):
        load_weights(model, {"base_model": {"module.MAE_encoder.norm.bias": torch.zeros(48)}})
    # Point-MAE's classifier has head and norm of the same names; the encoder decides.
    other = {key: value for key, value in model.state_dict().items() if not key.startswith("h_encoder.")}
    with pytest.raises(UserError, match=r"lacks \d+ tensors .*h_encoder"):
        load_weights(model, other)
    with pytest.raises(UserError, match=r"another shape .*cls_head_finetune\.8\.weight: \(9, 256\)"):
        load_weights(model, build_model({**SCAN, "cls_dim": 9}).state_dict())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cls_dim": 1}, "cls_dim: 1 must be at least 2"),
        ({"smooth": 1.0}, "smooth: 1.0"),
        ({"smooth": -0.1}, "smooth: -0.1"),
        ({"pooling": "average"}, "pooling: 'average' is unknown; choose from mean, max"),
        ({"legacy": ["near_padding"]}, "near_padding is unknown here"),
        ({"encoder_depths": [1, 1]}, "one entry a scale"),
        ({"cls_dims": 3}, "did you mean cls_dim"),
        ({"NAME": "Point_M2AE_ModelNet"}, "did you mean Point_M2AE_ModelNet40"),
    ],
)
def test_bad_configuration(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model({**SMALL, **keys})
