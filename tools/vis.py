"""Pictures of a pre-trained model: clouds of a data set or of one's own files, the visible part, the rebuilt whole."""

import re
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from datasets import CloudSet, build_dataset
from datasets.formats.cloud_files import BadFiles, bad_lines, cloud_files, read_cloud
from datasets.formats.ply import write_ply
from datasets.formats.points import Notes, upright
from models import load_weights
from tools.context import RunContext, build_pretraining_model
from tools.gallery_items import cloud_distance
from tools.guides.base import gallery_of
from tools.report.page import GalleryItem, write_report
from tools.results import open_output
from utils.device import autocast
from utils.errors import UserError, printable
from utils.files import write_atomic
from utils.log import track

DEFAULT_COUNT = 8
CHUNK = 32  # clouds that go through the model at a time
# Cloud of a gallery row -> the name that the published program gives its text file.
PUBLISHED_NAMES = {"input": "gt.txt", "visible": "vis.txt", "rebuilt": "dense_points.txt"}


def run_vis(run: RunContext) -> dict[str, float]:
    """Mask and rebuild clouds with a checkpoint; writes a time-stamped folder with a page, a picture and files of points.

    Returns the number of clouds and how far the rebuilt ones are from them.

    Raises:
        UserError: the checkpoint does not fit, the configuration is of no pre-training model, or clouds cannot be read.
    """
    args = run.args
    model = build_pretraining_model(run)
    if not hasattr(model, "group"):
        raise UserError(
            f"--config: {run.config.model.NAME} rebuilds nothing; use a recipe of cfgs/pre-training/ with a pre-trained model"
        )
    run.log.info(f"{args.ckpts}: {load_weights(model, args.ckpts)}")
    if model.picture_hint:
        run.log.warning(model.picture_hint)
    if args.compile:
        from tools.accelerate import compile_regions

        compile_regions(model)
    if args.input:
        source, items = str(args.input), _own_items(run, model)
    else:
        source, items = _dataset_items(run, model)
    folder = open_output(run, "vis")
    for index, item in enumerate(items):
        _write_clouds(folder / f"{index:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', item.name)}", item)
    path = write_report(
        folder,
        config=run.config_dict(),
        gallery=items,
        gallery_about=gallery_of(model)[1],
        summary={"Checkpoint": str(args.ckpts), "Clouds": f"{len(items)} of {source}", "Seed of the masks": run.seed},
        title=f"{run.config.model.NAME} rebuilds: {args.exp_name}",
    )
    run.log.info(f"{len(items)} clouds of {source}, report: {path}")
    distances = [
        cloud_distance(*(torch.from_numpy(item.clouds[key]) for key in ("input", "rebuilt")))
        for item in items
        if "rebuilt" in item.clouds
    ]
    results = {"clouds": len(items)}
    return results | ({"Chamfer distance x 1000, mean over clouds": 1000 * fmean(distances)} if distances else {})


def _dataset_items(run: RunContext, model: nn.Module) -> tuple[str, list[GalleryItem]]:
    """Rebuild clouds spread evenly over the test, validation or training set of the recipe."""
    entries = run.config.dataset
    name = next((name for name in ("test", "val", "train") if getattr(entries, name) is not None), None)
    if name is None:
        raise UserError("dataset: has no test, val or train entry; add one, or give clouds with --input")
    if name == "train":
        run.log.info("dataset has neither test nor val: these are clouds of the training set")
    clouds = build_dataset(getattr(entries, name))
    chosen = _spread(len(clouds), run.args.count or DEFAULT_COUNT)
    items = []
    for begin in track(range(0, len(chosen), CHUNK), "rebuilding clouds"):
        part = clouds.select(chosen[begin : begin + CHUNK])
        items += _rebuild(run, model, part, seed=run.seed + begin)
    return f"{clouds.name} ({clouds.subset})", items


def _own_items(run: RunContext, model: nn.Module) -> list[GalleryItem]:
    """Rebuild the clouds of `--input`, one at a time, because they may differ in size."""
    files = cloud_files(run.args.input, recursive=True)
    entries = run.config.dataset
    entry = next((entry for entry in (entries.test, entries.val, entries.train) if entry is not None), None)
    npoints = getattr(entry, "npoints", 0) or getattr(entry, "num_points", 0) or run.config.npoints
    up_axis = getattr(entry, "UP_AXIS", "y")
    items, bad, notes, small = [], BadFiles(run.args.skip_bad), Notes(), []
    chosen = _spread(len(files), run.args.count or len(files))
    for index in track(chosen, "rebuilding clouds"):
        try:
            points = upright(read_cloud(files[index], notes=notes), run.args.up)
        except UserError as error:
            bad.add(error)
            continue
        # In double precision: map coordinates are large, and single precision would round their differences.
        points = (points - points.mean(axis=0)).astype(np.float32)
        sampled = bool(npoints) and len(points) > npoints
        clouds = CloudSet(
            points[None],
            name=printable(files[index]),
            subset="input",
            names=[printable(files[index].stem)],
            npoints=npoints if sampled else 0,
            sampling="random" if sampled else "all",
            normalize=True,
            up_axis=up_axis,
        )
        try:
            items += _rebuild(run, model, clouds, seed=run.seed + index)
        except ValueError as error:
            small.append(f"{printable(files[index])}: its {len(points)} points do not fit this model: {error}")
    notes.tell()
    for line in bad_lines(small):
        run.log.warning(f"passed over: {line.removeprefix('bad file: ')}")
    if small and not items:
        raise UserError(f"none of the {len(chosen):,} clouds can be rebuilt; the first: {small[0]}")
    bad.tell(len(chosen))
    return items


def _rebuild(run: RunContext, model: nn.Module, clouds: CloudSet, *, seed: int) -> list[GalleryItem]:
    with autocast(run.device, run.config.precision):
        return gallery_of(model)[0](model, clouds, seed, run.device, count=len(clouds))


def _spread(total: int, count: int) -> np.ndarray:
    """Choose `count` of `total` indices, first and last included, evenly spaced."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)


def _write_clouds(folder: Path, item: GalleryItem) -> None:
    """Write each cloud of a gallery row as PLY and, under the published names, as text."""
    folder.mkdir()
    for name, points in item.clouds.items():
        if name not in PUBLISHED_NAMES:
            continue
        write_ply(folder / f"{name}.ply", points)
        write_atomic(
            folder / PUBLISHED_NAMES[name],
            lambda file, points=points: np.savetxt(file, points, fmt="%.9g", delimiter=";"),
        )
