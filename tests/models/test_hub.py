"""Models in folders and, without a network, in the cache and the interface of the Hugging Face hub."""

import json
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import api
from models import MODELS, build_model
from models.base import PointModel
from models.classifier import Classifier
from models.point_m2ae import PointM2AE
from tests.models.small import SMALL
from utils.errors import UserError
from utils.files import read_checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(SMALL).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same(model, other):
    assert type(other) is type(model) and other.config == model.config and not other.training
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_folder_round_trip(model, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["NAME"] == "Point_M2AE"
    assert same(model, PointM2AE.from_pretrained(folder)) and same(model, PointModel.from_pretrained(str(folder)))
    assert PointM2AE.from_pretrained(folder, mask_ratio=0.5).config.mask_ratio == 0.5
    # The weights are a checkpoint that brings its model.
    assert same(model, api.create_model("point_m2ae.pretrain", weights=folder / "model.safetensors"))
    assert read_checkpoint(folder / "model.safetensors")["config"]["model"]["NAME"] == "Point_M2AE"
    (folder / "README.md").write_text("own words")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "own words"


def test_every_model_has_the_interface():
    assert all(issubclass(MODELS.entry(name).target, PointModel) for name in MODELS.names())


def test_from_the_cache_of_the_hub(model, folder, tmp_path):
    place = tmp_path / "cache" / "models--someone--small"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    found = PointM2AE.from_pretrained("someone/small", cache_dir=tmp_path / "cache", local_files_only=True)
    assert same(model, found)
    with pytest.raises(
        UserError, match=r"someone/other: is no folder here, and the hub does not give its config\.json"
    ):
        PointM2AE.from_pretrained("someone/other", cache_dir=tmp_path / "cache", local_files_only=True)


def test_push_writes_the_same_files(model, monkeypatch):
    sent = {}

    class HfApi:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return SimpleNamespace(repo_id=f"someone/{repo_id}")

        def upload_folder(self, repo_id, folder_path, **options):
            sent.update(repo_id=repo_id, model=PointM2AE.from_pretrained(folder_path), **options)
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    assert model.push_to_hub("small", token="t", branch="b") == "https://hub/commit"
    assert (sent["repo_id"], sent["token"], sent["revision"]) == ("someone/small", "t", "b") and same(
        model, sent["model"]
    )

    def refuse(*_, **__):
        raise OSError("401 Client Error: Unauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"small: the hub did not take the model: 401.*hf auth login"):
        model.push_to_hub("small")


def test_classes_of_the_mixin_share_the_files(model, folder, tmp_path):
    """What a class that inherits `PyTorchModelHubMixin` reads and writes are these files (docs/export.md)."""

    class Encoder(huggingface_hub.PyTorchModelHubMixin, PointM2AE):
        def __init__(self, **keys):
            super().__init__(MODELS.config(keys))

    read = Encoder.from_pretrained(folder, strict=True)
    assert read.config == model.config and read.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in read.state_dict().items())
    read.save_pretrained(tmp_path / "theirs")
    assert same(model, PointM2AE.from_pretrained(tmp_path / "theirs"))
    assert same(model, PointModel.from_pretrained(tmp_path / "theirs"))


def test_messages(model, folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"is a PointM2AE, not a Classifier; call PointM2AE\.from_pretrained"):
        Classifier.from_pretrained(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        model.save_pretrained(tmp_path / "file" / "below")
    (folder / "config.json").write_text('{"hidden": 3}')
    with pytest.raises(UserError, match="is not of a model of this package"):
        PointM2AE.from_pretrained(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub; folders need nothing"):
        PointM2AE.from_pretrained("someone/small")
