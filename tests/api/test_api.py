"""Models by name, with weights, and transforms of own clouds (`api/`, installed as `m2ae`)."""

import pytest
import torch

import api
from api import transforms
from models import MODELS, build_model
from tests.models.small import SMALL
from utils.errors import UserError
from utils.files import save_checkpoint


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(1)
    model = build_model(SMALL)
    save_checkpoint(tmp_path / "ours.pth", {"base_model": model.state_dict(), "config": {"model": SMALL}})
    return tmp_path / "ours.pth", model.eval()


def test_every_registered_model_has_a_name():
    names = api.list_models()
    assert len(names) == len(set(names)) == len(MODELS.names())
    assert {"point_m2ae.pretrain", "point_m2ae.classify.modelnet40", "point_mae.classify", "inter_mae.segment"} <= set(
        names
    )


def test_weights_bring_their_size(pretrained):
    path, source = pretrained
    model = api.create_model("point_m2ae.pretrain", weights=path, mask_ratio=0.5)
    assert not model.training and model.config.mask_ratio == 0.5
    points = torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    with torch.inference_mode():
        assert torch.equal(model.encode(points), source.encode(points))
        assert torch.equal(model.patch_tokens(points), source.patch_tokens(points))
    rebuilt = model.reconstruct(points, generator=torch.Generator().manual_seed(0))
    assert rebuilt.hidden.shape == (2, 128) and rebuilt.hidden.any() and len(rebuilt.clouds) == 2


def test_a_classifier_and_a_segmenter_start_from_an_encoder(pretrained):
    path, source = pretrained
    points = torch.randn(2, 128, 3) * 0.4
    classifier = api.create_model("point_m2ae.classify.modelnet40", weights=path, cls_dim=7)
    segmenter = api.create_model("point_m2ae.segment", weights=path, num_parts=9)
    with torch.inference_mode():
        assert classifier(points).shape == (2, 7)
        assert segmenter(points, torch.zeros(2, dtype=torch.int64)).shape == (2, 128, 9)
    for model in (classifier, segmenter):
        own = model.state_dict()
        shared = [key for key in source.state_dict() if key.startswith("h_encoder.") and key in own]
        assert shared and all(torch.equal(own[key], source.state_dict()[key]) for key in shared)


def test_messages(pretrained, tmp_path):
    path, _ = pretrained
    with pytest.raises(UserError, match=r"'point_m2ae\.pretrian' is unknown; did you mean point_m2ae\.pretrain"):
        api.create_model("point_m2ae.pretrian")
    with pytest.raises(UserError, match="did you mean mask_ratio"):
        api.create_model("point_m2ae.pretrain", mask_ration=0.5)
    classifier = api.create_model("point_m2ae.classify.modelnet40", weights=path)
    keys = {"NAME": "Point_M2AE_ModelNet40"}
    save_checkpoint(tmp_path / "cls.pth", {"base_model": classifier.state_dict(), "config": {"model": keys}})
    for name in ("point_m2ae.pretrain", "point_m2ae.segment"):
        with pytest.raises(
            UserError, match=r"cls\.pth: is a checkpoint of point_m2ae\.classify\.modelnet40, and point_m2ae"
        ):
            api.create_model(name, weights=tmp_path / "cls.pth")
    with pytest.raises(UserError, match="is a checkpoint of point-m2ae"):
        api.create_model("point_mae.pretrain", weights=path)


def test_transforms_of_own_clouds():
    points = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 0, 4], [2, 0, 4]]])
    centred = torch.tensor([[[-1.0, 0, -2], [1, 0, -2], [-1, 0, 2], [1, 0, 2]]])
    assert torch.equal(transforms.centre(points), centred)
    torch.testing.assert_close(transforms.scale(points), centred / 5**0.5)
    turned = transforms.turn_up(points, "z")
    assert turned[0, 2].tolist() == [0, 4, 0] and turned[0, 1].tolist() == [2, 0, 0]
    assert torch.equal(transforms.turn_up(points, "y"), points)
    assert transforms.sample(points + 1, 2).shape == (1, 2, 3)
    drawn = transforms.sample(points, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(drawn[0].tolist()) == sorted(points[0].tolist())
    with pytest.raises(ValueError, match="count 5 of 4 points"):
        transforms.sample(points, 5)
    with pytest.raises(ValueError, match="axis 'up' is unknown"):
        transforms.turn_up(points, "up")
    with pytest.raises(ValueError, match=r"centre: points must be \(B, N, 3\)"):
        transforms.centre(points[0])
