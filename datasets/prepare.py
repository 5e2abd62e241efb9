"""Prepare data: look what is there, convert own files, fetch archives, make tiny sets, draw few-shot folds.

`python -m datasets.prepare --help` lists the commands, `python -m datasets.prepare COMMAND --help` explains one.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.preparing import parser as flags
from utils.environment import settle_environment
from utils.errors import UserError, printable, run_command, say, stop_signals, suggest
from utils.log import console


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, missing data or bad files, 128 + signal when stopped."""
    args = build_parser().parse_args(argv)
    settle_environment()
    with stop_signals(), console(logging.WARNING):
        return run_command(lambda: args.run(args), debug=args.debug, stopped="the same command goes on from here")


def run_check(args: argparse.Namespace) -> int:
    """Say what is there and what is missing."""
    from datasets.preparing.check import look, report, table
    from datasets.preparing.layouts import LAYOUTS, find

    if args.name and _is_path(args.name):
        return _check_folder(args)
    layouts = find(args.name) if args.name else LAYOUTS
    rows = [(layout, look(layout, args.data_root, any_count=args.any_count, read=args.read)) for layout in layouts]
    if not args.name:
        print(table(rows, args.data_root))
        print("\npython -m datasets.prepare check NAME says what is missing and how to get it")
        return 0
    print("\n".join(report(layout, found, args.data_root) for layout, found in rows))
    return 2 if any(found.problems for _, found in rows) else 0


def _is_path(name: str) -> bool:
    """Say whether what was given for the name of a set is a path."""
    from datasets.preparing.layouts import is_known

    return not is_known(name) and (os.sep in name or "/" in name or Path(name).is_dir())


