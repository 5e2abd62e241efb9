"""The flags of `python -m datasets.prepare`: one function a command."""

import argparse
from collections.abc import Callable
from pathlib import Path

NAMES = (
    "ShapeNet, ShapeNetRender, ModelNet, ModelNet40_SVM, ModelNet10, ScanObjectNN (or Scan_OBJ-BG, Scan_OBJ, Scan_PB), ModelNetFewShot, "
    "ShapeNetPart, ModelNet40-C"
)
Runner = Callable[[argparse.Namespace], int]


class Commands:
    """The commands of a parser, each with the function that runs it."""

    def __init__(self, parser: argparse.ArgumentParser):
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, run: Runner, purpose: str, example: str) -> argparse.ArgumentParser:
        """Add a command that calls `run`, with its help and an example."""
        command = self._commands.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example: python -m datasets.prepare {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--debug", action="store_true", help="show where an error arose")
        return command


def add_root(command: argparse.ArgumentParser) -> None:
    """Add `--data_root`."""
    command.add_argument(
        "--data_root", type=Path, default=Path("data"), metavar="DIR", help="folder of the data sets (default: data)"
    )


def add_check(commands: Commands, run: Runner) -> None:
    """Add the flags of `check`."""
    purpose = "say what is there, what is missing, and how to get it"
    command = commands.add("check", run, purpose, "check ScanObjectNN --data_root /mnt/data")
    command.add_argument(
        "name", nargs="?", metavar="NAME", help=f"{NAMES}, Folder, or a folder with a set; none: a table of all"
    )
    command.add_argument(
        "--any_count", action="store_true", help="accept other numbers of clouds than the published ones"
    )
    command.add_argument("--read", action="store_true", help="read every cloud as a run does; fills the cache")
    add_root(command)


def add_convert(commands: Commands, run: Runner) -> None:
    """Add the flags of `convert`."""
    command = commands.add(
        "convert",
        run,
        "convert meshes and clouds to a layout that the readers read",
        "convert ModelNet40 --up z --to modelnet40_normal_resampled --out data/ModelNet/modelnet40_normal_resampled",
    )
    command.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="a file, or a folder: <class>/<cloud> with train/ and test/ above or below, or <cloud>; also in folders below these",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--to",
        default="folder",
        metavar="LAYOUT",
        help="folder (default), modelnet40_normal_resampled, modelnet40_ply_hdf5 or shapenet",
    )
    command.add_argument(
        "--points",
        type=int,
        default=0,
        help="of each cloud (default: 8192; 10000 and 2048 for the two layouts of ModelNet40)",
    )
    command.add_argument(
        "--up",
        default="y",
        help="axis of the input that points up and becomes y; z for the meshes of ModelNet (default: y)",
    )
    command.add_argument(
        "--list",
        metavar="FILE",
        help="a table with the columns path (below INPUT), class and split, instead of what the folders say",
    )
    command.add_argument(
        "--common_classes", action="store_true", default=None, help="leave out classes that only one split has"
    )
    command.add_argument(
        "--test_share", type=float, default=0.2, help="of each class, where the input has no split (default: 0.2)"
    )
    add_work(command)


def add_work(command: argparse.ArgumentParser) -> None:
    """Add how files are worked through: `--workers`, `--skip_bad`."""
    command.add_argument(
        "--workers", type=int, default=0, help="processes (default: one a core, as far as memory goes)"
    )
    command.add_argument("--skip_bad", action="store_true", help="leave out files that cannot be read")


def add_render(commands: Commands, run: Runner) -> None:
    """Add the flags of `render`."""
    purpose = "draw meshes and clouds, and write clouds and pictures in the layout of ShapeNetRender"
    command = commands.add("render", run, purpose, "render ModelNet40 --up z --out data/ShapeNetRender")
    command.add_argument("input", type=Path, metavar="INPUT", help="as for convert; meshes give the better pictures")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument("--views", type=int, default=24, help="pictures of each shape, from all around (default: 24)")
    command.add_argument("--size", type=int, default=137, help="pixels a side (default: 137)")
    command.add_argument("--kind", default="shaded", help="shaded (default) or depth")
    command.add_argument("--elevation", type=float, default=25.0, help="of the cameras, in degrees (default: 25)")
    command.add_argument("--points", type=int, default=0, help="of each cloud (default: 2048)")
    command.add_argument("--up", default="y", help="axis of the input that points up and becomes y (default: y)")
    add_work(command)


