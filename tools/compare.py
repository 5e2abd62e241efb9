"""Several runs on one page: curves over each other, results, statistics, galleries.

    python -m tools.compare experiments/pre-training/point-mae/modelnet10-mini/plain \\
        experiments/pre-training/gm3d/modelnet10-mini/guided --out compare.html

RUN is the folder of a run, or one with runs `seed0`, `seed1` ... or `fold0` ... in it; differences are taken to the first RUN, pair by
pair of the same seed or fold. With three and more of them, Friedman's and Nemenyi's tests rank them.
"""

import argparse
import base64
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tools import statistics
from tools.report.markup import MISSING, Html, Section, asset, cards, escape, table
from tools.report.page import page
from tools.report.summary import curve_sections
from tools.statistics import check_pairs, compare_pairs, critical_difference_plot, interval
from tools.summary_runs import Run, differing, find_runs, read_run
from tools.summary_table import HEADERS, NUMBERS, Row
from utils.errors import UserError, run_command, say
from utils.files import write_atomic

SHOWN = ("last", "chosen", "selected", "best")  # scores that are compared, in this order
PICTURES = 12  # galleries of a page


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of the command line; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: _write(args.runs, args.out))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), metavar="FILE", help="default: compare.html")
    return parser


def _write(folders: Sequence[Path], out: Path) -> None:
    text = compare_page(read_groups(folders))
    write_atomic(out, lambda file: file.write(text.encode("utf-8")))
    say(f"{out}: {len(folders)} runs compared")


def read_groups(folders: Sequence[Path]) -> dict[str, list[Run]]:
    """Return the runs of each folder, by a name that tells the folders apart.

    Raises:
        UserError: a folder without runs, or without metrics.
    """
    groups = {}
    for folder, name in zip(folders, _names(folders), strict=True):
        own = (folder / "config.yaml").is_file()
        runs = [read_run(folder)] if own else [run for run in find_runs(folder)[0] if run.folder.parent == folder]
        measured = [run for run in runs if run.score]
        if not measured:
            why = f"{len(runs)} runs without an evaluation" if runs else "no runs"
            raise UserError(f"{folder}: has {why}; give the folder of a run, or one with seed0, seed1 ... in it")
        groups[name] = measured
    return groups


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as tell them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]}: is named twice; give each run once")


def compare_page(groups: Mapping[str, list[Run]]) -> str:
    """Return the page of several groups of runs."""
    kinds = list(dict.fromkeys((run.task, run.score, run.evaluated_on) for runs in groups.values() for run in runs))
    scores = {column: _by_seed(groups, column) for column in SHOWN}
    scores = {column: found for column, found in scores.items() if all(found.values())}
    shown = []
    for name, values in next(iter(scores.values()), {}).items():
        shown.append(
            (
                name,
                f"{interval(list(values.values())).mean:.2f} %",
                f"{len(values)} runs, {HEADERS[next(iter(scores))]}",
            )
        )
    logs = {
        name if len(runs) == 1 else f"{name}/{run.folder.name}": run.log
        for name, runs in groups.items()
        for run in runs
    }
    compared = _statistics(scores) if len({kind[1:] for kind in kinds}) == 1 else [_not_compared(kinds)]
    sections = [_results(groups), *compared, *curve_sections(logs), _keys(groups), *_galleries(groups)]
    subtitle = "; ".join(f"{task}, {score}" for task, score in dict.fromkeys(kind[:2] for kind in kinds))
    return page(
        "Runs compared", subtitle=subtitle, cards=cards(shown), sections=[section for section in sections if section]
    )


def summary_page(
    folder: Path, rows: Sequence[Row], headers: Sequence[str], cells: Sequence[Sequence[str]], *, place: Path
) -> str:
    """Return the page of a summary, which will be in the folder `place`: the table, with links to reports, and the curves."""
    linked = []
    for row, texts in zip(rows, cells, strict=True):
        run = row.runs[0].folder
        pages = [run.parent / "summary.html"] if len(row.runs) > 1 else []
        report = next((path for path in (*pages, run / "report.html") if path.is_file()), None)
        if report is not None:
            link = quote(Path(os.path.relpath(report, place)).as_posix())
            texts = [*texts[:-1], Html(f'<a href="{escape(link)}">{escape(texts[-1])}</a>')]
        linked.append(texts)
    body = f'<div class="panel sortable">{table(headers, linked, text_columns=4)}</div>'
    lead = "Scores are percent on the test set: mean and sample standard deviation over the seeds. A folder leads to its report, "
    lead += "and a head sorts by its column."
    logs = {
        run.folder.relative_to(folder).as_posix() if run.folder != folder else folder.name: run.log
        for row in rows
        for run in row.runs
    }
    sections = [Section("Runs", body, lead), *curve_sections(logs)]
    title = f"Runs in {folder.name}"
    return page(title, subtitle=f"{len(logs)} runs", cards=cards([]), sections=sections, script=asset("table.js"))


