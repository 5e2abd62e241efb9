"""The flags of `python -m tools.look`, the clouds that they mean, and the order of the work."""

import argparse
import hashlib
import logging
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets import build_dataset
from datasets.formats.cloud_files import BadFiles, cloud_files, read_cloud
from datasets.formats.points import Notes, check_up, upright
from tools.embed import add_model_flags
from tools.embedder import SURFACE_POINTS, Embedder, open_embedder
from tools.gallery_items import chosen_clouds, describe
from tools.launch import weights_file
from tools.look.files import write_arrays
from tools.look.page import write_page
from tools.look.sheets import write_sheets
from tools.look.study import Given, Query, study
from utils.device import choose_device
from utils.environment import settle_environment
from utils.errors import UserError, printable, run_command, stop_signals
from utils.files import explain_write
from utils.log import console
from utils.registry import import_file

COUNT = 12
BUILT_IN = {"NAME": "Synthetic", "subset": "test", "clouds": 200}
_LOG = logging.getLogger("m2ae.look")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for bad input, which is one message on stderr, 128 + signal when stopped."""
    args = build_parser().parse_args(argv)
    settle_environment()
    with stop_signals(), console():
        return run_command(partial(_run, args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.look",
        description="What a model has learned: features as colours, attention, similar patches and clouds, masks and errors.",
        allow_abbrev=False,
    )
    add_model_flags(parser)
    parser.add_argument(
        "--input", metavar="PATH",
        help="a cloud or mesh, or a folder of them (default: the data set of --config, else the built-in shapes)",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder that is made for what is written")
    parser.add_argument("--overwrite", action="store_true", help="write into this folder where it exists")
    parser.add_argument(
        "--count", type=int, default=COUNT, metavar="N", help=f"clouds, evenly spread (default: {COUNT})"
    )
    parser.add_argument(
        "--query", default="0,0", metavar="CLOUD,PATCH",
        help="patch of the coarsest scale, counted from 0, whose attention and similarity the files have (default: 0,0)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of masks and maps (default: 0)")
    parser.add_argument("--no_sheets", action="store_true", help="write no PNG sheets")
    return parser


def _run(args: argparse.Namespace) -> None:
    out, query = Path(args.out), _query(args.query)
    check_up(args.up)
    if args.count < 1:
        raise UserError(f"--count {args.count}: must be at least 1")
    if out.exists() and not (out.is_dir() and (args.overwrite or not any(out.iterdir()))):
        raise UserError(f"--out {out}: exists; write into it with --overwrite if it is a folder, or choose another one")
    for file in args.imports:
        import_file(Path(file) if Path(file).is_file() else None, f"--import {file}")
    files = cloud_files(args.input, recursive=True) if args.input else []
    ckpts = str(weights_file(args.ckpts, args.config))
    embedder = open_embedder(
        ckpts,
        config=args.config,
        overrides=args.set,
        normalize=args.normalize,
        device=choose_device(args.device),
        base=args.start_ckpts,
        parts=True,
    )
    given, up_axis = _own_clouds(args, embedder, files) if files else _data_set(args, embedder)
    found = study(embedder.model, given, args.seed)
    found.row(query, 0)  # before anything is written
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(explain_write(out, error)) from error
    with open(ckpts, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_arrays(out, found, query, {"checkpoint_sha256": digest, "up_axis": up_axis})
    about = {"checkpoint": args.ckpts, "SHA-256": digest, "clouds": args.input or "data set", "seed": str(args.seed)}
    path = write_page(out, found, about, up_axis)
    if not args.no_sheets:
        write_sheets(out, found, query, up_axis)
    _LOG.info("%d clouds, page: %s", len(given), path)


def _query(text: str) -> Query:
    """Read `CLOUD,PATCH`."""
    try:
        cloud, patch = (int(number) for number in text.split(","))
    except ValueError as error:
        raise UserError(f"--query {text}: must be CLOUD,PATCH, two numbers from 0 on, for example 0,5") from error
    return Query(cloud, patch)


def _own_clouds(args: argparse.Namespace, embedder: Embedder, files: Sequence[Path]) -> tuple[list[Given], str]:
    """Read the clouds of `--input`: coordinates alone, whatever colours and normals the files have."""
    root = Path(args.input) if Path(args.input).is_dir() else files[0].parent
    chosen = np.linspace(0, len(files) - 1, min(args.count, len(files))).astype(int)
    bad, notes, given = BadFiles(args.skip_bad), Notes(), []
    surface = max(SURFACE_POINTS, embedder.npoints or 0)
    for file in (files[index] for index in chosen):
        name = printable(file.relative_to(root).as_posix())
        try:
            points = read_cloud(file, surface_points=surface, seed=zlib.crc32(name.encode()), notes=notes)
        except UserError as error:
            bad.add(error)
            continue
        if len(points) < embedder.needed:
            _LOG.warning(
                "%s: has %d points, fewer than the %d that the groups need; its points are repeated",
                printable(file), len(points), embedder.needed,
            )  # fmt: skip
        points = upright(points, args.up)
        taken = embedder.fit(points)
        scan = embedder.place(points).cpu().numpy() if len(points) > len(taken) else None
        given.append(Given(name, taken, scan=scan))
    notes.tell()
    bad.tell(len(chosen))
    return given, "y"


def _data_set(args: argparse.Namespace, embedder: Embedder) -> tuple[list[Given], str]:
    """Take clouds spread over the test, validation or training set of `--config`, or built-in shapes."""
    entry: object = BUILT_IN | {"npoints": embedder.npoints or 1024, "normalize": True}
    if args.config:
        entries = embedder.config.dataset
        entry = next((part for part in (entries.test, entries.val, entries.train) if part is not None), None)
        if entry is None:
            raise UserError(
                f"--config {args.config}: its dataset has no test, val or train entry; give clouds with --input"
            )
    clouds = build_dataset(entry)
    chosen, points = chosen_clouds(clouds, args.count, args.seed, torch.device(embedder.device))
    given = []
    for index, cloud in zip(chosen, points, strict=True):
        about = describe(clouds, index)
        given.append(Given(str(about["name"]), cloud, about["note"]))
    return given, clouds.up_axis
