"""Read clouds from text: one point a line, numbers separated by blanks, tabs, commas or semicolons.

One separator a file. Commas that occur with another separator are decimal commas. Leading lines that hold no numbers are skipped and said.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.formats.points import MOST_COLUMNS, Notes
from utils.reading import decode, read_bytes

MOST_HEAD = 100  # lines before the first numbers
_COMMENTS = ("#", "//", "%", "!")
_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # that some programs write in place of a line feed
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_WINDOWS = re.compile(r"-?1\.#\w+")  # how programs on Windows write what is not finite
_COMMA = re.compile(r"[+-]?\d+(,\d+)+(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class _Form:
    """How the numbers of a file stand."""

    skip: int  # lines before the first one with numbers
    begin: int  # where that line begins in the text
    first: str  # its numbers, without a comment
    delimiter: str | None  # None: blanks
    count: int | None  # points that a line before says
    names: list[str]  # of the columns, lower case, where a line before gives them
    words: list[str]  # lines before it that are neither comments nor the count


def read_text_cloud(path: Path, notes: Notes) -> np.ndarray:
    """Return x, y and z of a text file, (n, 3) float64: the columns of these names, else the first three.

    Raises:
        ValueError: the file holds no numbers, fewer than three a line, or more than one way to separate them.
    """
    data = read_bytes(path)
    if b"\0" in data[:4096] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("holds binary data, not text")
    text = decode(data)
    if any(mark in text for mark in _LINE_ENDS):
        text = re.sub(f"[{_LINE_ENDS}]", "\n", text)
    if not text.strip():
        raise ValueError("the file is empty")
    form = _form(text)
    if form.words:
        notes.add(
            path, "lines before the first numbers were skipped", f"{len(form.words)} lines, {form.words[0][:40]!r}"
        )
    wanted = _wanted(form)
    body = _plain(text[form.begin :] if form.begin else text, form)
    form_of_numbers = {
        "delimiter": form.delimiter,
        "quotechar": '"' if '"' in body else None,
        "comments": [mark for mark in _COMMENTS if mark in body] or None,
    }
    try:
        table = np.loadtxt(io.StringIO(body), ndmin=2, usecols=wanted, **form_of_numbers)
    except ValueError as error:
        raise ValueError(_first_bad(body, form, wanted) or str(error)) from error
    if form.count is not None and form.count != len(table):
        raise ValueError(f"its first line says {form.count} points, {len(table)} follow; is it cut short?")
    columns = len(_split(form.first, form.delimiter))
    if columns > len(table) and ((len(table) == 3 and columns > 3) or columns > MOST_COLUMNS):
        raise ValueError(f"has {len(table)} lines of {columns} numbers: rows and columns look exchanged; transpose it")
    return table


def holds_numbers(path: Path, most: int = 4096) -> bool:
    """Say whether a text file begins like a cloud: with a line of three columns or more, numbers or named x, y and z."""
    with path.open("rb") as file:
        head = file.read(most)
    if not head.strip():
        return True  # an empty file is a bad cloud rather than a note to people
    try:
        form = _form(decode(head))
    except ValueError:
        return False
    return len(_split(form.first, form.delimiter)) >= 3


def _numbers(line: str) -> list[str]:
    words = [word for word in re.split(r"[\s;]+|,(?=\s)", line) if word]
    words = [word.strip('"') for word in (words[0].split(",") if len(words) == 1 else words)]
    return [word for word in words if _NUMBER.fullmatch(word) or _COMMA.fullmatch(word)]


def _form(text: str) -> _Form:
    """Find the first line of numbers, and how they are separated."""
    count, names, skipped, number, begin = None, [], [], 0, 0
    while begin <= len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        line = text[begin:end].strip()
        bare = _without_comment(line)
        words = _numbers(bare)
        begins = bool(bare) and (bare.lstrip('"')[:1] in "+-.0123456789" or _NUMBER.fullmatch(bare.split()[0]))
        if len(words) >= 2 and (begins or set("xyz") <= set(names)):
            return _Form(number, begin, bare, _delimiter(bare), count, names, skipped)
        if bare.isdecimal() and count is None:
            count = int(bare)  # as PTS files begin
        elif line:
            skipped += [bare] if bare else []
            names = [name.strip().strip('"').lower() for name in re.split(r"[\s,;]+", line.lstrip("#/%! ")) if name]
        number, begin = number + 1, end + 1
        if number > MOST_HEAD:
            break
    raise ValueError("holds no line of three numbers, x y z")


def _without_comment(line: str) -> str:
    for mark in _COMMENTS:
        line = line.partition(mark)[0]
    return line.strip()


def _delimiter(line: str) -> str | None:
    if ";" in line:
        return ";"
    if "," in line and all(len(piece.split()) <= 1 for piece in line.split(",")):
        return ","
    return None


def _split(line: str, delimiter: str | None) -> list[str]:
    words = line.split(delimiter)
    return [word.strip().strip('"') for word in words] if delimiter else words


def _wanted(form: _Form) -> tuple[int, int, int]:
    """Return the columns of x, y and z: by the names that a line before gives, where they fit."""
    columns = len(_split(form.first, form.delimiter))
    if len(form.names) == columns and all(form.names.count(axis) == 1 for axis in "xyz"):
        return tuple(form.names.index(axis) for axis in "xyz")
    return 0, 1, 2


def _plain(text: str, form: _Form) -> str:
    """Write decimal commas as points, where commas are no separator.

    Raises:
        ValueError: commas separate thousands, or may do so.
    """
    if "1.#" in text:
        text = _WINDOWS.sub("nan", text)
    if form.delimiter != "," and "," in text:
        lines = [_without_comment(line) for line in text.split("\n") if "," in line]
        words = [word for line in lines for word in _split(line, form.delimiter)[:3] if "," in word]
        grouped = next(
            (word for word in words if word.count(",") > 1 or ("." in word and _COMMA.fullmatch(word))), None
        )
        if grouped:
            raise ValueError(f"{grouped[:40]!r} separates thousands by commas; write numbers without them")
        # 4,543 may be either; 0,543 or 4,5 or 4,5430 can only be decimals.
        if words and all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", word) for word in words):
            raise ValueError(
                f"{words[0][:40]!r} may have a decimal comma or separate thousands; write decimals with a point"
            )
        text = text.replace(",", ".")
    return text


def _first_bad(body: str, form: _Form, wanted: tuple[int, ...]) -> str | None:
    """Describe the first line that cannot be read."""
    for number, line in enumerate(body.split("\n"), start=form.skip + 1):
        words = _split(_without_comment(line), form.delimiter)
        if not any(words):
            continue
        bad = next((words[i] for i in wanted if i < len(words) and not _NUMBER.fullmatch(words[i])), None)
        if len(words) <= max(wanted):
            return f"line {number}, {line.strip()[:60]!r}, has {len(words)} values; expected x y z and the same separator in all lines"
        if bad is not None:
            return f"line {number}, {line.strip()[:60]!r}: {bad[:40]!r} is no number"
    return None
