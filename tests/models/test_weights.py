"""Loading checkpoints: ours and published ones, and everything that must not load silently."""

import pytest
import torch

from models import build_model, load_weights
from models.weights import method_of
from tests.models.small import SMALL
from utils.errors import UserError


@pytest.fixture
def model():
    return build_model(SMALL)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", [None, "base_model", "state_dict", "model_state_dict"])
def test_layouts(model, tmp_path, prefix, container):
    source = build_model(SMALL)
    weights = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save(weights if container is None else {container: weights, "epoch": 3}, path)
    report = load_weights(model, path)
    assert len(report.used) == len(weights) and "tensors used" in str(report)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_nothing_fits(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"checkpoint of point-mae, and PointM2AE is a model of point-m2ae"):
        load_weights(model, {"base_model": {"module.MAE_encoder.norm.weight": torch.zeros(3)}})
    with pytest.raises(UserError, match="holds no tensors"):
        load_weights(model, {"epoch": 3})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_wrong_shape_names_the_tensor(model):
    weights = dict(build_model({**SMALL, "encoder_dims": [24, 24, 48]}).state_dict())
    with pytest.raises(UserError, match=r"another shape .*token_embed\.0\.second_conv\.3\.weight"):
        load_weights(model, weights)


def test_missing_and_unexpected(model):
    weights = dict(model.state_dict())
    weights["extra.weight"] = torch.zeros(2)
    assert load_weights(model, weights).unexpected == ["extra.weight"]
    weights.pop("decoder_norm.weight")
    with pytest.raises(UserError, match=r"lacks 1 tensors .*decoder_norm\.weight"):
        load_weights(model, weights)
    assert load_weights(model, weights, allow_missing=("decoder_norm.",)).missing == ["decoder_norm.weight"]


def test_methods_are_told_apart(model):
    assert method_of({"base_model": model.state_dict()}) == "point-m2ae"
    assert method_of({"state_dict": {"module.MAE_encoder.norm_p.weight": torch.zeros(1)}}) == "gm3d"
    assert method_of({"base_model": {"MAE_encoder.encoder.first_trans.q_conv.weight": torch.zeros(1)}}) == "inter-mae"
    assert method_of({"base_model": {"MAE_encoder.encoder.first_conv.0.weight": torch.zeros(1)}}) == "point-mae"
    assert method_of({"base_model": {"rec_head_3d.weight": torch.zeros(1), "h_encoder.x": torch.zeros(1)}}) == "i2p-mae"
    assert method_of({"a": torch.zeros(1)}) is None


def test_a_report_names_modules_and_never_the_encoder_where_only_a_part_of_it_is_meant(model):
    config = {key: value for key, value in SMALL.items() if not key.startswith(("decoder", "mask"))}
    classifier = build_model({**config, "NAME": "Point_M2AE_ModelNet40", "cls_dim": 5})
    text = str(load_weights(classifier, {"base_model": model.state_dict()}))
    used, missing, ignored = text.split("; ")
    assert "h_encoder" in used and "tensors used (" in used
    assert missing.endswith("missing (cls_head_finetune, norm), which start untrained")
    assert "h_encoder.encoder_norms" in ignored and "h_encoder," not in ignored and "h_decoder" in ignored
    assert ignored.endswith("which it does not need")
