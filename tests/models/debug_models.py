"""Models of the debug recipes of every method, and clouds for them."""

from pathlib import Path

import torch
from torch import nn

from datasets import DATASETS
from models import MODELS, build_model
from tools.embedder import Embedder
from utils.config.load import load_config

ROOT = Path(__file__).parent.parent.parent
METHODS = ("point-m2ae", "point-mae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae", "point-jepa", "pcp-mae")
RECIPES = {"encoder": "cfgs/debug/{}.yaml", "classifier": "cfgs/fine-tuning/{}/debug.yaml"}


def small(method, part="encoder", *overrides):
    """Return the model of a debug recipe with random weights and statistics."""
    config = load_config(
        ROOT / RECIPES[part].format(method), overrides=list(overrides), models=MODELS, datasets=DATASETS
    )
    torch.manual_seed(3)
    model = build_model(config.model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return Embedder(model, config, torch.device("cpu"))


def clouds(count, seed=0):
    """Return clouds with doubled points, which are equally far from everything."""
    points = torch.randn(count, 256, 3, generator=torch.Generator().manual_seed(seed)) * 0.4
    points[:, 200:] = points[:, 100:156]
    return points
