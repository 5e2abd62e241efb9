"""What every model promises: double precision, gradients to the points, messages, reconstruction; and what the folder promises."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from datasets.scenes import targets, whole
from models import MODELS, build_model, import_methods, load_weights
from models.base import MaskedAutoencoder, PretrainingModel
from models.classifier import Classifier
from models.detr import Detector
from models.segmenter import PartSegmenter
from models.weights import method_of
from tests.models.small import SMALL
from utils.errors import UserError

FOLDER = Path(models.__file__).parent
SCALES = {key: SMALL[key] for key in SMALL if not key.startswith("decoder") and key != "NAME"}
WIDTHS = {
    "trans_dim": 24,
    "encoder_dims": 24,
    "embed_widths": [8, 16, 24],
    "depth": 2,
    "num_heads": 3,
    "drop_path_rate": 0.0,
}
PATCHES = {"num_group": 16, "group_size": 8}
PARTS = {"num_parts": 5, "num_categories": 3, "label_width": 8, "prop_widths": [24, 16], "head_widths": [16, 12]}
SINGLE = {**PATCHES, "transformer_config": {**WIDTHS, "decoder_depth": 1, "decoder_num_heads": 3}}
NARROW = {**SINGLE["transformer_config"], "decoder_embed_dim": 12}
DRY = {"dropout": 0.0, "attention_dropout": 0.0}
PREDICTOR_DRY = {f"predictor_{key}": 0.0 for key in ("drop_out", "attention_dropout", "drop_path_rate")}
SCENES = {
    "preenc_npoints": 32, "preenc_radius": 0.4, "preenc_samples": 8, "preenc_widths": [8, 16], "enc_dim": 24, "enc_ffn_dim": 12,
    "interim_radius": 0.8, "interim_samples": 4, "mask_radii": [0.4, 0.8, 1.2],
}  # fmt: skip
DETECTOR = {"dec_nlayers": 2, "dec_dim": 24, "dec_ffn_dim": 24, "nqueries": 8, "num_classes": 3}
GUIDANCE = {"depth": 1, "width": 32}
KEYS = {
    "Point_MAE": SINGLE,
    "Point_M2AE": SMALL,
    "I2P_MAE": {**SMALL, "teacher": {"name": "vit_base_patch16_224"}},
    "Inter_MAE": {**SINGLE, "transformer_config": NARROW},
    "PCP_MAE": {**SINGLE, "add_detach": False},  # differences know no stopped gradient
    "GM3D": {**SINGLE, "guidance": GUIDANCE},
    "GM3D_Point_M2AE": {**SMALL, "guidance": GUIDANCE},
    "PointTransformer": {**PATCHES, **WIDTHS, "cls_dim": 4},
    "Inter_MAE_Classifier": {**PATCHES, **WIDTHS, "cls_dim": 4},
    "PCP_MAE_Classifier": {**PATCHES, **WIDTHS, "cls_dim": 4},
    "GM3D_PointTransformer": {**PATCHES, **WIDTHS, "cls_dim": 4},
    "Point_M2AE_ModelNet40": {**SCALES, "cls_dim": 4},
    "Point_M2AE_ScanObjectNN": {**SCALES, "cls_dim": 4},
    "I2P_MAE_ModelNet40": {**SCALES, "cls_dim": 4},
    "I2P_MAE_ScanObjectNN": {**SCALES, "cls_dim": 4},
    "Point_MAE_SEG": {**PATCHES, **WIDTHS, **PARTS, "taps": [0, 1]},
    "Inter_MAE_SEG": {**PATCHES, **WIDTHS, **PARTS, "taps": [0, 1]},
    "PCP_MAE_SEG": {**PATCHES, **WIDTHS, **PARTS, "taps": [0, 1]},
    "Point_M2AE_SEG": {**SCALES, **PARTS},
    "Point_JEPA": {**PATCHES, **WIDTHS, **DRY, "predictor_embed_dim": 12, "predictor_depth": 1, "predictor_heads": 3, **PREDICTOR_DRY},
    "PointJepaClassification": {**PATCHES, **WIDTHS, **DRY, "cls_dim": 4},
    "3DETR": {**SCENES, **DETECTOR},
    "3DETR_M": {**SCENES, **DETECTOR},
    "Point_M2AE_Scenes": SCENES,
    "PointJepaPartSegmentation": {**PATCHES, **WIDTHS, **DRY, **PARTS, "taps": [0, 1]},
}  # fmt: skip
PRETRAINING = tuple(name for name in KEYS if issubclass(MODELS.entry(name).target, MaskedAutoencoder))


def build(name, **keys):
    torch.manual_seed(0)
    model = build_model({**KEYS[name], "NAME": name, **keys})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # what it drops depends on the dtype
    return model


def clouds(batch=3, dtype=torch.float32):
    return (torch.randn(batch, 100, 3, generator=torch.Generator().manual_seed(1)) * 0.5).to(dtype)


def outcome(model, points, masked=None, pyramid=None):
    """Return a scalar that a model makes of points."""
    if isinstance(model, PretrainingModel):
        return model(points, masked, pyramid=pyramid, generator=torch.Generator().manual_seed(2))["loss"]
    if isinstance(model, PartSegmenter):
        return model.loss(
            model(points, torch.tensor([0, 1, 2])[: len(points)], pyramid=pyramid), torch.zeros(points.shape[:2]).long()
        )
    if isinstance(model, Detector):
        return model.loss(model(points, groups=pyramid), TARGETS)["loss"]
    return model.loss(model(points, pyramid=pyramid), torch.arange(len(points)))


BOXES = np.array([[0.2, 0.1, 0.0, 0.5, 0.4, 0.6, 1, 1], [-0.3, 0.4, 0.2, 0.3, 0.9, 0.4, 2, 2]])
TARGETS = {
    key: torch.from_numpy(value).expand(3, *value.shape)
    for key, value in targets(whole(clouds()[0].numpy(), BOXES)).items()
}


def test_every_model_is_here():
    assert set(KEYS) == set(MODELS.names())
    for name in MODELS.names():
        kinds = [
            kind
            for kind in (PretrainingModel, Classifier, PartSegmenter, Detector)
            if issubclass(MODELS.entry(name).target, kind)
        ]
        assert len(kinds) == 1, name


@pytest.mark.parametrize("name", KEYS)
def test_double_precision(name):
    """A model in float64 computes in float64 throughout, of points in any dtype, and trains."""
    model, single = build(name).double().train(), build(name).train()
    points = clouds(dtype=torch.float64)
    loss = outcome(model, points)
    assert loss.dtype == torch.float64 and all(level.dtype == torch.float64 for level in model.group(clouds()).centers)
    loss.backward()
    assert all(p.grad.dtype == torch.float64 for p in model.parameters() if p.grad is not None)
    assert outcome(single, points).item() == pytest.approx(loss.item(), rel=2e-4)
    assert torch.isfinite(outcome(model.eval(), clouds()))


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision_are_refused(name, dtype):
    model = build(name).to(dtype)
    with pytest.raises(
        ValueError, match=rf"{type(model).__name__}: weights are {dtype}.*torch\.autocast.*--precision bf16"
    ):
        outcome(model, clouds().to(dtype))


@pytest.mark.parametrize("name", KEYS)
def test_gradients_reach_the_points(name):
    """Against differences along a random direction, where sampling and neighbours are constants: none of them changes on so short a way."""
    model = build(name).double().eval()
    points = clouds(dtype=torch.float64).requires_grad_()
    masked = model.draw_mask(model.group(points)) if isinstance(model, PretrainingModel) else None
    if name == "Point_JEPA":  # no gradient runs through its teacher
        taught = model.teach(*(values.detach() for values in model.embed(model.group(points))))
        model.teach = lambda tokens, position: taught
    if isinstance(model, Detector):  # nor through its embeddings of positions
        embedded: list = []
        hook = model.pos_embedding.register_forward_hook(lambda *call: embedded.append(call[-1]))
        model(points)
        hook.remove()
        positions = itertools.cycle(embedded)
        model.pos_embedding.forward = lambda normalized: next(positions)
    direction = torch.randn(points.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def check(function):
        (grad,) = torch.autograd.grad(function(points), points)
        step = 1e-7
        with torch.no_grad():
            ahead, back = (function(points + sign * step * direction) for sign in (1, -1))
        expected = ((ahead - back) / (2 * step)).item()
        assert grad.any() and (grad * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)

    check(lambda x: outcome(model, x, masked))
    if not isinstance(model, PartSegmenter | Detector):
        check(lambda x: model.patch_tokens(x)[..., ::3].sum())  # the sum of all is that of a norm, which is constant
    if isinstance(model, PretrainingModel):
        check(lambda x: model.encode(x)[..., ::3].sum())


@pytest.mark.parametrize("name", PRETRAINING)
def test_reconstruct(name):
    """Points in, points out: what was shown is kept to the bit, the rest is made; a mask replays; the model is left as it was."""
    model, points = build(name).train(), clouds()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    out = model.reconstruct(points, generator=torch.Generator().manual_seed(0))
    assert out.masked.sum(1).tolist() == [model.masked_count] * 3 and out.hidden.shape == (3, 100)
    pyramid = model.group(points)
    for sample, (cloud, made) in enumerate(zip(out.clouds, out.rebuilt, strict=True)):
        shown = points[sample][~out.hidden[sample]]
        assert torch.equal(cloud[: len(shown)], shown) and torch.equal(cloud[len(shown) :], made) and len(made)
        finest = model.mask(pyramid, out.masked)[0].visible[sample]
        assert set((~out.hidden[sample]).nonzero()[:, 0].tolist()) == set(
            pyramid.idx[0][sample][finest].flatten().tolist()
        )
    again = model.reconstruct(points, out.masked)
    assert all(torch.equal(a, b) for a, b in zip(out.clouds, again.clouds, strict=True))
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["Point_MAE", "Point_M2AE_ModelNet40", "Point_M2AE_SEG"])
def test_what_group_refuses(name):
    model = build(name)
    for points, message in (
        (
            np.zeros((2, 100, 3), np.float32),
            "group: points must be a tensor, got ndarray; convert it by torch.as_tensor",
        ),
        (clouds()[:0], r"group: points holds no clouds, shape \(0, 100, 3\); leave out empty batches"),
        (
            torch.zeros(2, 100, 3, dtype=torch.int64),
            r"group: points must be floating, got torch.int64; call .float\(\)",
        ),
        (clouds()[0], r"group: points must be \(B, N, 3\), got \(100, 3\)"),
        (clouds()[:, :5], "from 5 points a cloud; sample more points"),
    ):
        with pytest.raises(ValueError, match=message):
            outcome(model, points)


@pytest.mark.parametrize("name", PRETRAINING)
def test_masks_that_are_refused(name):
    model, points = build(name), clouds()
    shape = model.draw_mask(model.group(points)).shape
    for masked, message in (
        (torch.ones(3, 5, dtype=torch.bool), rf"{model.method}: masked must be \(3, {shape[1]}\) bool, got \(3, 5\)"),
        (torch.ones(shape), r"bool, got .* torch.float32"),
        (torch.zeros(shape, dtype=torch.bool), "give a mask with as many hidden groups as the mask ratio says"),
        (torch.ones(shape, dtype=torch.bool), f"masked hides every group; hide {model.masked_count} in each sample"),
    ):
        with pytest.raises(ValueError, match=message):
            model(points, masked)


def test_data_dependent():
    assert [name for name in KEYS if build(name).data_dependent is not None] == ["Point_JEPA", "3DETR", "3DETR_M"]
    assert "emd" in build("Point_MAE", loss="emd").data_dependent
    assert "near_padding" in build("GM3D_Point_M2AE", legacy=["near_padding"]).data_dependent


def test_one_stage_decodes_in_the_order_of_the_groups():
    """With the coarsest scale decoded alone, hidden patches are compared with themselves, not with those of another order."""
    model = build("Point_M2AE", decoder_dims=[48], decoder_depths=[1], decoder_up_blocks=[]).eval()
    points = clouds()
    out = model(points, generator=torch.Generator().manual_seed(0))
    pyramid = model.group(points)
    masks = model.mask(pyramid, out["masked"])
    tokens = model.decode(pyramid, masks, model.encode_visible(pyramid, masks))
    expected = model.rec_head(tokens[out["masked"]]).view_as(out["rebuilt"])
    assert torch.equal(out["centers"], pyramid.centers[-1][out["masked"]])
    torch.testing.assert_close(out["rebuilt"], expected)
    # Attention and MLP treat groups alike: a pyramid in another order gives the same patches in that order.
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    turned = pyramid._replace(
        **{key: [*getattr(pyramid, key)[:-1], getattr(pyramid, key)[-1][:, order]] for key in pyramid._fields}
    )
    again = model(points, out["masked"][:, order], pyramid=turned)
    patches, moved = (torch.zeros(3, 8, 8, 3) for _ in range(2))
    patches[out["masked"]], moved[again["masked"]] = out["rebuilt"], again["rebuilt"]
    torch.testing.assert_close(moved, patches[:, order], rtol=1e-4, atol=1e-5)


def test_our_checkpoints_say_their_method():
    """A fine-tuned checkpoint of I2P-MAE has the keys of Point-M2AE's; its configuration tells them apart."""
    model = build("I2P_MAE_ModelNet40")
    weights = {"base_model": model.state_dict()}
    assert method_of(weights) == "point-m2ae"
    assert method_of({**weights, "config": {"model": {"NAME": "I2P_MAE_ModelNet40"}}}) == "i2p-mae"
    assert method_of({**weights, "config": {"model": {"NAME": "unheard of"}}}) == "point-m2ae"
    assert not load_weights(build("I2P_MAE_ModelNet40"), weights).missing
    with pytest.raises(UserError, match="is a checkpoint of point-m2ae, and I2PMAEClassifier is a model of i2p-mae"):
        load_weights(model, {"base_model": build("Point_M2AE").state_dict()})


