"""Convert meshes and clouds to the layouts that the readers read: in parallel, resumable, whole or not at all.

Legend: n points of a file, P points of a converted cloud.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.clouds import SUBSETS
from datasets.folder import FolderConfig, find_files, has_splits
from datasets.formats.cloud_files import cloud_files, read_shape, resample
from datasets.formats.points import Notes, check_up, upright
from datasets.normals import estimate_normals
from datasets.preparing.progress import Progress
from datasets.preparing.render import RenderSettings, draw_shape, write_pictures
from datasets.preparing.targets import TARGETS, Cloud, encode, place
from utils.errors import UserError, printable, suggest
from utils.files import explain_write, write_atomic
from utils.reading import free_memory, read_bytes

FORMAT = 1  # of what is written; another number makes earlier work stale
PLAN = ".convert.json"
DONE = ".convert.done"  # finished clouds of unfinished work, one a line: size in bytes and path
WORKER_MEMORY = 700 << 20  # bytes of a process
Result = tuple[bool, str, list[tuple[str, str, str]]]  # repeated points, why it is bad or nothing, notes
_LOG = logging.getLogger("m2ae.data")


@dataclass(frozen=True)
class Settings:
    """What a converted cloud depends on besides its file."""

    to: str = "folder"
    points: int = 0  # 0 = as the layout publishes
    up: str = "y"  # axis of the input that becomes y
    test_share: float = 0.2  # where the input has no split and the layout needs one
    render: RenderSettings | None = None  # of layouts with pictures
    list: str | None = None  # a table of path, class and split, instead of what folders say
    common_classes: bool | None = None  # leave out classes that one split only has

    def __post_init__(self):
        if self.to not in TARGETS:
            raise UserError(f"--to {self.to}: is no layout; {suggest(self.to, TARGETS)}")
        if self.points < 0:
            raise UserError(f"--points {self.points}: must be at least 1")
        check_up(self.up)
        if not 0 < self.test_share < 1:
            raise UserError(f"--test_share {self.test_share}: must lie between 0 and 1")
        if self.render is None and TARGETS[self.to].pictures is not None:
            object.__setattr__(self, "render", RenderSettings())

    @property
    def count(self) -> int:
        """Return how many points a cloud gets."""
        return self.points or TARGETS[self.to].points


@dataclass(frozen=True)
class Outcome:
    """What a conversion did: clouds in all, of which done before, with repeated points, and bad ones with the reason."""

    clouds: int
    skipped: int
    repeated: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    complete: bool
    notes: Notes = field(default_factory=Notes)
    files: tuple[Path, ...] = ()  # all sources


def convert(source: Path, out: Path, settings: Settings, *, workers: int = 0, skip_bad: bool = False) -> Outcome:
    """Convert the clouds and meshes of `source` (a file, or a folder as `datasets/folder.py` takes it) into `out`.

    The work is in `<out>.converting`, where a second call continues, and is renamed when it is complete. Each cloud depends on its file,
    its path below `source` and the settings alone: any number of workers gives the same bytes. Clouds of fewer points than asked have
    all of them and random repetitions.

    Args:
        workers: processes; 0 = one a core.
        skip_bad: finish without the files that cannot be read; otherwise the set stays unfinished if there are any.

    Raises:
        UserError: for an input or output that cannot be used.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: is inside the input {source}; name a folder outside of it")
    root, clouds, classes = plan(source, settings)
    files = tuple(root / cloud.source for cloud in clouds)
    work = out.with_name(out.name + ".converting")
    content = _plan_content(root, clouds, settings)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _check_whole(out, content)
        return Outcome(len(clouds), len(clouds), (), (), True, files=files)
    todo = _open_work(work, clouds, content)
    repeated, bad, notes = [], [], Notes()
    try:
        done = (work / DONE).open("a", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(explain_write(work / DONE, error)) from error
    with done, Progress(len(clouds), f"convert {source}", done=len(clouds) - len(todo), unit="clouds") as progress:
        for cloud, (few, reason, noted) in _run(todo, partial(_convert_one, root, work, settings), workers):
            progress.update()
            notes.take(noted)
            if reason:
                bad.append((cloud.source, reason))
                continue
            _note_done(done, work, cloud)
            if few:
                repeated.append(cloud.source)
    complete = not bad or skip_bad
    if complete:
        _complete(work, out, settings, clouds, classes, dict(bad))
    return Outcome(len(clouds), len(clouds) - len(todo), tuple(repeated), tuple(bad), complete, notes, files)


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
            known = classes[label] if label >= 0 else ""
            # Of a list the folders say nothing: the set gets those that its lines mean.
            meant = name if settings.list is None else "/".join(filter(None, (split, known, path.name)))
            kept = split if target.needs else ""
            clouds.append(Cloud(name, label, kept, place(target, meant, known, kept, taken)))
    return root, clouds, classes


def _groups(source: Path, settings: Settings, split: bool) -> tuple[list[tuple[str, int, list[Path]]], list[str]]:
    """Return (split, label, files) of each class and split, and the class names. Without `split` all files keep their folders.

    Classes that one split only has are an error in layouts with labels.
    """
    groups, seen = [], set()
    uneven = TARGETS[settings.to].needs != "classes"
    for subset in SUBSETS:
        config = FolderConfig(
            subset=subset,
            TEST_SHARE=settings.test_share if split else 0,
            LIST=settings.list or "",
            COMMON_CLASSES=bool(settings.common_classes),
        )
        classes, files = find_files(source, config, uneven=uneven)
        for label, group in enumerate(files):
            fresh = [path for path in group if path not in seen]  # without a split both sets have all
            seen.update(fresh)
            groups.append((subset, label if classes else -1, fresh))
    if not split and settings.list is not None and not has_splits(source, settings.list):
        groups = [("", label, files) for _, label, files in groups]
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
    """Return the plan that a folder was made by; an empty one where there is none, or none of this version.

    Only names below the folder count: the file may come from anybody, and what it names is deleted.
    """
    nothing = {"settings": None, "files": {}, "sizes": {}}
    try:
        content = json.loads(read_bytes(path))
        if content["format"] != FORMAT or not isinstance(content["settings"], dict):
            return nothing
        files = {name: entry for name, entry in content["files"].items() if _is_below(path.parent, name)}
        return {"settings": content["settings"], "files": files, "sizes": dict(content.get("sizes", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return nothing


def _is_below(folder: Path, name: str) -> bool:
    """Say whether a path of a plan stays in its folder, links resolved."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def _check_whole(out: Path, content: dict) -> None:
    """Accept a finished set that was made by the same plan and is still as it was.

    Raises:
        UserError: the folder holds something else, or one of its files was changed, cut or removed.
    """
    stored = _stored(out / PLAN) if out.is_dir() else {"settings": None, "files": {}, "sizes": {}}
    if stored["settings"] != content["settings"] or stored["files"] != content["files"]:
        raise UserError(f"--out {out}: holds other files; name a new folder, nothing is overwritten")
    for name, size in stored["sizes"].items():
        path = out / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(
                f"--out {out}: {printable(name)} is not as this conversion left it ({size} bytes); remove the folder and convert again"
            )


def _open_work(work: Path, clouds: Sequence[Cloud], content: dict) -> list[Cloud]:
    """Prepare the folder of the work and return the clouds that are still to be done.

    A finished file counts if the same source, unchanged, was planned for it, and it has the size that it had when it was finished.
    Without a plan, as of a process that was killed before it wrote one, everything is done anew.
    """
    before = _stored(work / PLAN)
    if before["settings"] not in (None, content["settings"]):
        raise UserError(
            f"{work}: holds an unfinished conversion with other settings ({before['settings']}); "
            "call it again with those, remove that folder, or name another --out"
        )
    if work.exists() and before["settings"] is None and _holds_others(work, content):
        raise UserError(f"{work}: holds files of something else; remove that folder, or name another --out")
    finished = _finished(work / DONE)
    try:
        for folder in {(work / cloud.output).parent for cloud in clouds}:
            folder.mkdir(parents=True, exist_ok=True)
        for output, planned in before["files"].items():
            if content["files"].get(output) != planned:
                (work / output).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {work}: cannot be created ({error.strerror or error}); name another folder") from error
    write_atomic(work / PLAN, lambda file: file.write(json.dumps(content).encode()))

    def is_done(cloud: Cloud) -> bool:
        path = work / cloud.output
        planned = before["files"].get(cloud.output) == content["files"][cloud.output]
        return planned and path.is_file() and finished.get(cloud.output) == path.stat().st_size

    return [cloud for cloud in clouds if not is_done(cloud)]


def _holds_others(work: Path, content: dict) -> bool:
    """Say whether a folder holds files that this conversion does not make."""
    files = [path for path in work.rglob("*") if not path.is_dir()] if work.is_dir() else [work]
    own = set(content["files"])
    return any(not path.name.startswith(".") and path.relative_to(work).as_posix() not in own for path in files)


def _note_done(file, work: Path, cloud: Cloud) -> None:
    """Book a finished cloud, by its size and path."""
    try:
        file.write(f"{(work / cloud.output).stat().st_size} {cloud.output}\n")
        file.flush()
    except OSError as error:
        raise UserError(explain_write(work / DONE, error)) from error


def _finished(path: Path) -> dict[str, int]:
    """Return path -> size of the clouds that are booked as finished; a last line that was cut short does not count."""
    if not path.is_file():
        return {}
    lines = read_bytes(path).decode("utf-8", "surrogateescape").split("\n")[:-1]
    pairs = (line.split(" ", 1) for line in lines)
    return {pair[1]: int(pair[0]) for pair in pairs if len(pair) == 2 and pair[0].isdecimal()}


def _run(todo: Sequence[Cloud], job, workers: int) -> Iterator[tuple[Cloud, Result]]:
    workers = min(workers or _own_cores(), (len(todo) + 7) // 8)  # starting a process costs as much as some clouds
    pool = _pool(workers) if workers > 1 else None
    if pool is None:
        yield from ((cloud, job(cloud)) for cloud in todo)
        return
    try:
        yield from zip(todo, pool.map(job, todo, chunksize=4), strict=True)
    except BrokenProcessPool as error:
        raise UserError(
            "convert: a process ended without an answer, most often for want of memory; call it again with fewer --workers, it goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _own_cores() -> int:
    """Return how many processes this machine runs well: the cores that this process may use, as far as memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, free_memory() // WORKER_MEMORY))


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """Open a pool of processes; None where the system offers none, as containers without semaphores do."""
    try:
        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker)
    except (OSError, ImportError, NotImplementedError, ValueError) as error:
        _LOG.warning("processes that share work cannot be had here (%s): one process does it all", error)
        return None


def _begin_worker() -> None:
    """Compute on one thread, and end with the parent, however that ends."""
    import multiprocessing.connection
    import signal
    import threading

    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which only normals and pictures import
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which stops the pool
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


def _convert_one(root: Path, work: Path, settings: Settings, cloud: Cloud) -> Result:
    """Convert one file; returns whether points are repeated, why it could not be done or nothing, and notes about it."""
    seed = zlib.crc32(os.fsencode(cloud.source))
    target = TARGETS[settings.to]
    path = root / cloud.source
    notes = Notes()
    try:
        shape = read_shape(path, notes)
        points, normals, few = _draw(shape, settings.count, seed, target.normals)
        pictures = draw_shape(shape, settings.up, settings.render) if target.pictures is not None else None
    except UserError as error:
        return False, str(error), []
    except MemoryError:
        return False, f"{printable(path)}: needs more memory than there is; take fewer points, or fewer --workers", []
    if pictures is not None:
        write_pictures(
            work / target.pictures(cloud.output), pictures
        )  # Before the cloud: where that is done, its pictures are too.
    points = points - points.mean(axis=0)  # in double precision: map coordinates are large
    if target.unit_sphere:
        points = points / (np.linalg.norm(points, axis=1).max() or 1.0)
    rows = [upright(part, settings.up) for part in (points, normals) if part is not None]
    data = encode(np.hstack(rows), cloud.output)
    write_atomic(work / cloud.output, lambda file: file.write(data))
    return few, "", notes.entries()


def _draw(shape, count: int, seed: int, with_normals: bool) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (count, 3) points, their normals where asked, and whether points are repeated."""
    if shape.faces is not None:
        points, normals = shape.sample(count, seed=seed)
        return points, normals if with_normals else None, False
    points = shape.points
    rows = resample(np.arange(len(points))[:, None], count, seed=seed)[:, 0]
    normals = estimate_normals(points[None])[0][rows] if with_normals else None
    return points[rows], normals, len(points) < count


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
    _write_sizes(work)
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


def _write_sizes(work: Path) -> None:
    """Add the sizes of all files of a whole set to its plan, and drop what only unfinished work needs."""
    (work / DONE).unlink(missing_ok=True)
    content = json.loads(read_bytes(work / PLAN))
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name != PLAN)
    content["sizes"] = {path.relative_to(work).as_posix(): path.stat().st_size for path in files}
    write_atomic(work / PLAN, lambda file: file.write(json.dumps(content).encode()))
