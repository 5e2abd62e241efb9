"""Tuning: what each kind adds, against its formula; where it starts; what trains; what it refuses."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.layers.propagate import interpolate
from models.tuning import DEFAULTS, TUNINGS, TuneConfig, counts
from models.tuning.base import Base
from models.tuning.dynamic import ScaleShift
from models.tuning.lora import layers_of
from models.tuning.prompts import Prompts, prepend
from models.tuning.spectral import PatchGraphs, SpectralAdapter, parts_of, spectral_basis
from utils.errors import UserError

WIDTHS = {"embed_widths": [8, 16, 32], "num_heads": 3}
SINGLE = {**WIDTHS, "trans_dim": 24, "encoder_dims": 24, "depth": 2, "num_group": 12, "group_size": 6}
LEVELS = {"num_groups": [24, 12, 6], "group_sizes": [6, 4, 4], "encoder_dims": [12, 18, 24]}
HIERARCHY = {**WIDTHS, **LEVELS, "encoder_depths": [1, 2, 1], "local_radius": [0.5, 0.8, 1.28]}
PARTS = {"label_width": 6, "prop_widths": [12, 8], "head_widths": [10, 8], "num_parts": 9, "num_categories": 4}
MODELS = {
    "point-mae": {"NAME": "PointTransformer", **SINGLE, "cls_dim": 5},
    "pcp-mae": {"NAME": "PCP_MAE_Classifier", **SINGLE, "cls_dim": 5},
    "inter-mae": {"NAME": "Inter_MAE_Classifier", **SINGLE, "cls_dim": 5},
    "gm3d": {"NAME": "GM3D_PointTransformer", **SINGLE, "cls_dim": 5},
    "point-jepa": {"NAME": "PointJepaClassification", **SINGLE, "cls_dim": 5},
    "point-m2ae": {"NAME": "Point_M2AE_ModelNet40", **HIERARCHY, "cls_dim": 5},
    "i2p-mae": {"NAME": "I2P_MAE_ModelNet40", **HIERARCHY, "cls_dim": 5},
    "point-mae parts": {"NAME": "Point_MAE_SEG", **SINGLE, **PARTS, "taps": [0, 1]},
    "point-jepa parts": {"NAME": "PointJepaPartSegmentation", **SINGLE, **PARTS, "taps": [0, 1]},
    "point-m2ae parts": {"NAME": "Point_M2AE_SEG", **HIERARCHY, **PARTS},
}
INSERTED = ("lora", "gst", "dapt", "prompt")


def build(name, kind="full", **keys):
    torch.manual_seed(3)
    return build_model({**MODELS[name], "tune": {"kind": kind, **keys}})


def run(model, batch=4):
    points = torch.randn(batch, 60, 3, generator=torch.Generator().manual_seed(1)) * 0.4
    return model(points, *((torch.arange(batch) % 4,) if hasattr(model.config, "num_parts") else ()))


def train(model):
    model.tuning.set_mode(model)
    run(model).float().square().mean().backward()


@pytest.mark.parametrize("name", MODELS)
def test_what_trains(name):
    """Exactly what trains gets a gradient, whatever the kind, and the frozen batch statistics keep still."""
    given = {key for key, _ in build(name).named_parameters()}
    for kind in TUNINGS:
        model = build(name, kind)
        before = copy.deepcopy(model.state_dict())
        train(model)
        trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert {key for key in trained & given if not key.startswith(model.missing_keys)} == set()
        assert set(model.tuning.inserted) <= trained and bool(model.tuning.inserted) == (kind in INSERTED)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert all(key.startswith(model.HEAD) for key in moved) and (moved or kind == "linear" or "linear" in name)
        assert counts(model) == (
            sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())
        )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_zero_at_the_start(name):
    """Kinds whose last layer begins at zero leave the output as it is, bit for bit; prompts do not, nor do internal ones."""
    plain = build(name).eval()
    with torch.no_grad():
        expected = run(plain)
        for kind, keys, same in (
            ("lora", {"targets": ["qkv", "proj", "fc1", "fc2"]}, True),
            ("gst", {}, True),
            ("dapt", {"internal_prompts": False}, True),
            ("dapt", {}, False),
            ("prompt", {}, False),
        ):
            model = build(name, kind, **keys)
            model.load_state_dict(plain.state_dict(), strict=False)
            assert torch.equal(run(model.eval()), expected) == same, kind


def test_gradients_pass_through_frozen_patch_embeddings():
    """Those of finer scales reach the parts inserted there, as they do where nothing is frozen."""
    model, other = build("point-m2ae", "lora"), build("point-m2ae", "lora")
    for each in (model, other):
        for _, part in layers_of(each):
            torch.nn.init.normal_(part.B, generator=torch.Generator().manual_seed(2))
        each.eval()
    other.requires_grad_(True)
    for each in (model, other):
        run(each).square().mean().backward()
    for (_, part), (_, same) in zip(layers_of(model), layers_of(other), strict=True):
        torch.testing.assert_close(part.A.grad, same.A.grad)
        assert part.A.grad.any()


def test_lora_is_its_formula_and_merges():
    model = build("point-mae", "lora", rank=3, alpha=6, targets=["qkv", "fc2"]).double().eval()
    layers = layers_of(model)
    assert len(layers) == 4
    for _, part in layers:
        assert not part.B.any() and part.A.abs().max() <= 1 / math.sqrt(
            part.A.shape[1]
        )  # Kaiming's bound for a = sqrt(5)
        torch.nn.init.normal_(part.B)
    linear = model.blocks.blocks[0].attn.qkv
    part = linear.lora
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    expected = F.linear(x, linear.weight, linear.bias) + 6 / 3 * (x @ part.A.T) @ part.B.T
    torch.testing.assert_close(linear(x), expected)
    before, apart = copy.deepcopy(model.state_dict()), run(model)
    model.tuning.merge(model)
    model.tuning.merge(model)  # once more changes nothing
    torch.testing.assert_close(run(model), apart, rtol=1e-10, atol=1e-12)
    assert not torch.equal(linear.weight, before["blocks.blocks.0.attn.qkv.weight"])
    with pytest.raises(UserError, match="merged into the weights are not saved; call unmerge"):
        model.tuning.saved_weights(model)
    model.tuning.unmerge(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(run(model), apart)


@pytest.mark.parametrize("kind", ["linear", "gst"])
def test_batch_statistics_that_move_are_saved(kind):
    """With the frozen encoder in training mode, as published for PCP-MAE, they are a part of what was trained."""
    model = build("point-mae", kind)
    model.tuning.base = Base(Path("base.pth"), "0" * 64, keys=frozenset(model.state_dict()))
    encoder = {key for key, _ in model.named_buffers() if key.startswith("encoder.")}
    for training in (False, True):
        model.tuning.set_mode(model, training=training)
        before = copy.deepcopy(model.state_dict())
        run(model)
        assert {key for key in encoder if not torch.equal(model.state_dict()[key], before[key])} == (
            encoder if training else set()
        )
        assert set(model.tuning.saved_weights(model)) & encoder == (encoder if training else set())


def test_a_copy_has_its_own_parts():
    for kind in INSERTED:
        model = build("point-mae", kind).eval()
        twin = copy.deepcopy(model)
        with torch.no_grad():
            before = run(model)
            for name, parameter in twin.named_parameters():
                if name in model.tuning.inserted:
                    parameter.add_(1.0)
            assert torch.equal(run(model), before) and not torch.equal(run(twin), before)


# Spectral adapters.


def laplacian(points):
    size = len(points)
    distance = torch.tensor([[math.dist(a, b) for b in points.tolist()] for a in points.tolist()])
    nearest = min(float(distance[i, j]) for i in range(size) for j in range(size) if i != j)
    weight = torch.tensor(
        [[nearest / float(distance[i, j]) if i != j else 0.0 for j in range(size)] for i in range(size)]
    )
    return torch.diag(weight.sum(1)) - weight


def test_spectral_basis():
    points = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    basis = spectral_basis(points)
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(9).expand(2, -1, -1), rtol=0, atol=1e-5)
    for cloud, vectors in zip(points, basis, strict=True):
        spectrum = vectors.T @ laplacian(cloud) @ vectors
        values = spectrum.diagonal()
        torch.testing.assert_close(spectrum, torch.diag(values), rtol=0, atol=1e-4)
        assert abs(values[0]) < 1e-4 and (values.diff() > -1e-5).all()
        torch.testing.assert_close(vectors[:, 0], torch.full((9,), 1 / 3))  # no frequency: constant, and positive
        assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()
    assert spectral_basis(torch.zeros(1, 4, 3)).isfinite().all()  # all points in one place


def test_spectral_adapter():
    """Against loops over scales, parts and tokens; a class token has a graph of its own."""
    graphs = PatchGraphs([1, 3])
    centers = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    graphs.follow(None, (centers,))
    adapter = SpectralAdapter(8, TuneConfig("gst", rank=5, scale=0.5), graphs)
    torch.nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(1))
    narrow = adapter.down(x)
    total = narrow.clone()
    for cloud in range(2):
        total[cloud, 0] += 2 * F.silu(adapter.spectral(narrow[cloud, 0]))
        for basis, parts in zip(graphs.bases, (1, 3), strict=True):
            for members in basis.order[cloud].view(parts, -1):
                vectors = spectral_basis(centers[cloud, members])
                coefficients = vectors.T @ narrow[cloud, 1 + members]
                total[cloud, 1 + members] += vectors @ F.silu(adapter.spectral(coefficients))
    torch.testing.assert_close(adapter(x), adapter.up(total) * 0.5, rtol=1e-4, atol=1e-5)


def test_parts_of_a_graph():
    assert [parts_of(12, wanted) for wanted in (1, 2, 5, 6, 7)] == [1, 2, 6, 6, 1]
    model = build("point-m2ae", "gst", graphs=[1, 2])
    run(model)
    found = [
        [tuple(basis.vectors.shape[1:3]) for basis in stack.blocks.blocks[0].mlp.adapter.graphs.bases]
        for stack in model.stacks()
    ]
    assert found == [[(4, 6), (8, 3)], [(2, 6), (4, 3)], [(1, 6), (2, 3)]]  # of 24, 12 and 6 patches
    assert "cannot be recorded" in model.tuning.data_dependent


# Prompts.


def test_prompts_are_tokens_of_each_block():
    """Against blocks that are called by hand with the prompts in front."""
    model = build("point-mae", "prompt", prompts=3).eval()
    blocks, (first, second) = model.blocks, model.blocks.blocks
    x, position = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    expected = x
    for block in (first, second):
        bare = copy.deepcopy(block)
        bare._forward_hooks.clear()
        bare._forward_pre_hooks.clear()
        prompts = block.prompt.tokens.expand(2, -1, -1)
        expected = bare(torch.cat([prompts, expected + position], dim=1))[:, 3:]
    torch.testing.assert_close(blocks(x, position), expected)
    assert first.prompt.tokens.abs().max() <= math.sqrt(6 / 48)


def test_masks_let_prompts_through():
    x, prompts = torch.zeros(1, 3, 4), torch.ones(1, 2, 4)
    valid, attend = torch.tensor([[True, True, False]]), torch.eye(3, dtype=torch.bool)[None]
    longer, real, pairs = prepend((x, valid, attend), prompts)
    assert torch.equal(longer, torch.cat([prompts, x], 1)) and real.tolist() == [[True, True, True, True, False]]
    assert pairs[0, :2].all() and pairs[0, :, :2].all() and torch.equal(pairs[0, 2:, 2:], attend[0])
    assert prepend((x,), prompts)[1:] == (None, None)
    drawn = Prompts(4, TuneConfig("prompt", dropout=0.5)).train()(200)
    assert 0.4 < (drawn == 0).float().mean() < 0.6


def scaled(layer, value):
    return value * layer.transform.gamma + layer.transform.beta


def linear(layer, value):
    return scaled(layer, F.linear(value, layer.weight, layer.bias))


def norm(layer, value):
    return scaled(layer, F.layer_norm(value, (24,), layer.weight, layer.bias))


def test_dynamic_adapters():
    """Scales by token, internal prompts from block to block, and layers that are scaled and shifted, all by hand."""
    torch.manual_seed(0)
    model = build("point-mae", "dapt", rank=4, scale=0.5).eval()
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if name in model.tuning.inserted):
            parameter.add_(torch.randn_like(parameter) * 0.3)
        x, position = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
        expected, prompt = x, None
        for block in model.blocks.blocks:
            tokens = expected + position
            tokens = tokens if prompt is None else torch.cat([prompt, tokens], 1)
            q, k, v = linear(block.attn.qkv, norm(block.norm1, tokens)).view(2, -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
            attended = ((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).flatten(2)
            tokens = tokens + linear(block.attn.proj, attended)
            own, adapter = norm(block.norm2, tokens), block.mlp.adapter
            added = 0.5 * adapter.significance(own).relu() * adapter.up(adapter.down(own).relu())
            tokens = tokens + linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, own))) + added
            expected = tokens if prompt is None else tokens[:, 1:]
            prompt = F.gelu(added).mean(1, keepdim=True)
        torch.testing.assert_close(model.blocks(x, position), expected, rtol=1e-4, atol=1e-5)
    identity = ScaleShift(4)
    x = torch.randn(3, 4)
    assert torch.equal(identity(x), x)


# Heads of one layer.


def test_linear_part_head():
    """One layer on the tokens interpolated to each point, their maximum and mean, and the category."""
    model = build("point-m2ae parts", "linear").eval()
    points = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(1)) * 0.4
    tokens = model.tokens(model.group(points))
    joined = [
        torch.cat([reduce(taken) for _, taken in tokens], 1) for reduce in (lambda t: t.amax(1), lambda t: t.mean(1))
    ]
    rows = torch.cat([interpolate(points, *pair) for pair in tokens], -1)
    category = F.one_hot(torch.tensor([3, 0]), 4).float()
    constant = torch.cat([*joined, category], 1).unsqueeze(1).expand(-1, 60, -1)
    expected = F.linear(torch.cat([rows, constant], -1), model.linear_head.weight, model.linear_head.bias).log_softmax(
        -1
    )
    torch.testing.assert_close(model(points, torch.tensor([3, 0])), expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(model, "propagations")


# Bad keys.


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "lorra"}, "model configuration: tune.kind: 'lorra' is unknown; did you mean lora"),
        ({"kind": "lora", "rnak": 4}, "unknown key 'rnak'; did you mean rank"),
        ({"kind": "lora", "rank": 0}, "tune.rank: 0 must be 1 to 4096"),
        ({"kind": "gst", "rank": 10**6}, "tune.rank: 1000000 must be 1 to 4096"),
        ({"kind": "lora", "alpha": 0.0}, "tune.alpha: 0.0 must be above 0"),
        ({"kind": "lora", "dropout": 1.0}, "tune.dropout: 1.0 must be at least 0 and below 1"),
        ({"kind": "lora", "targets": []}, r"tune.targets: \[\] must be one or more of qkv"),
        ({"kind": "lora", "targets": ["qkw"]}, "'qkw' is unknown; did you mean qkv"),
        ({"kind": "gst", "graphs": [0]}, r"tune.graphs: \[0\] must be one or more numbers of parts"),
        ({"kind": "gst", "targets": ["qkv"]}, "tune.targets: .* is a key of lora, and model.tune.kind is gst"),
        ({"rank": 4}, "tune.rank: 4 is a key of lora and gst and dapt, and model.tune.kind is full"),
        ({"kind": "prompt", "prompts": 0}, "tune.prompts: 0 must be 1 to 4096"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        build_model({**MODELS["point-mae"], "tune": keys})


def test_a_head_that_contradicts_the_kind():
    with pytest.raises(UserError, match=r"model.*head: linear does not go with model.tune.kind mlp3"):
        build_model({**MODELS["point-mae"], "head": "linear", "tune": {"kind": "mlp3"}})
    assert build_model({**MODELS["point-mae"], "tune": {"kind": "linear"}}).config.head == "linear"


@pytest.mark.parametrize("kind", INSERTED)
def test_an_encoder_without_blocks(kind, monkeypatch):
    monkeypatch.setattr("models.single_scale.SingleScaleParts.stacks", lambda self: [])
    with pytest.raises(
        UserError, match=f"kind: {kind} acts on transformer blocks, and PointMAEClassifier says of none"
    ):
        build("point-mae", kind)
    build("point-mae", "mlp3")


def test_defaults_are_written_out():
    for kind, keys in DEFAULTS.items():
        resolved = vars(TuneConfig(kind))
        assert {key for key, value in resolved.items() if value is not None} == {"kind", *keys}
    assert TuneConfig("lora", rank=4).alpha == 4.0


def test_full_size():
    """What the published models train: PointGST says 0.6 M, with its head, and DAPT 1.1 M, with a wider one."""
    keys = {"NAME": "PointTransformer", "cls_dim": 15}
    sizes = {kind: counts(build_model({**keys, "tune": {"kind": kind}}))[0] for kind in ("gst", "dapt")}
    assert sizes["gst"] == pytest.approx(0.62e6, rel=0.01) and sizes["dapt"] == pytest.approx(0.97e6, rel=0.01)