TOY = """
from dataclasses import dataclass
from models.registry import MODELS
{extra}
@dataclass
class Config:
    NAME: str = "{name}"

@MODELS.register("{name}", config=Config)
class Toy:
    method = "toy"
"""


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("Point_MAE", "", r"registered twice, by .*point_mae\.py and by .*toy_method\.py; choose another NAME"),
        ("Toy", "import nothing_like_this", r"ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("Toy", "raise RuntimeError('boom')", r"RuntimeError: boom"),
        ("Toy", "def", r"SyntaxError"),
    ],
)
def test_a_method_file_that_does_not_import_is_named(name, extra, message, tmp_path, monkeypatch):
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "toy_method.py").write_text(TOY.format(name=name, extra=extra))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"methods/toy_method\.py: cannot be imported \(.*{message}"):
        import_methods(folder, "methods")
    assert "Toy" not in MODELS
    for module in [key for key in __import__("sys").modules if key.split(".")[0] == "methods"]:
        del __import__("sys").modules[module]


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: str(file.relative_to(FOLDER)))
def test_models_do_not_ask_where_they_run(file):
    """Whatever depends on a device, an instruction set or the compiler is an op."""
    asks = r"is_cuda|is_cpu|is_meta|device\.type\s*[!=]=|is_compiling|\bbackend\(|can_fuse|cuda\.is_available|get_device_capability"
    found = [line for line in file.read_text(encoding="utf-8").splitlines() if re.search(asks, line)]
    if file.parent.name != "images":  # the image teacher's precision is a published choice by device
        assert not found
