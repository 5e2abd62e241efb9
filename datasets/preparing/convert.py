"""Convert meshes and clouds to the layouts that the readers read: in parallel, resumable, whole or not at all.

Legend: n points of a file, P points of a converted cloud.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from datasets.clouds import SUBSETS
from datasets.folder import FolderConfig, find_files
from datasets.formats.cloud_files import cloud_files, is_mesh, read_cloud, resample, sample_surface
from datasets.normals import estimate_normals
from datasets.preparing.progress import Progress
from datasets.preparing.render import RenderSettings, draw_file, write_pictures
from datasets.preparing.targets import TARGETS, Cloud, encode, place
from utils.errors import UserError, suggest
from utils.files import write_atomic

FORMAT = 1  # of what is written; another number makes earlier work stale
PLAN = ".convert.json"
# Where the axes of a cloud go so that y is up; a rotation, no reflection.
UPRIGHT = {"x": ((1, -1), (0, 1), (2, 1)), "y": ((0, 1), (1, 1), (2, 1)), "z": ((0, 1), (2, 1), (1, -1))}


@dataclass(frozen=True)
class Settings:
    """What a converted cloud depends on besides its file."""

    to: str = "folder"
    points: int = 0  # 0 = as the layout publishes
    up: str = "y"  # axis of the input that becomes y
    test_share: float = 0.2  # where the input has no split and the layout needs one
    render: RenderSettings | None = None  # of layouts with pictures

    def __post_init__(self):
        if self.to not in TARGETS:
            raise UserError(f"--to {self.to}: is no layout; {suggest(self.to, TARGETS)}")
        if self.points < 0:
            raise UserError(f"--points {self.points}: must be at least 1")
        if self.up not in UPRIGHT:
            raise UserError(f"--up {self.up}: is no axis; choose x, y or z")
        if not 0 < self.test_share < 1:
            raise UserError(f"--test_share {self.test_share}: must lie between 0 and 1")
        if self.render is None and TARGETS[self.to].pictures is not None:
            object.__setattr__(self, "render", RenderSettings())

    @property
    def count(self) -> int:
        return self.points or TARGETS[self.to].points


@dataclass(frozen=True)
class Outcome:
    """What a conversion did: clouds in all, of which done before, with repeated points, and bad ones with the reason."""

    clouds: int
    skipped: int
    repeated: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    complete: bool


def convert(source: Path, out: Path, settings: Settings, *, workers: int = 0, skip_bad: bool = False) -> Outcome:
    """Convert the clouds and meshes of `source` (a file, or a folder as `datasets/folder.py` takes it) into `out`.

    The work stands in `<out>.converting`, where a second call goes on, and is renamed when it is whole. Each cloud depends on its file,
    its path below `source` and the settings alone: any number of workers gives the same bytes. Clouds of fewer points than asked have
    all of them and random repetitions.

    Args:
        workers: processes; 0 = one a core.
        skip_bad: finish without the files that cannot be read; otherwise the set stays unfinished if there are any.

    Raises:
        UserError: for an input or output that cannot be used.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: lies in the input {source}; name a folder beside it")
    root, clouds, classes = plan(source, settings)
    work = out.with_name(out.name + ".converting")
    content = _plan_content(root, clouds, settings)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _stored(out / PLAN)["settings"] == content["settings"] and _stored(out / PLAN)["files"] == content["files"]:
            return Outcome(len(clouds), len(clouds), (), (), True)
        raise UserError(f"--out {out}: holds other files; name a new folder, nothing is overwritten")
    todo = _open_work(work, clouds, content)
    repeated, bad = [], []
    with Progress(len(clouds), f"convert {source}", done=len(clouds) - len(todo), unit="clouds") as progress:
        for cloud, (few, reason) in _run(todo, partial(_convert_one, root, work, settings), workers):
            progress.update()
            if reason:
                bad.append((cloud.source, reason))
            elif few:
                repeated.append(cloud.source)
    complete = not bad or skip_bad
    if complete:
        _complete(work, out, settings, clouds, classes, dict(bad))
    return Outcome(len(clouds), len(clouds) - len(todo), tuple(repeated), tuple(bad), complete)


def plan(source: Path, settings: Settings) -> tuple[Path, list[Cloud], list[str]]:
    """Return the folder that paths count from, the clouds in the order of the set, and the class names."""
    target = TARGETS[settings.to]
    if source.is_dir():
        root, groups, classes = source, *_groups(source, settings, bool(target.needs))
    else:
        root, classes = source.parent, []
        groups = [("", -1, cloud_files(source, what="INPUT"))]
    if target.needs == "classes" and not classes:
        raise UserError(
            f"INPUT {source}: has no class folders, which {settings.to} needs; convert it --to folder or shapenet"
        )
    if target.needs and len({split for split, _, _ in groups}) < 2:
        raise UserError(
            f"INPUT {source}: is one file, but {settings.to} needs a training and a test set; convert it --to folder"
        )
    taken: set[str] = set()
    clouds = []
    for split, label, files in groups:
        for path in files:
            name = path.relative_to(root).as_posix()
            clouds.append(
                Cloud(name, label, split, place(target, name, classes[label] if classes else "", split, taken))
            )
    return root, clouds, classes


