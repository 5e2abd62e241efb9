"""Part segmenters: what their shortcuts leave unchanged, which clouds depend on which, and refused keys and checkpoints."""

import pytest
import torch

from models import build_model, load_weights
from models.layers.propagate import PointPropagation, interpolate
from utils.errors import UserError

SIZES = {"num_parts": 7, "num_categories": 3, "label_width": 8, "prop_widths": [24, 16], "head_widths": [32, 16]}
HIERARCHY = {
    "NAME": "Point_M2AE_SEG", "num_groups": [24, 12, 6], "group_sizes": [6, 4, 4], "encoder_dims": [12, 24, 48],
    "encoder_depths": [1, 1, 1], "embed_widths": [8, 16, 32], "num_heads": 3, "drop_path_rate": 0.0, **SIZES,
}  # fmt: skip
SINGLE = {
    "NAME": "Point_MAE_SEG", "num_group": 12, "group_size": 6, "trans_dim": 24, "encoder_dims": 24,
    "embed_widths": [8, 16, 32], "depth": 3, "num_heads": 3, "taps": [0, 2], "drop_path_rate": 0.0, **SIZES,
}  # fmt: skip
GATED = {**SINGLE, "NAME": "Inter_MAE_SEG"}
MODELS = [HIERARCHY, SINGLE, GATED]


def by_name(config):
    return config["NAME"]


def build(config):
    torch.manual_seed(0)
    return build_model(config)


def clouds(batch=3, points=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, points, 3, generator=draw) * 0.5


