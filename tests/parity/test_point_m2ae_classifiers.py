"""Point-M2AE's classifiers against numbers of the original networks (`data/point-m2ae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data" / "point-m2ae"
NAMES = ("Point_M2AE_ModelNet40", "Point_M2AE_ScanObjectNN")


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    """Every number of the reference, in eval mode: tokens, pooled feature, logits, loss, gradients."""
    ref = dict(np.load(DATA / f"finetune_{name}.npz"))
    model = build_model({"NAME": name}).eval()
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
    for key, norm, head in zip(ref["grad_names"], ref["grad_norms"], ref["grad_first8"], strict=True):
        grad = gradients[str(key)].double()
        assert float(grad.norm()) == pytest.approx(float(norm), rel=1e-3, abs=1e-6), key
        first = grad.flatten()[:8].numpy()
        np.testing.assert_allclose(
            first, head[: len(first)], rtol=1e-2, atol=1e-3 * float(norm) + 1e-6, err_msg=str(key)
        )


@pytest.mark.parametrize("name", NAMES)
def test_published_keys(name):
    """Names, shapes and order are the published ones, and a published fine-tuned checkpoint loads whole."""
    published = json.loads((DATA / f"state_dict_{name}.json").read_text())
    model = build_model({"NAME": name})
    own = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert own == [[key, shape, dtype.removeprefix("torch.")] for key, shape, dtype in published["entries"]]
    assert sum(p.numel() for p in model.parameters()) == published["n_parameters"]
    assert sum(b.numel() for b in model.buffers()) == published["n_buffer_elements"]

    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in published["entries"]}
    report = load_weights(model, {"base_model": weights, "epoch": 300, "metrics": {"acc": torch.tensor(90.0)}})
    assert len(report.used) == 249
    assert not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", NAMES)
def test_pretraining_checkpoint(name, prefix):
    """A published pre-training checkpoint fills `h_encoder`; what is missing or of no use is exactly what is expected."""
    published = json.loads((DATA / "state_dict_Point_M2AE.json").read_text())
    weights = {prefix + key: torch.full(shape, 7.0) for key, shape, _ in published["entries"]}
    model = build_model({"NAME": name})
    untouched = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("h_encoder.")}

    report = load_weights(model, {"base_model": weights, "epoch": 300})

    state = model.state_dict()
    assert report.used == [key for key in state if key.startswith("h_encoder.")] and len(report.used) == 231
    assert report.missing == list(untouched)
    assert {key.split(".")[0] for key in report.missing} == {"norm", "cls_head_finetune"}
    assert not report.unexpected
    assert {".".join(key.split(".")[:2]) if key.startswith("h_enc") else key.split(".")[0] for key in report.ignored} == {
        "h_encoder.encoder_norms", "mask_token", "h_decoder", "decoder_pos_embeds", "token_prop", "decoder_norm", "rec_head",
    }  # fmt: skip
    assert len(report.ignored) == 293 - 231
    assert all((state[key] == 7).all() for key in report.used)
    assert all(torch.equal(state[key], value) for key, value in untouched.items())
