"""The cases of `method_steps.py`: recipes on the built-in set for every task and method, and a run of one with its step taken apart."""

from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from benchmarks.steps.phases import Clock
from datasets import build_dataset
from datasets.synthetic import CATEGORIES, PART_NAMES
from models import build_model
from models.layers.embed import PatchEmbed
from models.layers.gated import GatedPatchEmbed
from models.layers.transformer import Block
from segmentation.runner import PartSegmentation
from tools.context import RunContext, build_pretraining_model
from tools.doctor import methods
from tools.finetune import Classification
from tools.guides.base import Guide, build_guide
from tools.launch import load_recipe
from tools.pretrain import Pretraining, pretraining
from tools.session import open_state
from tools.supervised import Sets
from tools.train import StopRequest, Trainer
from utils.config.merge import to_dict
from utils.provenance import ROOT

METHODS = tuple(methods())
TEACHERS = {"gm3d": "Point_MAE", "gm3d-point-m2ae": "Point_M2AE"}
STORED_POINTS = 8192  # of a cloud, as in ShapeNet-55 and ModelNet40; a step draws some of them
FEWEST_CLOUDS = 20  # one a class of the built-in set


class Task(NamedTuple):
    """A way to train.

    recipes: size -> recipe of a method, below `cfgs`.
    flags: of main.py.
    kind: what trains it.
    """

    recipes: dict[str, str]
    flags: tuple[str, ...]
    kind: type


TASKS = {
    "pre-training": Task(
        {"published": "pre-training/{}.yaml", "debug": "debug/{}.yaml"},
        (),
        Pretraining,
    ),
    "fine-tuning": Task(
        {"published": "fine-tuning/{}/modelnet40.yaml", "debug": "fine-tuning/{}/debug.yaml"},
        ("--scratch_model",),
        Classification,
    ),
    "segmentation": Task(
        {"published": "segmentation/{}/shapenet_part.yaml", "debug": "segmentation/{}/debug.yaml"},
        ("--scratch_model",),
        PartSegmentation,
    ),
}
SIZES = tuple(TASKS["pre-training"].recipes)


def write_recipe(method: str, batch: int, clouds: int, size: str = "published", task: str = "pre-training") -> None:
    """Write `recipe.yaml`, one of `size` on the built-in set for two epochs, and the weights of a frozen teacher."""
    recipe = to_dict(load_recipe(ROOT / "cfgs" / TASKS[task].recipes[size].format(method)))
    drawn = recipe["dataset"]["train"].get("npoints", 0)
    data = {"NAME": "Synthetic", "N_POINTS": STORED_POINTS, "clouds": clouds, "npoints": drawn}
    sets = {"train": data}
    if task != "pre-training":  # what these tasks evaluate after the last epoch, which takes no part in the time
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
    """A run that is ready to train."""

    trainer: Trainer
    guide: Guide | None  # of a method that has one


def open_case(run: RunContext, name: str) -> Case:
    """Build what a task trains, as its command does."""
    kind = TASKS[name].kind
    with run.log:
        clouds = build_dataset(run.config.dataset.train)
        if kind is Pretraining:
            model = build_pretraining_model(run).train()
            guide = build_guide(run, model, clouds)
            task = pretraining(run, model, clouds, guide)
        else:
            guide = None
            task = kind(run, kind.build_model(run).train(), Sets(clouds, clouds))
        state = open_state(run, task.model, ema=task.ema)
    batches = run.batches(clouds, run.config.total_bs)
    return Case(Trainer(task, state, batches, writer=None, stop=StopRequest()), guide)


def watch(case: Case, clock: Clock) -> None:
    """Tell a clock when a model groups, embeds and runs its blocks, and when its guide is asked."""
    model = case.trainer.state.model
    clock.wrap(model, "group", "grouping")
    if case.guide is not None:
        clock.wrap(case.guide, "prepare", "guidance")
    for module in model.modules():
        if isinstance(module, PatchEmbed | GatedPatchEmbed):
            clock.watch(module, "embedding")
        elif isinstance(module, Block):
            clock.watch(module, "blocks")