def add_recipe(commands: Commands, run: Runner) -> None:
    """Add `recipe`."""
    purpose = (
        "write recipes for a set: pre-training, linear SVM, fine-tuning, few-shot, segmentation, with sizes that fit it"
    )
    command = commands.add("recipe", run, purpose, "recipe data/own --size tiny")
    command.add_argument("folder", type=Path, metavar="DIR", help="a folder of classes, or a set in a published layout")
    command.add_argument("--out", type=Path, metavar="DIR", help="(default: recipes/ and the name of the folder)")
    command.add_argument("--method", default="point-m2ae", help="as in cfgs/pre-training/ (default: point-m2ae)")
    command.add_argument(
        "--size", default="", help="tiny (a trial), small or published (default: small below 10,000 training clouds)"
    )
    command.add_argument("--up", default="y", help="axis of the clouds that points up (default: y, as converted)")
    command.add_argument("--list", default="", metavar="FILE", help="a table of path, class and split below DIR")
    command.add_argument("--epochs", type=int, default=0, help="of each training (default: by the number of clouds)")
    command.add_argument("--overwrite", action="store_true", help="replace recipes that are there")


def add_fetch(commands: Commands, run: Runner) -> None:
    """Add the flags of `fetch`."""
    example = "fetch ModelNet40_SVM --url https://HOST/modelnet40_ply_hdf5_2048.zip"
    command = commands.add("fetch", run, "download, check and unpack a data set", example)
    command.add_argument("name", metavar="NAME", help=f"{NAMES}, or an archive that --list shows", nargs="?")
    places = command.add_mutually_exclusive_group()
    places.add_argument("--url", metavar="LINK", help="link to the archive, or the archive itself on this machine")
    places.add_argument("--mirror", metavar="PLACE", help="a place of the table, which is not taken unless asked for")
    places.add_argument(
        "--list", action="store_true", help="print the places of NAME, or of all sets, and fetch nothing"
    )
    hashes = command.add_mutually_exclusive_group()
    hashes.add_argument(
        "--sha256", metavar="HASH", help="of the archive, over that of the table; another one is refused"
    )
    hashes.add_argument("--md5", metavar="HASH", help="the same, as some hosts state it")
    add_root(command)


def add_fixtures(commands: Commands, run: Runner) -> None:
    """Add the flags of `fixtures`."""
    purpose = "make a tiny set in a published layout from the built-in one"
    command = commands.add("fixtures", run, purpose, "fixtures ScanObjectNN --out trial/tiny --clouds 60")
    command.add_argument("name", metavar="NAME", help=NAMES)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="used as --data_root afterwards")
    command.add_argument("--clouds", type=int, default=40, help="training clouds; half as many for test (default: 40)")
    command.add_argument(
        "--points", type=int, default=0, help="of each cloud (default: as published; 1,024 for few-shot folds)"
    )
    command.add_argument("--dat", action="store_true", help="ModelNet: also the caches modelnet40_*pts_fps.dat")


def add_few_shot(commands: Commands, run: Runner) -> None:
    """Add the flags of `few-shot`."""
    command = commands.add(
        "few-shot",
        run,
        "draw few-shot folds from a labelled data set",
        "few-shot --source cfgs/dataset/ModelNet40.yaml --way 5 --shot 10 --out data/ModelNetFewshot",
    )
    command.add_argument(
        "--source", required=True, metavar="YAML_OR_NAME", help="a file of cfgs/dataset/, or a NAME such as ModelNet"
    )
    command.add_argument("--way", type=int, required=True, help="classes of a fold")
    command.add_argument("--shot", type=int, required=True, help="training clouds of each class")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets <way>way_<shot>shot/<fold>.pkl")
    command.add_argument("--folds", type=int, default=10, help="(default: 10)")
    command.add_argument("--seed", type=int, default=0, help="(default: 0)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the source, such as clouds=800"
    )
    add_root(command)
