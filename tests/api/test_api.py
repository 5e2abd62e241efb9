"""Models by name, with weights, and transforms of own clouds (`api/`, installed as `m2ae`)."""

import pytest
import torch

import api
from api import transforms
from models import MODELS, build_model
from tests.models.small import SMALL
from tools.launch import load_recipe
from tools.sampling import points_needed, points_taken
from utils import ROOT
from utils.config.load import read_recipe
from utils.config.merge import to_dict
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
    assert {"point_jepa.pretrain", "point_m2ae.pretrain.scenes", "3detr.detect", "3detr.detect.m"} <= set(names)
    assert not [name for name in names if "other" in name]


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


def test_a_mask_that_hides_no_finest_patch_leaves_nothing_to_rebuild():
    """With few coarse patches hidden, each finer one may lie in a visible one, for they overlap."""
    model = api.create_model("point_m2ae.pretrain", weights="mini", mask_ratio=0.1)
    points = torch.rand(1, 256, 3, generator=torch.Generator().manual_seed(0))
    rebuilt = model.reconstruct(points, generator=torch.Generator().manual_seed(0))
    assert rebuilt.masked.sum() == 1 and len(rebuilt.rebuilt[0]) == 0
    assert torch.equal(rebuilt.clouds[0], points[~rebuilt.hidden])


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


def test_features_of_a_classifier_and_a_segmenter(pretrained):
    path, _ = pretrained
    points = torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    classifier = api.create_model("point_m2ae.classify.modelnet40", weights=path, cls_dim=7)
    segmenter = api.create_model("point_m2ae.segment", weights=path, num_parts=4, num_categories=2)
    category = torch.tensor([0, 1])
    with torch.inference_mode():
        assert torch.equal(classifier.head(classifier.encode(points)), classifier(points))
        assert classifier.patch_tokens(points).shape == segmenter.patch_tokens(points).shape == (2, 8, 48)
        log_probs = segmenter(points, category)
        assert torch.equal(segmenter.predict(points, category), log_probs.argmax(-1))
        owned = torch.tensor([[True, True, False, False], [False, False, True, True]])
        named = segmenter.predict(points, category, owned)
        features, summary = segmenter.point_features(points), segmenter.encode(points)
        label = segmenter.embed_label(torch.nn.functional.one_hot(category, 2).float())
        logits = segmenter.classify([features], torch.cat([summary, label], dim=1))
    torch.testing.assert_close(logits.log_softmax(-1), log_probs)
    assert named[0].max() <= 1 and named[1].min() >= 2
    assert torch.equal(named[0], log_probs[0, :, :2].argmax(-1))
    with pytest.raises(UserError, match="rebuilds nothing; take a masked autoencoder"):
        classifier.reconstruct(points)


def test_a_model_that_rebuilds_nothing_says_so():
    keys = read_recipe(ROOT / "cfgs" / "debug" / "point-jepa.yaml")["model"]
    keys.pop("NAME")
    with pytest.raises(UserError, match=r"PointJEPA\.reconstruct: rebuilds nothing"):
        api.create_model("point_jepa.pretrain", **keys).reconstruct(torch.randn(1, 64, 3))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("point_m2ae.pretrain", "published", "point-m2ae-pretrain: is not on this machine .*tools.weights fetch point-m2ae-pretrain"),
        ("Point_M2AE", "published", "point-m2ae-pretrain: is not on this machine"),
        ("point_m2ae.pretrain", "point-m2ae-pretrian", "is neither a file nor the name of weights; did you mean point-m2ae-pretrain"),
        ("point_mae.pretrain", "point-m2ae-pretrain", r"of point_m2ae\.pretrain, and point_mae\.pretrain was asked.*point-mae-pretrain"),
        ("point_m2ae.pretrain", "point-m2ae-modelnet40", r"of point_m2ae\.classify\.modelnet40, and point_m2ae\.pretrain was asked"),
        ("point_mae.classify", "published", r"several published weights fit; choose one of .*point-mae-modelnet40-1k"),
        ("gm3d.pretrain", "published", r"no weights of it are published; there are some of .*point_m2ae\.pretrain"),
        ("gm3d.pretrain", "mini", "there are small weights of .*point-m2ae"),
    ],
)  # fmt: skip
def test_names_of_weights_that_cannot_be_used(name, weights, message, empty_cache):
    with pytest.raises(UserError, match=message):
        api.create_model(name, weights=weights)


