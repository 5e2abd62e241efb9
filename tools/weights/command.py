"""The flags of `python -m tools.weights`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.weights.names import resolve
from tools.weights.table import MINI, Entry, entries
from utils.errors import run_command
from utils.log import console


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    args = build_parser().parse_args(argv)
    with console():
        return run_command(lambda: args.run(args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights",
        description="List, fetch and check published weights; keep the weights of a file alone.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_fetch(commands)
    check = commands.add_parser("check", help="say what files are, by hash or keys, and whether they load")
    check.add_argument("files", nargs="+", metavar="FILE", help="any checkpoint, or a name; nothing in it is run")
    check.set_defaults(run=_check)
    clean = commands.add_parser("clean", help="write the tensors of a checkpoint, without what else it holds")
    clean.add_argument("input", type=Path, metavar="IN", help="any checkpoint; nothing in it is run")
    clean.add_argument("out", type=Path, metavar="OUT", help="a new file")
    clean.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    clean.set_defaults(run=_clean)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error arose")
    return parser


def _add_list(commands) -> None:
    command = commands.add_parser("list", help="list published weights; of one name, all that is known")
    command.add_argument("words", nargs="*", metavar="WORD", help="a name, or words such as point-mae scan")
    command.add_argument("--json", action="store_true", help="print the whole table")
    command.set_defaults(run=_list)


def _add_fetch(commands) -> None:
    command = commands.add_parser("fetch", help="download weights by name, check their hash, say what they are")
    command.add_argument("name", metavar="NAME", help="as list shows it")
    command.add_argument("--url", metavar="LINK", help="another link, or the file itself, fetched by hand")
    command.add_argument("--sha256", metavar="HASH", help="over that of the table; a file of another one is kept aside")
    command.add_argument(
        "--out", type=Path, metavar="PATH", help="a file or a folder (default: where --ckpts NAME finds it)"
    )
    command.add_argument("--overwrite", action="store_true", help="fetch again what is there")
    command.set_defaults(run=_fetch)


def _list(args: argparse.Namespace) -> None:
    from tools.weights.listing import as_json, as_table, in_full

    if args.json:
        print(as_json())
    elif len(args.words) == 1 and args.words[0] in (*MINI, *entries()):
        print(in_full(args.words[0]))
    else:
        print(as_table(args.words))


def _fetch(args: argparse.Namespace) -> int:
    from tools.weights.fetch import fetch
    from tools.weights.names import entry_of

    given = {"url": args.url, "sha256": args.sha256, "out": args.out, "overwrite": args.overwrite}
    path, entry = fetch(args.name, **given), entry_of(args.name)
    if not entry.recipe:
        return 0
    found = _found(path, entry)
    if found and args.out is None:
        print(
            f"next: --ckpts {args.name}, for example python -m tools.embed --ckpts {args.name} --input DIR --out x.npz"
        )
    return 0 if found else 2


def _check(args: argparse.Namespace) -> int:
    loads = [_found(resolve(name)) for name in args.files]  # every file is read, whatever the first one is
    return 0 if all(loads) else 2


def _found(path: Path, entry: Entry | None = None) -> bool:
    """Print what a file is; returns whether it loads."""
    from tools.weights.check import check

    found = check(path, entry)
    print("\n  ".join(found.lines))
    return found.loads


def _clean(args: argparse.Namespace) -> None:
    from tools.weights.clean import clean

    clean(args.input, args.out, overwrite=args.overwrite)
