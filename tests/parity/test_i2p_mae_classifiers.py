"""I2P-MAE's classifiers and augmentation against numbers of the original (`data/i2p-mae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.transforms import rotate, scale_translate
from models import build_model, load_weights
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data" / "i2p-mae"
# Keys of the recipe that a file was made with, beside the defaults of its class: fine-tuning/modelnet40 and fine-tuning/scan_pb.
NAMES = {"I2P_MAE_ModelNet40": {}, "I2P_MAE_ScanObjectNN": {"local_radius": [0.48, 0.96, 1.92]}}


def entries(name):
    return json.loads((DATA / f"state_dict_{name}.json").read_text())["entries"]


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    """Every number of the reference, in eval mode: centres, tokens, pooled feature, logits, loss, gradients."""
    ref = dict(np.load(DATA / f"finetune_{name}.npz"))
    model = build_model({"NAME": name, **NAMES[name]}).eval()
    fill_state_dict(model.state_dict())
    stages = {}
    model.h_encoder.register_forward_hook(
        lambda module, inputs, output: stages.update(pyramid=inputs[0], encoded=output)
    )
    model.cls_head_finetune.register_forward_hook(lambda module, inputs, output: stages.update(pooled=inputs[0]))
    logits = model(torch.from_numpy(ref["points"]))
    for scale, step in enumerate((32, 16, 4)):
        np.testing.assert_array_equal(stages["pyramid"].centers[scale].numpy(), ref[f"center{scale}"])
        if scale > 0:
            np.testing.assert_array_equal(stages["pyramid"].idx[scale].numpy(), ref[f"knn_idx{scale}"])
        tokens = stages["encoded"][scale].detach().numpy()[:, ::step]
        np.testing.assert_allclose(tokens, ref[f"enc_raw{scale}__t{step}"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stages["pooled"].detach().numpy(), ref["pooled"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits.detach().numpy(), ref["logits"], rtol=1e-3, atol=2e-5)
    labels = torch.from_numpy(ref["labels"])
    loss = model.loss(logits, labels)
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    assert 100 * (logits.argmax(1) == labels).float().mean().item() == float(ref["acc"])
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert sorted(gradients) == sorted(ref["grad_names"].tolist())
    for key, norm in zip(ref["grad_names"], ref["grad_norms"], strict=True):
        assert float(gradients[str(key)].double().norm()) == pytest.approx(float(norm), rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("name", NAMES)
def test_published_keys_and_checkpoints(name):
    """Keys are the published ones; a pre-training checkpoint with CLIP inside fills the encoder, and nothing is unexpected."""
    model = build_model({"NAME": name})
    own = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert own == [[key, shape] for key, shape, _ in entries(name)]
    weights = {
        f"module.{key}": torch.full(shape, 7.0) for key, shape, _ in entries("I2P_MAE") if ".resblocks." not in key
    }
    report = load_weights(model, {"base_model": weights})
    assert len(report.used) == 231 and not report.unexpected
    assert {key.split(".")[0] for key in report.missing} == {"norm", "cls_head_finetune"}
    assert {"clip_model", "rec_head_3d", "rec_head_2d"} <= {key.split(".")[0] for key in report.ignored}
    assert all((model.state_dict()[key] == 7).all() for key in report.used)


def test_augmentation_with_published_draws():
    """NumPy's stream in the published order gives the reference: pre-training, and a rotation of the whole ScanObjectNN batch."""
    ref = dict(np.load(DATA / "augment.npz"))
    points = torch.from_numpy(ref["points"])

    def draws(stream, low, high, shift):
        pairs = [(stream.uniform(low, high, 3), stream.uniform(-shift, shift, 3)) for _ in points]
        return [torch.from_numpy(np.stack(part)).float() for part in zip(*pairs, strict=True)]

    scale, offset = draws(np.random.RandomState(int(ref["numpy_seed"])), 2 / 3, 3 / 2, 0.2)
    moved = scale_translate(points, scale=scale, offset=offset)
    np.testing.assert_allclose(moved.numpy(), ref["scale_translate"], atol=1e-6)

    stream = np.random.RandomState(int(ref["numpy_seed"]))
    scale, offset = draws(stream, 0.9, 1.1, 0.0)
    scaled = scale_translate(points, scale=scale, offset=offset)
    np.testing.assert_allclose(scaled.numpy(), ref["scan_scale_only"], atol=1e-6)
    stream.uniform()  # the angle about x, whose bound is zero
    angle = torch.full((len(points),), stream.uniform(-np.pi, np.pi))
    np.testing.assert_allclose(rotate(scaled, axis="y", angle=angle).numpy(), ref["scan_scale_then_rotate"], atol=1e-6)
