"""Point-MAE and its classifiers against numbers of the original networks (`data/point-mae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data" / "point-mae"
PRETRAININGS = {"pretrain_rand_cdl2": "cdl2", "pretrain_block_cdl1": "cdl1"}
CLASSIFIERS = {
    "finetune_modelnet": {},
    "finetune_modelnet_8k": {"num_group": 512},
    "finetune_scan_hardest": {"num_group": 128, "cls_dim": 15},
}


def read(name):
    return dict(np.load(DATA / f"{name}.npz"))


def filled(**keys):
    model = build_model(keys).eval()
    fill_state_dict(model.state_dict())
    return model


def thin(ref, name, values):
    """Keep the rows that the reference keeps of `values`: every n-th, or the first ones."""
    if name in ref:
        return ref[name], values[:, :: int(ref[f"{name}_stride"])] if f"{name}_stride" in ref else values
    head = ref[f"{name}_head"]
    return head, values[:, : head.shape[1]]


def check_gradients(model, ref, *, least=6):
    named = dict(model.named_parameters())
    assert sum(p.grad is not None for p in named.values()) == int(ref["n_params_with_grad"])
    names = [key.removeprefix("gradnorm/") for key in ref if key.startswith("gradnorm/")]
    for name in names:
        grad, norm, head = named[name].grad, float(ref[f"gradnorm/{name}"]), ref[f"gradhead/{name}"]
        assert float(grad.double().norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), name
        first = grad.flatten()[: len(head)].numpy()
        np.testing.assert_allclose(first, head, rtol=1e-2, atol=1e-3 * norm + 1e-7, err_msg=name)
    total = torch.stack([p.grad.double().norm() for p in named.values() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(float(ref["gradnorm_total"]), rel=1e-3)
    assert len(names) >= least


@pytest.mark.parametrize("name", PRETRAININGS)
def test_pretraining_forward_and_backward(name):
    """Groups, tokens, rebuilt patches, loss and gradients of a stored mask."""
    ref = read(name)
    model = filled(NAME="Point_MAE", loss=PRETRAININGS[name])
    stages = {}
    model.MAE_encoder.encoder.register_forward_hook(lambda module, inputs, output: stages.update(tokens=output))
    model.MAE_encoder.register_forward_hook(lambda module, inputs, output: stages.update(x_vis=output))
    model.MAE_decoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(dec_out=output))
    points = torch.from_numpy(ref["pts"])
    pyramid = model.group(points)
    np.testing.assert_array_equal(pyramid.centers[0].numpy(), ref["center"])
    np.testing.assert_array_equal(pyramid.idx[0].numpy(), ref["knn_idx"])

    out = model(points, masked=torch.from_numpy(ref["mask"]).bool())
    for stage, values in stages.items():
        expected, ours = thin(ref, stage, values.detach().numpy())
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5, err_msg=stage)
    np.testing.assert_allclose(out["rebuilt"].detach().numpy(), ref["rebuild"], rtol=1e-4, atol=2e-5)
    assert out["loss"].item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    out["loss"].backward()
    check_gradients(model, ref)


def test_block_mask_is_the_neighbourhood_of_one_centre():
    """A stored block mask hides the centres nearest to one of them; ours draws such masks."""
    from models.masking import block_mask

    ref = read("pretrain_block_cdl1")
    centers, stored = torch.from_numpy(ref["center"]), torch.from_numpy(ref["mask"]).bool()
    ours = block_mask(centers, 0.6, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(centers, centers).argsort(-1)[..., :38]  # (B, G, 38)
    for sample in range(len(centers)):
        blocks = torch.zeros(64, 64, dtype=torch.bool).scatter_(1, nearest[sample], True)
        for masked in (stored, ours):
            assert (blocks == masked[sample]).all(1).any()


def test_svm_features():
    ref = read("svm_features")
    model = filled(NAME="Point_MAE")
    points = torch.from_numpy(ref["pts"])
    with torch.no_grad():
        tokens, features = model.patch_tokens(points), model.encode(points)
    expected, ours = ref["tokens_all"], tokens.numpy()[:, :: int(ref["tokens_stride"])]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(tokens.mean(1).numpy(), ref["feat_mean"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(features.numpy(), ref["feat_mean_plus_max"], rtol=1e-4, atol=4e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_forward_and_backward(name):
    ref = read(name)
    model = filled(NAME="PointTransformer", **CLASSIFIERS[name])
    stages = {}
    model.norm.register_forward_hook(lambda module, inputs, output: stages.update(tokens=output))
    model.cls_head_finetune.register_forward_hook(lambda module, inputs, output: stages.update(cls_feature=inputs[0]))
    logits = model(torch.from_numpy(ref["pts"]))
    expected, ours = thin(ref, "tokens", stages["tokens"].detach().numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(stages["cls_feature"].detach().numpy(), ref["cls_feature"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(logits.detach().numpy(), ref["logits"], rtol=1e-4, atol=2e-5)

    labels = torch.from_numpy(ref["label"]).long()
    loss = model.loss(logits, labels)
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    assert 100 * (logits.argmax(1) == labels).float().mean().item() == float(ref["acc"])
    loss.backward()
    check_gradients(model, ref)


def optimizer_for(model, lr, sizes, *, betas=None, token_rule=True):
    """AdamW with the published groups; `sizes` are (tensors, values) without and with decay."""
    from tools.optim import build_optimizer
    from utils.config.schema import OptimizerConfig, OptimizerKwargs

    kwargs = OptimizerKwargs(lr=lr, weight_decay=0.05, betas=betas)
    optimizer = build_optimizer(model, OptimizerConfig(kwargs, token_rule=token_rule))
    found = tuple((len(g["params"]), sum(p.numel() for p in g["params"])) for g in optimizer.param_groups)
    assert sizes is None or found == sizes
    return optimizer


def check_after(model, ref, *, atol):
    state = model.state_dict()
    for key in (key for key in ref if key.startswith("after/")):
        name = key.removeprefix("after/")
        tolerance = 3e-3 if name.endswith("running_mean") else atol
        np.testing.assert_allclose(state[name].flatten()[:16].numpy(), ref[key], rtol=0, atol=tolerance, err_msg=name)


def test_pretraining_steps():
    """Three AdamW steps in training mode, on stored batches and masks."""
    ref = read("train_steps_pretrain")
    model = filled(NAME="Point_MAE", transformer_config={"drop_path_rate": 0.0}).train()
    optimizer = optimizer_for(model, float(ref["lr"]), ((130, 67040), (73, 28939392)))
    for step, tolerance in enumerate((1e-5, 1e-4, 1e-3)):
        optimizer.zero_grad()
        loss = model(torch.from_numpy(ref["pts"][step]), masked=torch.from_numpy(ref["mask"][step]).bool())["loss"]
        assert loss.item() == pytest.approx(float(ref["loss"][step]), rel=tolerance)
        loss.backward()
        optimizer.step()
    check_after(model, ref, atol=2e-5)


def test_finetuning_steps():
    """Three AdamW steps of the classifier, clipped to a norm of 10."""
    ref = read("train_steps_finetune_modelnet")
    model = filled(NAME="PointTransformer", drop_path_rate=0.0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = optimizer_for(model, float(ref["lr"]), ((104, 51880), (58, 22047872)))
    for step, tolerance in enumerate((1e-5, 2e-4, 1e-2)):
        optimizer.zero_grad()
        loss = model.loss(model(torch.from_numpy(ref["pts"][step])), torch.from_numpy(ref["label"][step]).long())
        assert loss.item() == pytest.approx(float(ref["loss"][step]), rel=tolerance)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float(ref["clip"]))
        if step < 2:
            assert float(norm) == pytest.approx(float(ref["grad_norm_before_clip"][step]), rel=1e-3)
        optimizer.step()
    check_after(model, ref, atol=1e-3)


@pytest.mark.parametrize("name, keys", [("pretrain", {"NAME": "Point_MAE"})] + [
    (name, {"NAME": "PointTransformer", **keys}) for name, keys in CLASSIFIERS.items()
])  # fmt: skip
def test_published_keys(name, keys):
    """Names, shapes and order are the published ones, and a published checkpoint loads whole."""
    published = json.loads((DATA / f"state_dict_{name}.json").read_text())
    model = build_model(keys)
    own = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert own == published["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in published["state_dict"]}
    report = load_weights(model, {"base_model": weights, "epoch": 300})
    assert len(report.used) == len(own) and not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_pretraining_checkpoint_into_a_classifier(prefix):
    """The encoder moves over; class token and head are missing, the decoder is of no use, as published."""
    published = json.loads((DATA / "state_dict_pretrain.json").read_text())["state_dict"]
    model = build_model({"NAME": "PointTransformer"})
    report = load_weights(model, {"base_model": {prefix + key: torch.full(shape, 7.0) for key, shape, _ in published}})
    assert {key.split(".")[0] for key in report.missing} == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert {key.split(".")[0] for key in report.ignored} == {
        "mask_token",
        "decoder_pos_embed",
        "MAE_decoder",
        "increase_dim",
    }
    assert len(report.ignored) == 53 and not report.unexpected
    assert all((model.state_dict()[key] == 7).all() for key in report.used)