def _groups(source: Path, settings: Settings, split: bool) -> tuple[list[tuple[str, int, list[Path]]], list[str]]:
    """Return (split, label, files) of each class and split, and the class names. Without `split` all files keep their folders."""
    groups, seen = [], set()
    for subset in SUBSETS:
        config = FolderConfig(subset=subset, TEST_SHARE=settings.test_share if split else 0)
        classes, files = find_files(source, config)
        for label, group in enumerate(files):
            fresh = [path for path in group if path not in seen]  # without a split both sets have all
            seen.update(fresh)
            groups.append((subset if split else "", label if classes else -1, fresh))
    return groups, classes or []


def _plan_content(root: Path, clouds: Sequence[Cloud], settings: Settings) -> dict:
    files = {}
    for cloud in clouds:
        stat = (root / cloud.source).stat()
        files[cloud.output] = [cloud.source, stat.st_size, stat.st_mtime_ns]
    settings = {
        key: value for key, value in {**asdict(settings), "points": settings.count}.items() if value is not None
    }
    return {"format": FORMAT, "settings": settings, "files": files}


def _stored(path: Path) -> dict:
    """Return the plan that a folder was made by; of no use where there is none or another version wrote it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if content["format"] == FORMAT else {"settings": None, "files": {}}
    except (OSError, ValueError, KeyError, TypeError):
        return {"settings": None, "files": {}}


def _open_work(work: Path, clouds: Sequence[Cloud], content: dict) -> list[Cloud]:
    """Prepare the folder of the work and return the clouds that are still to be done.

    A finished file counts if the same source, unchanged, was planned for it.
    """
    before = _stored(work / PLAN)
    if work.exists() and before["settings"] != content["settings"]:
        raise UserError(
            f"{work}: holds an unfinished conversion with other settings ({before['settings']}); "
            "call it again with those, remove that folder, or name another --out"
        )
    try:
        for folder in {(work / cloud.output).parent for cloud in clouds}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {work}: cannot be created ({error.strerror or error}); name another folder") from error
    for output, planned in before["files"].items():
        if content["files"].get(output) != planned:
            (work / output).unlink(missing_ok=True)
    write_atomic(work / PLAN, lambda file: file.write(json.dumps(content).encode()))
    return [cloud for cloud in clouds if not (work / cloud.output).is_file()]


def _run(todo: Sequence[Cloud], job, workers: int) -> Iterator[tuple[Cloud, tuple[bool, str]]]:
    workers = min(
        workers or os.cpu_count() or 1, (len(todo) + 7) // 8
    )  # starting a process costs as much as some clouds
    if workers <= 1:
        yield from ((cloud, job(cloud)) for cloud in todo)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield from zip(todo, pool.map(job, todo, chunksize=4), strict=True)
    except BrokenProcessPool as error:
        raise UserError(
            "convert: a process ended without an answer, most often for want of memory; call it again with fewer --workers, it goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _convert_one(root: Path, work: Path, settings: Settings, cloud: Cloud) -> tuple[bool, str]:
    """Convert one file; returns whether points are repeated, and why it could not be done or nothing."""
    seed = zlib.crc32(cloud.source.encode())
    target = TARGETS[settings.to]
    path = root / cloud.source
    try:
        points, normals, few = _read(path, settings.count, seed, target.normals)
        if target.pictures is not None:
            # Before the cloud: where that is done, its pictures are too.
            write_pictures(work / target.pictures(cloud.output), draw_file(path, settings.up, settings.render))
    except UserError as error:
        return False, str(error)
    points = points - points.mean(axis=0)  # in double precision: map coordinates are large
    if target.unit_sphere:
        points = points / (np.linalg.norm(points, axis=1).max() or 1.0)
    rows = [_upright(part, settings.up) for part in (points, normals) if part is not None]
    data = encode(np.hstack(rows), cloud.output)
    write_atomic(work / cloud.output, lambda file: file.write(data))
    return few, ""


def _read(path: Path, count: int, seed: int, with_normals: bool) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (count, 3) points, their normals where asked, and whether points are repeated."""
    if is_mesh(path):
        points, normals = sample_surface(path, count, seed=seed)
        return points, normals if with_normals else None, False
    points = read_cloud(path)
    rows = resample(np.arange(len(points))[:, None], count, seed=seed)[:, 0]
    normals = estimate_normals(points[None])[0][rows] if with_normals else None
    return points[rows], normals, len(points) < count


def _upright(points: np.ndarray, up: str) -> np.ndarray:
    return np.stack([sign * points[:, axis] for axis, sign in UPRIGHT[up]], axis=1)


def _complete(
    work: Path, out: Path, settings: Settings, clouds: Sequence[Cloud], classes: list[str], bad: dict[str, str]
) -> None:
    """Write the lists of the set and give it its name."""
    kept = [cloud for cloud in clouds if cloud.source not in bad]
    empty = sorted(set(range(len(classes))) - {cloud.label for cloud in kept})
    if not kept or empty:
        what = f"class {classes[empty[0]]!r}" if empty else "the set"
        why = next(
            bad[cloud.source] for cloud in clouds if cloud.source in bad and (not empty or cloud.label == empty[0])
        )
        raise UserError(
            f"convert: {what} has no file that can be read ({why}); repair its files, or take it out of the input"
        )
    TARGETS[settings.to].finish(work, kept, classes)
    try:
        if out.is_dir():
            out.rmdir()
        os.replace(work, out)
    except OSError as error:
        raise UserError(
            f"--out {out}: {work} cannot be renamed to it ({error.strerror or error}); rename it by hand"
        ) from error
    for folder in sorted((entry for entry in out.rglob("*") if entry.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
