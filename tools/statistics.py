"""Statistics over runs: intervals, paired differences, several methods over several data sets. All of it is SciPy's and scikit-posthocs'.

Values are percent, one a seed or fold. Pairs are the same seed or fold trained in two ways.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from scipy import stats

from utils.errors import UserError

LEVEL = 0.95
RESAMPLES = 9999
FEW = 6  # pairs below which no rank test of two sides can reach 5 %


@dataclass(frozen=True)
class Interval:
    """A mean, and the 95 % interval of it; both ends are NaN for a single value."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if math.isnan(self.low) else f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Paired:
    """The differences of paired runs to those of a base.

    Args:
        interval: mean difference, with the interval of Student's t.
        bootstrap: the interval of the paired bootstrap, percentiles; too narrow for a handful of pairs.
        wilcoxon: p of the signed-rank test of two sides; None where all pairs are equal. Not below 0.25 for three pairs.
    """

    differences: list[float]
    interval: Interval
    bootstrap: Interval
    wilcoxon: float | None


@dataclass(frozen=True)
class Ranking:
    """Several methods on the same data sets or seeds.

    Args:
        ranks: method -> mean rank, 1 is best.
        friedman: p of the Friedman test that all rank alike.
        nemenyi: method -> method -> p of Nemenyi's test of the pair.
    """

    ranks: dict[str, float]
    friedman: float
    nemenyi: dict[str, dict[str, float]]


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent runs and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = float(stats.sem(values))
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def compare_pairs(values: Mapping[str, float], base: Mapping[str, float]) -> Paired:
    """Compare runs with those of a base, seed by seed.

    Args:
        values, base: seed or fold -> score.

    Raises:
        UserError: they are not of the same seeds.
    """
    check_pairs({"base": base, "row": values})
    differences = [values[seed] - base[seed] for seed in base]
    mean = interval(differences)
    return Paired(differences, mean, _bootstrap(differences, mean), _wilcoxon(differences))


def check_pairs(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Raise where the rows of a paired test are of different seeds or folds.

    Raises:
        UserError: naming two rows and what each has.
    """
    first = next(iter(rows))
    for name, values in rows.items():
        if set(values) != set(rows[first]):
            have = " and ".join(f"{row} has {', '.join(map(str, rows[row])) or 'none'}" for row in (first, name))
            raise UserError(f"paired test: {have}; both need the same seeds, run those that are missing")


def rank(rows: Mapping[str, Mapping[str, float]]) -> Ranking:
    """Rank methods over the same data sets or seeds: Friedman's test, and Nemenyi's for each pair.

    Args:
        rows: method -> data set or seed -> score, more is better.

    Raises:
        UserError: fewer than three methods or two blocks, blocks that differ, or scikit-posthocs is not installed.
    """
    check_pairs(rows)
    blocks = list(next(iter(rows.values())))
    if len(rows) < 3 or len(blocks) < 2:
        raise UserError(
            f"Friedman's test: {len(rows)} methods on {len(blocks)} sets or seeds; it needs three methods and two sets or seeds"
        )
    posthocs = _posthocs()
    table = np.array([[values[block] for block in blocks] for values in rows.values()])  # methods x blocks
    friedman = 1.0 if (table == table[0]).all() else float(stats.friedmanchisquare(*table).pvalue)
    ranks = stats.rankdata(-table, axis=0).mean(axis=1)
    pairs = posthocs.posthoc_nemenyi_friedman(table.T).to_numpy()
    names = list(rows)
    nemenyi = {name: dict(zip(names, map(float, row), strict=True)) for name, row in zip(names, pairs, strict=True)}
    return Ranking(dict(zip(names, map(float, ranks), strict=True)), friedman, nemenyi)


def critical_difference_plot(ranking: Ranking) -> str:
    """Draw mean ranks, with a bar over methods that Nemenyi's test does not tell apart at 5 %; returns SVG.

    Raises:
        UserError: scikit-posthocs is not installed.
    """
    import matplotlib
    import pandas
    from matplotlib.figure import Figure

    posthocs = _posthocs()
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(ranking.ranks)))
    axes = figure.add_subplot()
    posthocs.critical_difference_diagram(ranking.ranks, pandas.DataFrame(ranking.nemenyi), ax=axes)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "m2ae", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _bootstrap(differences: Sequence[float], mean: Interval) -> Interval:
    if len(differences) < 2 or np.ptp(differences) == 0:
        return mean
    found = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return Interval(mean.mean, *map(float, found.confidence_interval))


def _wilcoxon(differences: Sequence[float]) -> float | None:
    return float(stats.wilcoxon(differences).pvalue) if any(differences) else None


def _posthocs() -> ModuleType:
    try:
        import scikit_posthocs
    except ImportError as error:
        raise UserError(
            "Nemenyi's test needs scikit-posthocs; install it: pip install 'm2ae[statistics]', or pip install scikit-posthocs"
        ) from error
    return scikit_posthocs
