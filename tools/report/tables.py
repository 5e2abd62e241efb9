"""One table in five forms: for the terminal, Markdown, CSV, LaTeX and HTML."""

import csv
import io
from collections.abc import Callable, Sequence

from tools.report.markup import table

Rows = Sequence[Sequence[str]]
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "\N{EN DASH}": "--", "→": r"$\rightarrow$",
    }
)  # fmt: skip


def terminal(headers: Sequence[str], rows: Rows) -> str:
    """Return columns of equal width."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def markdown(headers: Sequence[str], rows: Rows) -> str:
    """Return a table of GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    return line(headers) + "|" + "---|" * len(headers) + "\n" + "".join(map(line, rows))


def comma_separated(headers: Sequence[str], rows: Rows) -> str:
    """Return CSV with a head line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headers, *rows])
    return text.getvalue()


def latex(headers: Sequence[str], rows: Rows) -> str:
    """Return a `tabular` with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cell.translate(_LATEX) for cell in cells) + " \\\\\n"

    columns = "l" + "r" * (len(headers) - 1)
    body = "".join(map(line, rows))
    return f"\\begin{{tabular}}{{{columns}}}\n  \\toprule\n{line(headers)}  \\midrule\n{body}  \\bottomrule\n\\end{{tabular}}\n"


def html(headers: Sequence[str], rows: Rows) -> str:
    """Return an HTML table."""
    return table(headers, rows)


FORMS: dict[str, Callable[[Sequence[str], Rows], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
    "html": html,
}
