"""The confusion matrix as a heat table, the accuracy of each class, and the pairs that are mixed up most."""

from collections.abc import Mapping, Sequence

import numpy as np

from tools.report.markup import Html, Section, escape, table

NUMBERS_UP_TO = 24  # larger tables show shades only, the numbers appear under the pointer
PAIRS = 8


def confusion_section(
    matrix: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "Confusion matrix",
    unit: str = "clouds",
    links: Mapping[tuple[str, str], Sequence[str]] | None = None,
) -> Section:
    """Return the section of a confusion matrix.

    Args:
        matrix: (n, n) counts, rows the true classes, columns the predicted ones.
        class_names: n names; None stands for "0", "1", ...
        unit: what is counted.
        links: (true, predicted) class -> ids of the elements that show such clouds; `confusion.js` hides the others on a click.

    Raises:
        ValueError: if the matrix is not square, holds negative or non-finite counts, or does not match the names.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"confusion: expected a square matrix (n, n), got shape {matrix.shape}")
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError("confusion: counts must be finite and not negative")
    names = [str(name) for name in (class_names if class_names is not None else range(len(matrix)))]
    if len(names) != len(matrix):
        raise ValueError(f"confusion: {len(names)} class names for a matrix of shape {matrix.shape}")
    totals = matrix.sum(axis=1)
    correct, count = int(np.trace(matrix)), int(matrix.sum())
    overall = f"{correct:,} of {count:,} correct ({100 * correct / count:.2f} %)" if count else f"no {unit}"
    body = (
        f'<div class="confusion">{_heat_table(matrix, totals, names, links or {})}'
        f'<div class="side">{_class_bars(matrix, totals, names)}'
        f"{_pairs(matrix, totals, names, unit, links or {})}</div></div>"
    )
    lead = f"Rows are the true classes, columns the predicted ones, shaded by share of the row: {overall}."
    return Section(title, body, lead)


def _heat_table(matrix: np.ndarray, totals: np.ndarray, names: list[str], links: Mapping) -> str:
    numbers = len(names) <= NUMBERS_UP_TO
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            count = int(matrix[i, j])
            if not count:
                cells.append("<td></td>")
                continue
            share = 100 * count / totals[i]
            # Errors are few against the diagonal: a square root keeps a single one visible.
            shade = share if i == j else 10 * share**0.5
            kind = ("hit" if i == j else "miss") + (" strong" if shade > 60 else "")
            hint = f"{name} → {other}: {count} of {int(totals[i])} ({share:.1f} %)"
            shown = _linked(count if numbers else "·", links.get((name, other)), hint)
            shown = shown if numbers or (name, other) in links else ""
            cells.append(f'<td class="{kind}" style="--s:{shade:.0f}%" title="{escape(hint)}">{shown}</td>')
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    kind = "heat" if numbers else "heat fine"
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr><td></td>'
        f'<td class="axis-name" colspan="{len(names)}">predicted</td></tr><tr><td class="axis-name">true</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="ramp">share of the row: right 0 %<i class="hits"></i>100 %, wrong 0 %<i class="misses"></i>100 %</p></div>'
    )


def _linked(text: object, anchors: Sequence[str] | None, hint: str) -> str:
    """Return a number that leads to the first of the elements, and names them all for the script."""
    if not anchors:
        return str(text)
    return f'<a href="#{anchors[0]}" data-rows="{" ".join(anchors)}" aria-label="{escape(hint)}">{text}</a>'


def _class_bars(matrix: np.ndarray, totals: np.ndarray, names: list[str]) -> str:
    present = [i for i in range(len(names)) if totals[i]]
    shares = {i: 100 * matrix[i, i] / totals[i] for i in present}
    mean = f"mean {np.mean(list(shares.values())):.2f} %" if shares else "no clouds"
    rows = "".join(
        f'<li><span class="name">{escape(names[i])}</span>'
        f'<span class="bar"><i style="width:{shares[i]:.1f}%"></i></span>'
        f'<span class="share">{shares[i]:.1f} %</span><small>{int(matrix[i, i])}/{int(totals[i])}</small></li>'
        for i in sorted(present, key=shares.get)
    )
    return f'<div><h3>Accuracy by class, lowest first <small>{mean}</small></h3><ul class="bars">{rows}</ul></div>'


def _pairs(matrix: np.ndarray, totals: np.ndarray, names: list[str], unit: str, links: Mapping) -> str:
    errors = [(int(matrix[i, j]), i, j) for i, j in np.argwhere(matrix) if i != j]
    errors.sort(key=lambda error: (-error[0], error[1:]))
    if not errors:
        return '<div><h3>Most confused</h3><p class="none">No errors.</p></div>'
    rows = [
        (
            names[i],
            names[j],
            Html(_linked(count, links.get((names[i], names[j])), f"{names[i]} → {names[j]}: {count}")),
            f"{100 * count / totals[i]:.1f} %",
        )
        for count, i, j in errors[:PAIRS]
    ]
    listed = table(("true", "predicted", unit, "of the class"), rows, text_columns=2)
    return f"<div><h3>Most confused</h3>{listed}</div>"
