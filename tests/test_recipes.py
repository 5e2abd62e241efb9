"""Every recipe of ours builds, and those of pre-training take a step."""

import contextlib
from pathlib import Path

import pytest
import torch
import yaml

from datasets import DATASETS, build_dataset
from models import MODELS, build_model
from tools.optim import build_optimizer, build_schedule, check_training
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.config.yaml import Loader
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
RECIPES = [path for path in sorted((ROOT / "cfgs").rglob("*.yaml")) if path.parent.name != "dataset"]
TRAINING = [
    path for path in RECIPES if path.relative_to(ROOT / "cfgs").parts[0] in ("pre-training", "quickstart", "debug")
]

SEGMENTING = [path for path in RECIPES if path.relative_to(ROOT / "cfgs").parts[0] == "segmentation"]


def name(path):
    return str(path.relative_to(ROOT / "cfgs"))


def load(path):
    return load_config(path, models=MODELS, datasets=DATASETS)


@pytest.fixture(scope="module")
def built():
    """Return models that have been built, as their keys; many recipes have the same one."""
    return []


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_builds_and_survives_a_round_trip(path, built):
    config = load(path)
    if config.model not in built:
        with torch.device("meta"):
            model = build_model(config.model)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        built.append(config.model)
    assert to_dict(MODELS.config(to_dict(config.model))) == to_dict(config.model)


def keys(tree, above=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from keys(value, (*above, key))
        if key not in ("NAME", "_base_"):
            yield (*above, key)


def without(tree, path):
    return {
        key: without(value, path[1:]) if path[1:] and key == path[0] else value
        for key, value in tree.items()
        if path != (key,)
    }


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_says_only_what_differs_from_its_base_and_the_defaults(path, monkeypatch):
    """Without any one of its keys a recipe is another one, or none."""
    files = {}

    def read(file):
        file = Path(file).resolve()
        files.setdefault(file, yaml.load(file.read_text(), Loader))
        return dict(files[file])

    monkeypatch.setattr("utils.config.load.read_yaml", read)
    whole, tree = load(path), yaml.load(path.read_text(), Loader)
    for key in keys(tree):
        files[path] = without(tree, key)
        with contextlib.suppress(UserError):
            assert load(path) != whole, f"{'.'.join(key)} says again what the base or the default says"


DATA_SETS = sorted((ROOT / "cfgs" / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("path", DATA_SETS, ids=name)
def test_data_set_file_says_only_what_differs_from_the_defaults(path):
    tree = yaml.load(path.read_text(), Loader)
    whole = DATASETS.config(tree)
    for key in keys(tree):
        assert DATASETS.config(without(tree, key)) != whole, key


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_recipe_takes_a_step_on_built_in_data(path):
    config = load(path)
    check_training(config)
    points = min(config.dataset.train.npoints, 8192)
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": points})
    # Of scenes an eighth of the groups is enough here.
    fewer = {"preenc_npoints": 256} if hasattr(config.model, "preenc_npoints") else {}
    model = build_model({**to_dict(config.model), **fewer} if fewer else config.model).train()
    optimizer = build_optimizer(model, config.optimizer)
    rates = [
        build_schedule(config.scheduler, config.optimizer.kwargs.lr)(epoch, 0.0) for epoch in range(config.max_epoch)
    ]
    assert all(0 <= rate <= config.optimizer.kwargs.lr for rate in rates) and sum(rate == 0 for rate in rates) <= 1
    *_, token = (parameter for name, parameter in model.named_parameters() if name.endswith("mask_token"))
    before = token.detach().clone()
    out = model(torch.from_numpy(clouds.points[:2]), generator=torch.Generator().manual_seed(0))
    out["loss"].backward()
    optimizer.step()
    assert torch.isfinite(out["loss"]) and not torch.equal(before, token)


@pytest.mark.parametrize("path", SEGMENTING, ids=name)
def test_segmentation_recipe_takes_a_step_on_built_in_data(path):
    config = load(path)
    check_training(config)
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": 512})
    keys = {"num_parts": len(clouds.part_names), "num_categories": len(clouds.class_names)}
    if min(config.model.prop_widths) > 500:  # as published: a quarter of the widths is enough here
        keys |= {"prop_widths": [96, 64], "head_widths": [width // 16 for width in config.model.head_widths]}
    model = build_model({**to_dict(config.model), **keys}).train()
    optimizer = build_optimizer(model, config.optimizer)
    head = model.seg_head[0] if hasattr(model, "seg_head") else model.convs1
    before = head.weight.detach().clone()
    points, labels = torch.from_numpy(clouds.points[:2]), torch.from_numpy(clouds.labels[:2])
    loss = model.loss(model(points, labels), torch.from_numpy(clouds.part_labels[:2]).long())
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(before, head.weight)
