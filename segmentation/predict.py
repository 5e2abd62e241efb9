"""Name the parts of one's own clouds (`--predict`): every point of every file, whatever their number."""

import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets.formats.cloud_files import BadFiles, Shape, cloud_files, read_shape, resample
from datasets.formats.points import Notes, check_up, upright
from datasets.part_table import SHAPENET_PARTS, owned_parts, shapenet_table
from datasets.transforms import normalize_unit_sphere
from models.segmenter import restricted_argmax
from segmentation.evaluate import load_segmenter
from segmentation.pages import part_item, write_parts
from tools.context import RunContext
from tools.report.page import GalleryItem, write_report
from tools.results import open_output
from utils.device import autocast
from utils.errors import UserError, printable, suggest
from utils.files import write_atomic
from utils.log import track

MOST_ROWS = 24  # of the gallery
PUBLISHED = (16, 50)  # categories and parts of ShapeNetPart
SURFACE_POINTS = 8192  # drawn of a mesh
MISSING = -1  # label of a row of a file that has no point


def run_predict(run: RunContext) -> dict[str, float]:
    """Segment the clouds of `--predict`; writes a time-stamped folder with a page, PLY files and a table of labels for each.

    Returns how many clouds and points were segmented, and the share of each part in percent.

    Raises:
        UserError: a cloud cannot be read, its category is not known, or the checkpoint does not say which parts there are.
    """
    args = run.args
    files = cloud_files(args.predict, what="--predict", recursive=True)
    check_up(args.up)
    model = load_segmenter(run)
    _know_parts(run)
    categories = [_category(file, run) for file in files]
    folder = open_output(run, "predict")
    root = Path(args.predict) if Path(args.predict).is_dir() else files[0].parent
    gallery, counts, bad, notes = [], Counter(), BadFiles(args.skip_bad), Notes()
    for file, category in track(list(zip(files, categories, strict=True)), "naming parts"):
        try:
            shape = read_shape(file, notes)
            item = _segment_file(run, model, shape, file.relative_to(root).as_posix(), category, folder / "parts")
        except UserError as error:
            bad.add(error)
            continue
        gallery = [*gallery, item][:MOST_ROWS]
        points = np.bincount(item.values["predicted"], minlength=len(item.legend)).tolist()
        counts.update({f"{category} {part}": count for part, count in zip(item.legend, points, strict=True)})
    notes.tell()
    bad.tell(len(files))
    summary = {"Clouds": len(files) - len(bad.messages), "Checkpoint": str(args.ckpts)}
    path = write_report(
        folder, config=run.config_dict(), gallery=gallery, summary=summary, title=f"Parts of {printable(args.predict)}"
    )
    run.log.info(f"{summary['Clouds']} clouds, parts as PLY files in {folder / 'parts'}, report: {path}")
    total = counts.total()
    shares = {f"{name}, share of all points": 100 * count / max(total, 1) for name, count in sorted(counts.items())}
    return {"clouds": summary["Clouds"], "points": total, **shares}


def _segment_file(
    run: RunContext, model: nn.Module, shape: Shape, name: str, category: str, folder: Path
) -> GalleryItem:
    """Segment one cloud, or a cloud of the surface of a mesh, and write its files; returns its row of the gallery.

    Raises:
        UserError: the scores of a point are not finite.
    """
    entry = run.config.dataset.test or run.config.dataset.val or run.config.dataset.train
    points = shape.points if shape.faces is None else shape.sample(SURFACE_POINTS)[0]
    upward = upright(points, run.args.up)
    parts = segment_cloud(run, model, upward, category, getattr(entry, "npoints", 0) or 2048)
    if parts.min() < 0:
        raise UserError(
            f"{printable(name)}: the scores of its parts are not finite; use weights that are, and --precision fp32"
        )
    ids = sorted(run.config.category_parts[category])
    names = [run.config.part_names[part].removeprefix(f"{category} ") for part in ids]
    # The files hold the coordinates of the input, not the turned ones.
    up = getattr(entry, "UP_AXIS", "y") if run.args.up == "y" else run.args.up
    item = part_item(printable(name), points, {"predicted": parts}, ids, names, up_axis=up, note=category)
    write_parts(folder, item)
    rows = parts
    if shape.kept is not None:
        rows = np.full(len(shape.kept), MISSING)
        rows[shape.kept] = parts
    _write_labels(folder / f"{name.replace('/', '_')}.labels.txt", rows, run.config.part_names)
    return item


def segment_cloud(run: RunContext, model: nn.Module, points: np.ndarray, category: str, npoints: int) -> np.ndarray:
    """Return the part id of every point (n, 3) as (n,) int64, -1 where its scores are not finite.

    The cloud is centred and scaled to the unit sphere, as training clouds are, and cut at random into pieces of `npoints`; each piece
    covers the whole shape. A smaller cloud repeats points.
    """
    config = run.config
    centred = torch.from_numpy((points - points.mean(axis=0)).astype(np.float32))
    cloud = normalize_unit_sphere(centred[None])[0]  # (n, 3)
    seed = zlib.crc32(np.ascontiguousarray(points).tobytes())
    order = np.random.default_rng(seed).permutation(len(points))
    number = config.class_names.index(category)
    owned = torch.from_numpy(owned_parts(config.category_parts, config.class_names, config.model.num_parts)[[number]])
    parts = np.empty(len(points), np.int64)
    model.eval()
    for begin in range(0, len(points), npoints):
        own = order[begin : begin + npoints]
        filled = own if len(own) == npoints else np.concatenate([own, resample(order, npoints - len(own), seed=seed)])
        with torch.inference_mode(), autocast(run.device, config.precision):
            log_probs = model(
                model.transform(cloud[filled][None].to(run.device)), torch.tensor([number], device=run.device)
            )
        finite = torch.isfinite(log_probs).all(dim=-1)[0, : len(own)].cpu().numpy()
        parts[own] = np.where(finite, restricted_argmax(log_probs.cpu(), owned)[0, : len(own)].numpy(), MISSING)
    return parts


def _know_parts(run: RunContext) -> None:
    """Fill in the published table where a checkpoint of that size does not name its parts."""
    config = run.config
    if config.part_names and config.category_parts and config.class_names:
        return
    if (config.model.num_categories, config.model.num_parts) != PUBLISHED:
        raise UserError(
            f"{run.args.ckpts}: does not name its parts; train with this program, or give class_names, part_names and category_parts "
            "with --set"
        )
    table = shapenet_table(list(SHAPENET_PARTS))
    config.class_names, config.part_names = list(SHAPENET_PARTS), table.names
    config.category_parts = table.category_parts
    run.log.info(f"{run.args.ckpts} does not name its parts: {table.source} is taken")


def _category(file: Path, run: RunContext) -> str:
    """Return the category of a file: `--category`, else its folder.

    Raises:
        UserError: that is no category of the checkpoint.
    """
    known = {name.lower(): name for name in run.config.class_names}
    given = run.args.category or file.resolve().parent.name
    if given.lower() not in known:
        how = "--category" if run.args.category else f"{file}: folder"
        raise UserError(
            f"{how} {given!r} is no category of {run.args.ckpts}; {suggest(given, run.config.class_names)}. "
            "Name the category with --category, or put the clouds into a folder that is called so"
        )
    return known[given.lower()]


def _write_labels(path: Path, parts: np.ndarray, names: list[str]) -> None:
    used = "".join(f"# {part} {names[part] if part >= 0 else 'no point'}\n" for part in np.unique(parts))
    text = used + "".join(f"{part}\n" for part in parts)
    write_atomic(path, lambda file: file.write(text.encode()))
