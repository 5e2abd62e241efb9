"""What methods without small weights learn in a run of seconds: difficulty, retrieval; and depth maps, which need no run."""

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.figures.canvas import GREY, INK, Block, Cell, Photo, block
from benchmarks.figures.features import SHOWN, WRONG, heights
from benchmarks.figures.shapes import Shape, shapes
from datasets import DATASETS, build_dataset
from datasets.batches import Batches
from models import MODELS, build_model
from models.base import PointModel
from models.images.projection import draw_depth, fit_frame, turn_to_views
from tools import retrieval as scores
from tools.context import RunContext
from tools.guides.base import Guide, build_guide
from tools.look.sheets import ramp
from utils.config.load import load_config
from utils.seed import generator, seed_everything

RECIPES = Path(__file__).parents[2] / "cfgs" / "debug"
POINTS, PATCHES, CLOUDS, BATCH, RATE = 512, 32, 128, 32, 2e-3
DIFFICULTY_EPOCHS = (0, 4, 16, 48)
RETRIEVAL_EPOCHS, TESTED, NEAREST = 60, 80, 5
ASKED = (*SHOWN, "bottle", "car", "guitar", "mug")
IMAGE = 224  # pixels of a depth map


def pre_train(
    method: str,
    epochs: int,
    *settings: str,
    categories: Sequence[str] = SHOWN,
    after: Callable[[int, PointModel], None] = lambda epoch, model: None,
) -> tuple[PointModel, Guide]:
    """Train the model of a debug recipe on upright clouds of some categories; returns it in evaluation mode, and its guide.

    Args:
        after: is called with each epoch and the model in evaluation mode.
    """
    entries = ("dataset.train", "dataset.svm.test")
    upright = [
        f"{entry}.{key}" for entry in entries for key in ("rotate=false", "tilt=0", f"categories={list(categories)}")
    ]
    sizes = [f"dataset.train.npoints={POINTS}", f"dataset.train.clouds={CLOUDS}", f"model.num_group={PATCHES}"]
    overrides = [*upright, *sizes, f"total_bs={BATCH}", f"max_epoch={epochs - 1}", *settings]
    config = load_config(RECIPES / f"{method}.yaml", overrides=overrides, models=MODELS, datasets=DATASETS)
    seed_everything(0)
    model, clouds = build_model(config.model), build_dataset(config.dataset.train)
    log = logging.getLogger("m2ae.figures")
    guide = build_guide(RunContext(config, Namespace(resume=False), Path(), torch.device("cpu"), log), model, clouds)
    guide = guide or Guide()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * (CLOUDS // BATCH))
    batches = Batches(clouds, batch_size=BATCH, seed=0)
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            draw = partial(generator, 0, epoch, batch.step)
            asked = {"generator": draw("mask"), **guide.prepare(batch.points, batch, epoch=epoch, draw=draw)}
            loss = model.train()(batch.points, **asked)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            guide.after_update()
        after(epoch, model.eval())
    return model, guide


def inputs(clouds: Sequence[Shape]) -> Tensor:
    """Return what these models are given of clouds, (B, 512, 3)."""
    return torch.stack([cloud.given[:POINTS] for cloud in clouds])


def difficulty(side: int) -> Image.Image:
    """Draw which patches GeoMask3D's student expects to be hard, after some epochs."""
    clouds, rows = [cloud for row in shapes(SHOWN, 2) for cloud in row], []
    keep = lambda epoch, model: rows.append(_difficulty(clouds, model)) if epoch in DIFFICULTY_EPOCHS else None  # noqa: E731
    pre_train("gm3d", DIFFICULTY_EPOCHS[-1] + 1, after=keep)
    titles = {0: "How hard patches are expected to be"}
    sides = [f"epoch {epoch}" for epoch in DIFFICULTY_EPOCHS]
    return block(Block(rows, titles, sides=sides, scale=("easiest", "hardest")), round(side * 0.8))


@torch.inference_mode()
def _difficulty(clouds: Sequence[Shape], model: PointModel) -> list[Cell]:
    pyramid = model.group(inputs(clouds))
    ranks = model.complexity(pyramid).argsort(1).argsort(1).numpy()
    cells = []
    for cloud, rank, places in zip(clouds, ranks, pyramid.centers[-1].numpy(), strict=True):
        nearest = ((cloud.points[:, None] - places) ** 2).sum(2).argmin(1)
        cells.append(Cell(cloud.points, ramp(rank[nearest], 0, PATCHES - 1)))
    return cells


def retrieval(side: int) -> Image.Image:
    """Draw pictures of clouds, and the clouds whose features Inter-MAE finds most similar; grey where the class is another."""
    tested = (f"dataset.svm.test.clouds={TESTED}", f"dataset.svm.test.num_points={POINTS}")
    model, guide = pre_train("inter-mae", RETRIEVAL_EPOCHS, "model.contrast_weight=0.1", *tested, categories=ASKED)
    pairs = guide.pairs(model)
    rows = []
    for name in SHOWN:
        query = next(index for index in range(len(pairs.clouds)) if pairs.caption(index) == name)
        line = [Photo(Image.fromarray(pairs.pictures[query].permute(1, 2, 0).numpy()), name)]
        for other in pairs.cosines[query].argsort(descending=True)[:NEAREST].tolist():
            points, category = np.array(pairs.clouds.points[other]), pairs.caption(other)
            right = category == name
            colors = heights(points, points) if right else np.tile(GREY, (len(points), 1))
            line.append(Cell(points, colors, category, ink=INK if right else WRONG))
        rows.append(line)
    found = scores.retrieval(pairs.cosines, pairs.labels)
    right, chance = found["same class"], found["same class, chance"]
    title = f"The nearest cloud is of the class of the picture: {right:.0f}%, by chance {chance:.0f}%"
    heads = ["picture", *(f"neighbour {rank}" for rank in range(1, NEAREST + 1))]
    return block(Block(rows, {0: title}, heads), round(side * 0.8))


def depth_maps(side: int) -> Image.Image:
    """Draw clouds and their depth maps from three sides, as I2P-MAE's image teacher is given them."""
    lines = []
    for (cloud,) in shapes(SHOWN, 1):
        points = cloud.given[None]
        images = np.rint(255 * draw_depth(points, fit_frame(turn_to_views(points), IMAGE)).numpy()).astype(np.uint8)
        photos = [Photo(Image.fromarray(image).convert("RGB")) for image in images]
        lines.append([Cell(cloud.points, heights(cloud.points, cloud.points)), *photos])
    heads = 2 * ["cloud", "view x, y", "view z, x", "view y, z"]
    return block(Block([lines[0] + lines[1], lines[2] + lines[3]], heads=heads), round(side * 0.8))
