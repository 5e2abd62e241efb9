"""Reproduce published numbers: what each takes, what is there of it, run it, and ours next to the published one.

    python -m tools.reproduce --list
    python -m tools.reproduce point-m2ae/svm-modelnet40 --ckpts pre-train.pth
    python -m tools.reproduce 'point-mae/*' --seeds 0,1,2

A number starts from pre-trained weights, `--ckpts`, or pre-trains first. Runs are `experiments/.../reproduce/seed0`: the same command
goes on where it stopped and runs nothing twice. What follows `--` goes to every run of the main program. Published numbers are the best of
several epochs and runs, selected on the test set, and ours are taken in the same way.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from datasets.preparing.check import look
from datasets.preparing.layouts import find
from tools.published.numbers import Number, numbers
from tools.report.tables import FORMS
from tools.results import check_weights
from tools.run_folder import experiment_folder
from tools.statistics import interval
from tools.sweep_command import read_seeds
from utils import ROOT
from utils.config.cli import parse_args
from utils.errors import UserError, run_command, say, suggest
from utils.files import write_atomic
from utils.programs import run_program

HEADERS = ("number", "published", "ours", "runs", "difference", "verdict", "data", "weights", "state")
EXPERIMENT = "reproduce"  # the first part of --exp_name


@dataclass(frozen=True)
class Step:
    """One run of the main program: its command line, and the folder that has its result in the end."""

    arguments: tuple[str, ...]
    folder: Path
    results: str  # files of results, below the folder

    def result(self) -> Path | None:
        """Return the file of results, or None where the run is not complete."""
        return max(self.folder.glob(self.results), key=lambda path: path.stat().st_mtime, default=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the numbers of the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    args = build_parser().parse_args(given[:place])
    args.flags = given[place + 1 :]
    return run_command(lambda: _run(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags in front of `--`."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="METHOD/TASK, or a pattern such as 'point-mae/*'")
    parser.add_argument(
        "--list", action="store_true", help="show the state of the numbers, all by default, and run nothing"
    )
    parser.add_argument(
        "--seeds", metavar="SEEDS", help="of every run: --seeds 0,1,2 (default: 0; with --list those that there are)"
    )
    parser.add_argument("--ckpts", metavar="PTH", help="pre-trained weights, instead of pre-training")
    parser.add_argument("--data_root", default="data", metavar="DIR", help="folder of the data sets (default: data)")
    parser.add_argument(
        "--any_count", action="store_true", help="accept sets of other sizes than the published ones, such as fixtures"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands of what is not complete, and run nothing"
    )
    parser.add_argument(
        "--format", choices=[form for form in FORMS if form != "html"], default="terminal", help="of the table"
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    chosen = _chosen(args)
    given = None if args.seeds is None else read_seeds(args.seeds)
    seeds = given or [0]
    if not args.list:
        _check_data(chosen, args)
        _check_weights([_last(number, seed, args) for number in chosen for seed in seeds])
        for number in chosen:
            for seed in seeds:
                for step in steps(number, seed, args):
                    _do(step, dry=args.dry_run)
        if args.dry_run:
            return
    shown = {number: given or begun(number, args) if args.list else seeds for number in chosen}
    text = FORMS[args.format](HEADERS, [row(number, own, args) for number, own in shown.items()])
    sys.stdout.write(text)
    if not args.list:
        for number in chosen:
            _keep(number, seeds, args)


def _chosen(args: argparse.Namespace) -> list[Number]:
    """Return the numbers that the names mean.

    Raises:
        UserError: a name that is none, or no name at all.
    """
    known = {number.name: number for number in numbers()}
    if not args.names and not args.list:
        raise UserError("which number? Give METHOD/TASK, such as point-m2ae/svm-modelnet40; --list shows all")
    chosen = dict.fromkeys(known) if not args.names else {}
    for name in args.names:
        found = fnmatch.filter(known, name)
        if not found:
            raise UserError(f"{name}: is no published number that is known here; {suggest(name, known)}")
        chosen |= dict.fromkeys(found)
    return [known[name] for name in chosen]


def missing_data(number: Number, args: argparse.Namespace) -> list[str]:
    """Return what the data sets of a number lack, one line a set."""
    found = []
    for name in number.data(pre_trained=args.ckpts is not None):
        problems = [
            problem
            for layout in find(name)
            for problem in look(layout, Path(args.data_root), any_count=args.any_count).problems
        ]
        if problems:
            found.append(f"{name}: {problems[0]}")
    return found


def _check_data(chosen: Sequence[Number], args: argparse.Namespace) -> None:
    """Check all data before anything runs.

    Raises:
        UserError: naming what is missing, and how to get it.
    """
    lacking = list(dict.fromkeys(line for number in chosen for line in missing_data(number, args)))
    if lacking and not args.dry_run:
        first = lacking[0].partition(":")[0]
        raise UserError(
            f"data is missing, nothing was run: {'; '.join(lacking)}. python -m datasets.prepare check {first} says how to get it"
        )
    for line in lacking:
        say(f"missing: {line}")
    if args.ckpts is not None and not Path(args.ckpts).is_file():
        raise UserError(f"--ckpts {args.ckpts}: is no file; give pre-trained weights, or leave it out to pre-train")


def _check_weights(last: Sequence[Step]) -> None:
    """Raise where a complete run started from other weights than it would now.

    Raises:
        UserError: as `check_weights`.
    """
    for step in last:
        path = step.result()
        if path is not None:
            path = path if path.name == "result.json" else next(step.folder.glob("fold*/result.json"), path)
            check_weights(path, step.arguments[step.arguments.index("--ckpts") + 1])


def begun(number: Number, args: argparse.Namespace) -> list[int]:
    """Return the seeds of a number for which there is a folder of its last run; 0 without any."""
    folders = _last(number, 0, args).folder.parent.glob("seed*")
    return sorted(int(path.name[4:]) for path in folders if path.name[4:].isdigit()) or [0]


def _last(number: Number, seed: int, args: argparse.Namespace) -> Step:
    return steps(number, seed, args)[-1]


def steps(number: Number, seed: int, args: argparse.Namespace) -> list[Step]:
    """Return the runs that a number takes with a seed, in order."""
    found, weights = [], args.ckpts
    if weights is None:
        found.append(_step(number.pre_training, (), seed, args, "result.json"))
        weights = str(found[0].folder / "ckpt-last.pth")
    flags = (*number.how.flags, "--ckpts", weights)
    results = {"svm": "svm_*/result.json", "way": "summary.json"}
    kind = next((kind for kind in results if kind in number.task), None)
    return [*found, _step(number.recipe, flags, seed, args, results.get(kind, "result.json"), task=number.task)]


def _step(
    recipe: str, flags: tuple[str, ...], seed: int, args: argparse.Namespace, results: str, task: str = ""
) -> Step:
    own = {"svm-modelnet40": "", "svm-scan": "", "modelnet40-vote": "-vote"}.get(
        task, f"-{task}" if "way" in task else ""
    )
    common = ("--data_root", args.data_root, *args.flags)
    arguments = (
        "--config",
        recipe,
        "--exp_name",
        f"{EXPERIMENT}{own}/seed{seed}",
        *flags,
        "--seed",
        str(seed),
        *common,
    )
    parsed = parse_args(arguments)
    return Step(arguments, experiment_folder(parsed, ROOT / recipe), results)


def _do(step: Step, *, dry: bool) -> None:
    """Run a step unless it is complete.

    Raises:
        UserError: it failed.
        Stopped: as `run_program`.
    """
    if step.result() is not None:
        return
    trains = "--test_svm" not in step.arguments
    begun = (trains and (step.folder / "config.yaml").is_file()) or any(step.folder.glob("fold*/config.yaml"))
    command = [sys.executable, str(ROOT / "main.py"), *step.arguments, *(["--resume"] if begun else [])]
    if dry:
        print(" ".join(["python", "main.py", *command[2:]]))
        return
    say(f"running: python main.py {' '.join(command[2:])}")
    code = run_program(command)
    if code or step.result() is None:
        raise UserError(
            f"the run in {step.folder} failed with status {code}; its log says why, and the same command goes on"
        )


def ours(number: Number, seeds: Sequence[int], args: argparse.Namespace) -> list[float]:
    """Return our values of a number, one a complete seed; of few-shot classification the mean over its folds."""
    values = []
    for seed in seeds:
        path = _last(number, seed, args).result()
        if path is None:
            continue
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        named = [name for name in results if name.startswith(number.how.result)]
        if named:
            value = results[named[0]]
            values.append(value["mean"] if isinstance(value, dict) else value)
    return values


def row(number: Number, seeds: Sequence[int], args: argparse.Namespace) -> list[str]:
    """Return a line of the table."""
    values = ours(number, seeds, args)
    published = f"{number.published:.2f}" + ("" if number.spread is None else f" ± {number.spread:.1f}")
    lacking = missing_data(number, args)
    data = "there" if not lacking else f"missing: {', '.join(line.partition(':')[0] for line in lacking)}"
    state = f"{len(values)} of {len(seeds)} seeds" if values else "not begun"
    mine = (
        ""
        if not values
        else f"{sum(values) / len(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
    )
    difference = "" if not values else f"{sum(values) / len(values) - number.published:+.2f}"
    given = verdict(number, values)
    return [
        number.name,
        published,
        mine,
        str(len(values)),
        difference,
        given,
        data,
        weights(number, seeds, args),
        state,
    ]


def weights(number: Number, seeds: Sequence[int], args: argparse.Namespace) -> str:
    """Say what is there of the weights that a number starts from."""
    if args.ckpts is not None:
        return "given"
    done = sum(steps(number, seed, args)[0].result() is not None for seed in seeds)
    return f"pre-trained, {done} of {len(seeds)} seeds" if done else "to be pre-trained"


def verdict(number: Number, values: Sequence[float]) -> str:
    """Say how our values stand to the published one: by their 95 % interval, or by the published spread where there is one run."""
    if not values:
        return ""
    found = interval(values)
    if len(values) == 1:
        if number.spread is None:
            return "one run: no verdict"
        within = abs(found.mean - number.published) <= 2 * number.spread
        return "within twice the published spread" if within else "outside twice the published spread"
    if found.low <= number.published <= found.high:
        return "agrees: within the 95 % interval"
    return "higher than published" if found.mean > number.published else "lower than published"


def _keep(number: Number, seeds: Sequence[int], args: argparse.Namespace) -> None:
    """Write what came out into `reproduce/<method>/<task>.json` of the experiments."""
    content = {
        **dict(zip(HEADERS, row(number, seeds, args), strict=True)),
        "values": ours(number, seeds, args),
        "seeds": list(seeds),
    }
    path = Path("experiments") / EXPERIMENT / f"{number.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


if __name__ == "__main__":
    sys.exit(main())