def test_published_weights_are_built_by_their_recipe(empty_cache):
    """A published file says nothing about its model: the recipe of the table does, for the transform as well."""
    source = api.create_model("point_mae.classify", cls_dim=15, num_group=128)
    empty_cache.mkdir(parents=True)
    file = empty_cache / "point-mae-scan-pb.pth"
    torch.save({"base_model": {f"module.{key}": value for key, value in source.state_dict().items()}}, file)
    for weights in ("point-mae-scan-pb", file):
        model = api.create_model("point_mae.classify", weights=weights)
        assert (model.config.cls_dim, model.config.num_group) == (15, 128)
        assert torch.equal(model.cls_token, source.cls_token)
        expected = transforms.for_checkpoint(weights, model="point_mae.classify")
        assert (expected.placing, expected.points, expected.up) == ("stored", 2048, "y")
    copy = file.with_name("renamed.pth")
    file.rename(copy)
    with pytest.raises(UserError, match=r"is a checkpoint of point_mae model to classify, and point_mae\.pretrain is"):
        api.create_model("point_mae.pretrain", weights=copy)


def test_the_transform_of_a_checkpoint(tmp_path):
    config = load_recipe("cfgs/debug/point-m2ae.yaml", overrides=["dataset.train.UP_AXIS=z"])
    model = build_model(config.model)
    save_checkpoint(tmp_path / "ours.pth", {"base_model": model.state_dict(), "config": to_dict(config)})
    expected = transforms.for_checkpoint(tmp_path / "ours.pth")
    assert (expected.up, expected.placing) == ("z", "sphere")
    assert expected.points == points_taken(config) and expected.least == points_needed(config.model)
    clouds = torch.randn(2, 4 * expected.points, 3, generator=torch.Generator().manual_seed(0)) * 40 + 7
    brought = expected(clouds, up="y")
    assert brought.shape == (2, expected.points, 3) and model.encode(brought).isfinite().all()
    torch.testing.assert_close(
        brought, transforms.sample(transforms.scale(transforms.turn_up(clouds, "y", to="z")), expected.points)
    )
    few = expected(clouds[:, :5], up="z")
    assert few.shape == (2, expected.least, 3)
    torch.testing.assert_close(few[:, :5], transforms.scale(clouds[:, :5]))
    torch.testing.assert_close(few[:, 5:10], few[:, :5])
    save_checkpoint(tmp_path / "bare.pth", {"base_model": {"x": torch.zeros(1)}})
    with pytest.raises(UserError, match="says nothing about its model"):
        transforms.for_checkpoint(tmp_path / "bare.pth")


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
    for axis in "xyz":
        assert torch.equal(transforms.turn_up(transforms.turn_up(points, "y", to=axis), axis), points)
    assert transforms.sample(points + 1, 2).shape == (1, 2, 3)
    drawn = transforms.sample(points, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(drawn[0].tolist()) == sorted(points[0].tolist())
    with pytest.raises(ValueError, match="count 5 of 4 points"):
        transforms.sample(points, 5)
    with pytest.raises(ValueError, match="axis 'up' is unknown"):
        transforms.turn_up(points, "up")
    with pytest.raises(ValueError, match=r"centre: points must be \(B, N, 3\)"):
        transforms.centre(points[0])
    with pytest.raises(ValueError, match=r"centre: .* got ndarray; convert it by torch\.as_tensor"):
        transforms.scale(points.numpy())
    two = points.repeat(2, 1, 1)
    two[1, 2, 0] = two[1, 3] = torch.nan
    with pytest.raises(ValueError, match="turn_up: cloud 1 holds 2 points that are not finite"):
        transforms.Expected()(two)