@pytest.mark.parametrize("config", MODELS, ids=by_name)
def test_gives_log_probabilities_of_every_point(config):
    model = build(config).eval()
    points, category = clouds(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        log_probs = model(points, category)
        assert log_probs.shape == (3, 40, 7)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 40))
        one_hot = torch.nn.functional.one_hot(category, 3)
        for form in (one_hot, one_hot.float().unsqueeze(1)):
            torch.testing.assert_close(model(points, form), log_probs)
        # In evaluation mode a cloud is judged alone, and the category matters.
        torch.testing.assert_close(model(points[1:2], category[1:2]), log_probs[1:2], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(model(points, torch.tensor([0, 0, 1]))[0], log_probs[0])


@pytest.mark.parametrize("config", MODELS, ids=by_name)
def test_constant_channels_are_multiplied_once_and_nothing_changes(config):
    """The first layer of the head against the product with all channels repeated over the points, forward and backward."""
    model = build(config).eval()
    model.bns1.weight.data.uniform_(0.5, 1.5)
    features, constant = (
        torch.randn(2, 9, model.convs1.in_channels - model.constant_width),
        torch.randn(2, model.constant_width),
    )
    first = [constant.unsqueeze(1).expand(-1, 9, -1), features]
    joined = torch.cat(first if model.summary_first else first[::-1], dim=-1)
    rows = torch.relu(model.bns1(model.convs1(joined).flatten(0, 1)))
    rows = torch.relu(model.bns2(model.convs2(rows)))
    expected = model.convs3(rows).view(2, 9, -1)
    exact = torch.autograd.grad(expected.square().sum(), model.convs1.weight, retain_graph=True)[0]
    for pieces in ([features], features.split([5, features.shape[-1] - 5], dim=-1)):
        found = model.classify(pieces, constant)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        gradient = torch.autograd.grad(found.square().sum(), model.convs1.weight)[0]
        torch.testing.assert_close(gradient, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_widening_before_interpolating_changes_nothing(training):
    torch.manual_seed(0)
    carry = PointPropagation(10, [16, 12]).train(training)
    points, centers, tokens = clouds(), clouds(points=8, seed=1), torch.randn(3, 8, 10)
    found = carry(points, centers, tokens)
    joined = torch.cat([points, interpolate(points, centers, tokens)], dim=-1)  # (B, G, 3 + C)
    plain = PointPropagation(10, [16, 12]).train(training)
    plain.load_state_dict(
        PointPropagation(10, [16, 12]).state_dict()
        | {k: v for k, v in carry.state_dict().items() if "running" not in k}
    )
    rows = joined.flatten(0, 1)
    for conv, norm in zip(plain.mlp_convs, plain.mlp_bns, strict=True):
        rows = torch.relu(norm(conv(rows)))
    torch.testing.assert_close(found.flatten(0, 1), rows, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", MODELS, ids=by_name)
def test_trains_every_parameter_and_learns_one_batch(config):
    model = build(config).train()
    points, category = clouds(), torch.tensor([2, 0, 1])
    parts = (points[..., 0] > 0).long() + 2 * category.clamp(max=1)[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        loss = model.loss(model(points, category), parts)
        loss.backward()
        if step == 0:
            assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_taps_are_the_tokens_after_those_blocks():
    model = build(SINGLE).eval()
    seen = []
    for index in (0, 2):
        model.blocks.blocks[index].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        taken = model.tokens(model.group(clouds()))
    assert len(taken) == 2
    for (_, tokens), raw in zip(taken, seen, strict=True):
        torch.testing.assert_close(tokens, model.norm(raw))


def test_one_cloud_cannot_be_trained_on():
    with pytest.raises(ValueError, match="more than one row while training; raise the batch size"):
        build(HIERARCHY).train()(clouds(batch=1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "keys", "words"),
    [
        (HIERARCHY, {"num_parts": 0}, "model.num_parts: 0 must be at least 1"),
        (HIERARCHY, {"head_widths": []}, "model.head_widths"),
        (HIERARCHY, {"prop_widths": [8, 0]}, "model.prop_widths"),
        (HIERARCHY, {"num_groups": [24, 12, 2], "group_sizes": [6, 4, 2]}, "2 groups are too few"),
        (HIERARCHY, {"legacy": ["flat_token"]}, "legacy: flat_token is unknown"),
        (SINGLE, {"taps": [0, 1]}, "model.taps"),
        (SINGLE, {"taps": [2, 0]}, "model.taps"),
        (SINGLE, {"taps": []}, "model.taps"),
        (SINGLE, {"num_categories": 0}, "model.num_categories"),
    ],
)
def test_refused_keys(config, keys, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        build_model({**config, **keys})


def classifier(config):
    names = {
        "Point_M2AE_SEG": "Point_M2AE_ModelNet40",
        "Point_MAE_SEG": "PointTransformer",
        "Inter_MAE_SEG": "Inter_MAE_Classifier",
    }
    own = {key: value for key, value in config.items() if key not in (*SIZES, "taps")}
    return build_model({**own, "NAME": names[config["NAME"]]})


@pytest.mark.parametrize("config", MODELS, ids=by_name)
def test_refuses_checkpoints_of_classifiers_and_other_encoders(config):
    model = build(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match="is a checkpoint of a fine-tuned classifier"):
        load_weights(model, {"base_model": classifier(config).state_dict()})
    other = SINGLE if config is HIERARCHY else HIERARCHY
    with pytest.raises(
        UserError, match=f"is a checkpoint of .*m.*ae, and {type(model).__name__} is a model of {model.method}"
    ):
        load_weights(model, {"base_model": build_model(other).state_dict()})
    bigger = build_model({**config, "num_parts": 9})
    with pytest.raises(UserError, match="have another shape"):
        load_weights(model, {"base_model": bigger.state_dict()})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


INNER = {key: SINGLE[key] for key in ("trans_dim", "encoder_dims", "embed_widths", "depth", "num_heads")}
PATCHES = {"num_group": 12, "group_size": 6}
SCALES = {key: HIERARCHY[key] for key in HIERARCHY if key not in ("NAME", "drop_path_rate", *SIZES)}
# Pre-training models, and the segmenters that start from their checkpoints.
PRETRAINED = {
    "GM3D": ({**PATCHES, "transformer_config": {**INNER, "decoder_num_heads": 3}}, SINGLE),
    "Inter_MAE": (
        {
            **PATCHES,
            "transformer_config": {**INNER, "decoder_embed_dim": 12, "decoder_depth": 1, "decoder_num_heads": 3},
        },
        GATED,
    ),
    "GM3D_Point_M2AE": ({**SCALES, "decoder_dims": [48, 24]}, HIERARCHY),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_starts_from_the_other_methods(name):
    """The encoder of the segmenter gives the very tokens that the pre-training model gives."""
    keys, config = PRETRAINED[name]
    torch.manual_seed(1)
    source, model = build_model({"NAME": name, **keys}).eval(), build(config).eval()
    report = load_weights(model, {"base_model": source.state_dict()})
    assert all(key.startswith(model.HEAD) for key in report.missing) and not report.unexpected
    assert len(report.used) + len(report.missing) == len(model.state_dict())
    if name != "GM3D_Point_M2AE":  # whose attention is local here and global there
        with torch.no_grad():
            tokens = model.tokens(model.group(clouds()))[-1][1]
            torch.testing.assert_close(tokens, source.patch_tokens(clouds()), atol=1e-5, rtol=1e-5)


def test_a_published_checkpoint_of_i2p_mae_fits():
    keys = [key for key in build(HIERARCHY).state_dict() if key.startswith("h_encoder.")]
    weights = {key: torch.full_like(value, 2) for key, value in build(HIERARCHY).state_dict().items() if key in keys}
    others = ("mask_token", "h_decoder.0.x", "rec_head_3d.weight", "rec_head_2d.bias", "clip_model.logit_scale")
    report = load_weights(build(HIERARCHY), {"base_model": weights | {key: torch.zeros(1) for key in others}})
    assert len(report.used) == len(keys) and len(report.ignored) == len(others) and not report.unexpected


def test_old_patch_encoder_is_legacy():
    """As released, Inter-MAE's segmenter has Point-MAE's patch embedding: the gate is dropped, biases keep their first values."""
    keys, config = PRETRAINED["Inter_MAE"]
    source = build_model({"NAME": "Inter_MAE", **keys})
    plain, old = build(config), build({**config, "legacy": ["old_patch_encoder"]})
    assert "encoder.first_trans.q_conv.weight" in plain.state_dict()
    single = build(SINGLE).state_dict()
    assert {key: value.shape for key, value in old.state_dict().items()} == {
        key: value.shape for key, value in single.items()
    }
    biases = [key for key in single if key.startswith("encoder.") and key.endswith((".0.bias", ".3.bias"))]
    before = {key: old.state_dict()[key].clone() for key in biases}
    report = load_weights(old, {"base_model": source.state_dict()})
    assert {key for key in report.missing if not key.startswith(old.HEAD)} == set(biases) and len(biases) == 4
    assert any(key.startswith("encoder.first_trans.") for key in report.ignored) and not report.unexpected
    assert all(torch.equal(old.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(UserError, match="lacks"):
        load_weights(
            plain, {"base_model": {k: v for k, v in source.state_dict().items() if "second_conv.0.weight" not in k}}
        )