def _by_seed(groups: Mapping[str, list[Run]], column: str) -> dict[str, dict[str, float]]:
    return {
        name: {
            run.folder.name if len(runs) > 1 else "run": value
            for run in runs
            if (value := getattr(run, column)) is not None
        }
        for name, runs in groups.items()
    }


def _results(groups: Mapping[str, list[Run]]) -> Section:
    rows = [Row(runs, "") for runs in groups.values()]
    columns = [
        column
        for column in ("method", "data", "score", "seeds", *NUMBERS, "others", "note")
        if any(row.cell(column) for row in rows)
    ]
    cells = [
        (name, *(row.cell(column) or MISSING for column in columns)) for name, row in zip(groups, rows, strict=True)
    ]
    headers = ("run", *(HEADERS[column] for column in columns))
    lead = "Percent on the test set, mean ± sample standard deviation. The best epoch is selected on the test set; a table that "
    lead += "prints it must say so."
    return Section("Results", f'<div class="panel">{table(headers, cells, text_columns=4)}</div>', lead)


def _statistics(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Section]:
    """Return differences to the first group and, of three groups and more, their ranking, for the first score that all have."""
    if not scores:
        return []
    column, values = next(iter(scores.items()))
    base, *others = values
    if not others or len(values[base]) < 2:
        return []
    check_pairs(values)
    cells = []
    for name in others:
        found = compare_pairs(values[name], values[base])
        p = MISSING if found.wilcoxon is None else f"{found.wilcoxon:.3f}"
        each = ", ".join(f"{value:+.2f}" for value in found.differences)
        ends = (f"{ends.low:+.2f} to {ends.high:+.2f}" for ends in (found.interval, found.bootstrap))
        cells.append((name, f"{found.interval.mean:+.2f}", *ends, p, each))
    headers = ("run", "difference", "95 % (Student's t)", "95 % (paired bootstrap)", "p (Wilcoxon)", "each pair")
    pairs = len(values[base])
    few = f" With {pairs} pairs no p below {2 / 2**pairs:.2g} can occur." if pairs < statistics.FEW else ""
    lead = f"{HEADERS[column]}: points of percent more than {base}, pair by pair of the same seed or fold.{few}"
    sections = [Section("Differences", f'<div class="panel">{table(headers, cells)}</div>', lead)]
    return [*sections, *_ranking(values)]


def _not_compared(kinds: Sequence[tuple[str, str, str]]) -> Section:
    shown = "; ".join(f"{score} on {data} ({task})" for task, score, data in kinds)
    return Section("Differences", f"<p>{escape(f'None, because these are other scores or other data: {shown}.')}</p>")


def _ranking(values: Mapping[str, Mapping[str, float]]) -> list[Section]:
    if len(values) < 3:
        return []
    try:
        found = statistics.rank(values)
        picture = critical_difference_plot(found)
    except UserError as error:
        return [Section("Ranking", f"<p>{escape(error)}</p>")]
    names = list(values)
    cells = [
        (name, f"{found.ranks[name]:.2f}", *(f"{found.nemenyi[name][other]:.3f}" for other in names)) for name in names
    ]
    body = f'<div class="panel">{picture}{table(("run", "mean rank", *(f"p against {name}" for name in names)), cells)}</div>'
    lead = f"Friedman's test that all rank alike: p {found.friedman:.3g}. A bar joins runs that Nemenyi's test does not tell apart at 5 %."
    return [Section("Ranking", body, lead)]


def _keys(groups: Mapping[str, list[Run]]) -> Section | None:
    firsts = {name: runs[0] for name, runs in groups.items()}
    differs = differing(list(firsts.values()))
    rows = [(name, differs[run.folder] or MISSING) for name, run in firsts.items()]
    if all(text == MISSING for _, text in rows):
        return None
    return Section(
        "Keys in which they differ", f'<div class="panel">{table(("run", "keys"), rows, text_columns=2)}</div>'
    )


def _galleries(groups: Mapping[str, list[Run]]) -> list[Section]:
    """Return the galleries of the first run of each group, one below the other."""
    shown = []
    for name, runs in list(groups.items())[:PICTURES]:
        path = runs[0].folder / "gallery.png"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            picture = f'<img style="max-width:100%" alt="gallery of {escape(name)}" src="data:image/png;base64,{data}">'
            shown.append(f'<div class="panel"><h3>{escape(name)}</h3>{picture}</div>')
    return [Section("Galleries", "".join(shown))] if shown else []


if __name__ == "__main__":
    sys.exit(main())
