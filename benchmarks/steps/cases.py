"""The cases of `method_steps.py`: recipes on the built-in set for every task and method, and a run of one with its step taken apart."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import nn

from benchmarks.steps.phases import Clock
from datasets import build_dataset
from datasets.synthetic import CATEGORIES, PART_NAMES
from models import build_model
from models.layers.embed import PatchEmbed
from models.layers.gated import GatedPatchEmbed
from models.layers.transformer import Block
from segmentation.runner import build_segmenter, segmentation_step
from tools.context import RunContext, build_pretraining_model
from tools.engine import StopRequest
from tools.finetune import build_classifier, classification_step
from tools.guides import Guide, build_guide
from tools.launch import load_recipe
from tools.pretrain import DISPLAY, pretraining_step
from tools.steps import Step
from tools.training import Training, open_state
from utils.config.merge import to_dict
from utils.provenance import ROOT

METHODS = ("point-mae", "point-m2ae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae")
TEACHERS = {"gm3d": "Point_MAE", "gm3d-point-m2ae": "Point_M2AE"}
STORED_POINTS = 8192  # of a cloud, as in ShapeNet-55 and ModelNet40; a step draws some of them
FEWEST_CLOUDS = 20  # one a class of the built-in set


class Task(NamedTuple):
    """A way to train.

    recipes: size -> recipe of a method, below `cfgs`.
    flags: of main.py.
    build: run -> model.
    step: (training, guide) -> the step of epoch 0.
    """

    recipes: dict[str, str]
    flags: tuple[str, ...]
    build: Callable[[RunContext], nn.Module]
    step: Callable[[Training, Guide], Step]


TASKS = {
    "pre-training": Task(
        {"published": "pre-training/{}.yaml", "debug": "debug/{}.yaml"},
        (),
        build_pretraining_model,
        lambda training, guide: pretraining_step(training, guide, 0),
    ),
    "fine-tuning": Task(
        {"published": "fine-tuning/{}/modelnet40.yaml", "debug": "fine-tuning/{}/debug.yaml"},
        ("--scratch_model",),
        build_classifier,
        lambda training, _: classification_step(training, 0),
    ),
    "segmentation": Task(
        {"published": "segmentation/{}/shapenet_part.yaml", "debug": "segmentation/{}/debug.yaml"},
        ("--scratch_model",),
        build_segmenter,
        lambda training, _: segmentation_step(training, 0),
    ),
}
SIZES = tuple(TASKS["pre-training"].recipes)


def write_recipe(method: str, batch: int, clouds: int, size: str = "published", task: str = "pre-training") -> None:
    """Write `recipe.yaml`, one of `size` on the built-in set for two epochs, and the weights of a frozen teacher."""
    recipe = to_dict(load_recipe(ROOT / "cfgs" / TASKS[task].recipes[size].format(method)))
    drawn = recipe["dataset"]["train"].get("npoints", 0)
    data = {"NAME": "Synthetic", "N_POINTS": STORED_POINTS, "clouds": clouds, "npoints": drawn}
    sets = {"train": data}
    if task != "pre-training":  # what these tasks judge after the last epoch, which takes no part in the time
        sets["val"] = data | {"subset": "test", "clouds": FEWEST_CLOUDS}
    recipe |= {"dataset": sets, "total_bs": batch, "max_epoch": 2, "max_epoch_inclusive": False}
    model = recipe["model"]
    if task == "segmentation":
        model |= {"num_parts": len(PART_NAMES), "num_categories": len(CATEGORIES)}
    elif task == "pre-training":
        _give_teacher(model, method, size)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def _give_teacher(model: dict, method: str, size: str) -> None:
    """Let the model of a recipe do without weights that are downloaded or trained."""
    if size == "published" and method == "i2p-mae":
        model["teacher"] = {"weights": "random"}
    elif size == "published" and method == "inter-mae":
        model["image_branch"] |= {"weights": "none", "views": 1}
    elif method in TEACHERS and model["guidance"]["mode"] == "feature":
        same = {key: value for key, value in model.items() if key not in ("NAME", "guidance")}
        torch.save({"base_model": build_model({"NAME": TEACHERS[method], **same}).state_dict()}, "teacher.pth")
        model["guidance"]["teacher"] = "teacher.pth"


class Case(NamedTuple):
    """A run that is ready to train, and its step."""

    training: Training
    guide: Guide
    step: Step


def open_case(run: RunContext, task: str) -> Case:
    """Build what a task trains, as its runner does."""
    with run.log:
        model = TASKS[task].build(run).train()
        clouds = build_dataset(run.config.dataset.train)
        guide = build_guide(run, model, clouds) if task == "pre-training" else Guide()
        state = open_state(run, model, ema=guide.ema)
    batches = run.batches(clouds, run.config.total_bs)
    training = Training(run, state, batches, None, StopRequest(), DISPLAY)
    return Case(training, guide, TASKS[task].step(training, guide))


def watch(case: Case, clock: Clock) -> None:
    """Tell a clock when a model groups, embeds and runs its blocks, and when its guide is asked."""
    model = case.training.state.model
    clock.wrap(model, "group", "grouping")
    clock.wrap(case.guide, "prepare", "guidance")
    for module in model.modules():
        if isinstance(module, PatchEmbed | GatedPatchEmbed):
            clock.watch(module, "embedding")
        elif isinstance(module, Block):
            clock.watch(module, "blocks")