def _check_folder(args: argparse.Namespace) -> int:
    """Look at a set anywhere."""
    from datasets.preparing.check import look, report
    from datasets.preparing.recognise import recognise

    folder = Path(args.name)
    rows = [(layout, look(layout, folder, any_count=True, read=args.read)) for layout in recognise(folder)]
    print("\n".join(report(layout, found, folder) for layout, found in rows))
    if any(found.problems for _, found in rows):
        return 2
    print(f"next: python -m datasets.prepare recipe {shlex.quote(args.name)}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert meshes and clouds to a layout that the readers read."""
    from datasets.preparing.convert import Settings

    settings = Settings(
        args.to, args.points, args.up, args.test_share, list=args.list, common_classes=args.common_classes
    )
    return _convert(args, settings)


def run_render(args: argparse.Namespace) -> int:
    """Draw pictures of meshes and clouds."""
    from datasets.preparing.convert import Settings
    from datasets.preparing.render import RenderSettings

    pictures = RenderSettings(args.views, args.size, args.kind, args.elevation)
    return _convert(args, Settings("shapenet_render", args.points, args.up, render=pictures))


def _convert(args: argparse.Namespace, settings) -> int:
    from datasets.formats.cloud_files import bad_lines
    from datasets.preparing.convert import convert

    done = convert(args.input, args.out, settings, workers=args.workers, skip_bad=args.skip_bad)
    if done.repeated:
        print(
            f"{len(done.repeated):,} clouds have fewer than {settings.count:,} points and hold repetitions, such as "
            f"{printable(done.repeated[0])}"
        )
    for line in [*done.notes.lines(), *bad_lines([reason for _, reason in done.bad])]:
        say(line)
    if not done.complete:
        say(
            f"error: {len(done.bad):,} of {done.clouds:,} files cannot be converted, so {args.out} was not made; repair or remove "
            "them and call the same command again, which goes on, or add --skip_bad"
        )
        return 2
    print(
        f"{args.out}: {done.clouds - len(done.bad):,} clouds of {settings.count:,} points, {done.skipped:,} of them done before"
    )
    _show(args, settings, done.files)
    return 0


def _show(args: argparse.Namespace, settings, files) -> None:
    """Draw some of the clouds, and say what comes next."""
    from datasets.preparing.preview import preview

    for line in preview(files, settings.up, args.out.with_name(args.out.name + ".png")):
        print(line)
    print(f"next: python -m datasets.prepare recipe {shlex.quote(str(args.out))}")
    print("      writes recipes for this set; --size tiny gives a model that trains in a minute on two cores")


def run_recipe(args: argparse.Namespace) -> int:
    """Write recipes for a set."""
    from datasets.preparing.recipes import Options, write_recipes

    out = args.out or Path("recipes") / (args.folder.resolve().name or "own")
    options = Options(args.method, args.size, args.up, args.list, args.epochs, args.overwrite)
    print("\n".join(write_recipes(args.folder, out, options)))
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    """Download, check and unpack a set."""
    from datasets.preparing.fetch import Order, fetch, fetch_archive
    from datasets.preparing.layouts import find, is_known
    from datasets.preparing.mirrors import mirrors

    if args.list:
        return _list_mirrors(args.name)
    if args.name is None:
        raise UserError("fetch: NAME is missing; --list shows what there is")
    known_hash = f"sha256:{args.sha256}" if args.sha256 else f"md5:{args.md5}" if args.md5 else None
    order = Order(args.url, args.mirror, known_hash)
    if not is_known(args.name) and args.name in mirrors():  # no reader takes it as it is
        archive = fetch_archive(args.name, order)
        _tell(archive)
        print("no reader takes it as it is: unpack it; meshes go on with python -m datasets.prepare convert")
        return 0
    layout = find(args.name)[0]
    archive, added = fetch(layout, args.data_root, order)
    _tell(archive)
    print(f"{added:,} files added to {layout.folder(args.data_root)}; the archive may be deleted")
    args.any_count = args.read = False
    return run_check(args)


def _tell(archive) -> None:
    compared = f" (compared with {archive.compared.partition(':')[0]} of {archive.stated_by or 'yours'})"
    print(
        f"{archive.path}: sha256 {archive.sha256}"
        + (compared if archive.compared else " (nothing to compare it with; --sha256 does)")
    )


def _list_mirrors(name: str | None) -> int:
    from datasets.preparing.mirrors import listed, mirrors

    if name is not None and name not in mirrors():
        raise UserError(f"{name}: no place is known; {suggest(name, mirrors())}")
    for each in [name] if name else mirrors():
        print(f"{each}\n{listed(each)}")
    return 0


def run_fixtures(args: argparse.Namespace) -> int:
    """Write a tiny set in a published layout."""
    from datasets.preparing.fixtures import Size, use_of, write_fixture
    from datasets.preparing.layouts import find

    layout, size = find(args.name)[0], Size(args.clouds, args.points)
    folder = write_fixture(layout, args.out, size, dat=args.dat)
    print(f"{folder}: made; read it with --data_root {args.out}")
    print(f"next: {use_of(layout, args.out, folder, size)}")
    return 0


def run_few_shot(args: argparse.Namespace) -> int:
    """Draw few-shot folds from a labelled set."""
    from datasets import build_dataset
    from datasets.few_shot import write_folds

    for flag in ("way", "shot", "folds"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    train, test = (build_dataset(_source(args, subset)) for subset in ("train", "test"))
    paths = write_folds(train, test, args.out, way=args.way, shot=args.shot, folds=range(args.folds), seed=args.seed)
    print(
        f"{paths[0].parent}: {len(paths)} folds of {args.way} ways and {args.shot} shots from {train.name} ({train.source or 'built in'})"
    )
    if args.folds > 9 and Path(args.source).with_name("few-shot.yaml").is_file():
        recipe = shlex.quote(Path(args.source).with_name("few-shot.yaml").as_posix())
        print(
            f"next: python main.py --config {recipe} --finetune_model --exp_name own --way {args.way} --shot {args.shot} --fold all "
            "--ckpts PRE_TRAINED.pth"
        )
    return 0


def _source(args: argparse.Namespace, subset: str):
    from datasets import DATASETS
    from utils.config.load import with_root
    from utils.config.yaml import parse_value, read_yaml

    if args.source.endswith((".yaml", ".yml")):
        keys = read_yaml(args.source)
    elif args.source in DATASETS.names():
        keys = {"NAME": args.source}
    else:
        raise UserError(
            f"--source {args.source}: is neither a YAML file nor a data set; {suggest(args.source, DATASETS.names())}"
        )
    for setting in args.set:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE, for example --set clouds=800")
        keys[key] = parse_value(text, f"--set {setting}")
    return with_root(DATASETS.config({**keys, "subset": subset}, f"--source {args.source}"), args.data_root)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Look at, convert, fetch and make data sets. docs/data.md tells more.",
    )
    commands = flags.Commands(parser)
    flags.add_check(commands, run_check)
    flags.add_convert(commands, run_convert)
    flags.add_render(commands, run_render)
    flags.add_recipe(commands, run_recipe)
    flags.add_fetch(commands, run_fetch)
    flags.add_fixtures(commands, run_fixtures)
    flags.add_few_shot(commands, run_few_shot)
    return parser


if __name__ == "__main__":
    sys.exit(main())
