"""Read point clouds in the PCD format of the Point Cloud Library, versions 0.5 to 0.7: ASCII, binary, compressed binary.

Legend: n points.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.formats.rows import parse_rows
from utils.reading import check_room, read_bytes

_KINDS = {"F": "f", "I": "i", "U": "u"}
_SIZES = {"f": (4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}
MOST_HEADER = 1 << 16  # bytes


@dataclass(frozen=True)
class _Layout:
    """What a header says: where x, y and z stand among the fields, the fields' types and counts, and the number of points."""

    at: list[int]
    kinds: list[np.dtype]
    counts: list[int]
    points: int

    @property
    def row(self) -> np.dtype:
        fields = [
            (f"{i}", kind, (count,))
            for i, (kind, count) in enumerate(zip(self.kinds, self.counts, strict=True))
            if count
        ]
        return np.dtype(fields)


def read_pcd(path: Path) -> np.ndarray:
    """Return x, y and z of a PCD file, (n, 3) float64, with NaN where the file marks points as missing.

    Raises:
        ValueError: the header is not one, or the data end before it says.
        UserError: the file cannot be read.
    """
    head, data, body = _split(read_bytes(path))
    layout = _layout(head)
    number, needed = layout.points, layout.points * layout.row.itemsize
    if data == "ascii":
        rows = parse_rows(body)
        starts = np.cumsum([0, *layout.counts])
        if len(rows) < number or min(rows.counts[:number], default=0) < starts[-1]:
            raise ValueError(f"its header says {number} points of {starts[-1]} values, its data end before")
        columns = [rows.values[rows.starts[:number] + starts[i]] for i in layout.at]
    elif data == "binary":
        if len(body) < needed:
            raise ValueError(
                f"its header says {number} points, {needed:,} bytes, its data end before, after {len(body):,}"
            )
        table = np.frombuffer(body, layout.row, number)
        columns = [table[f"{i}"][:, 0] for i in layout.at]
    elif data == "binary_compressed":
        check_room(path, needed, "unpacks to")
        columns = _columns(_decompress(body, needed), layout)
    else:
        raise ValueError(f"its DATA {data} is unknown; expected ascii, binary or binary_compressed")
    with np.errstate(invalid="ignore"):  # bits that are no number mark missing points
        return np.stack([np.asarray(column, np.float64) for column in columns], axis=1).reshape(-1, 3)


def _layout(head: dict[str, list[str]]) -> _Layout:
    fields = [name.lower() for name in head.get("FIELDS", head.get("COLUMNS", []))]  # version 0.5 called them columns
    sizes = head.get("SIZE", ["4"] * len(fields))
    types = head.get("TYPE", ["F"] * len(fields))
    counts = _numbers(head.get("COUNT", ["1"] * len(fields)), "COUNT")
    for axis in "xyz":
        if fields.count(axis) > 1:
            raise ValueError(f"its header has the field {axis} twice")
    if not {"x", "y", "z"} <= set(fields) or not len(fields) == len(counts) == len(sizes) == len(types):
        raise ValueError("its header has no FIELDS x, y, z with SIZE, TYPE, COUNT and POINTS")
    at = [fields.index(axis) for axis in "xyz"]
    if any(counts[i] != 1 for i in at):
        raise ValueError("its header has a COUNT other than 1 for x, y or z")
    kinds = []
    for name, kind, size in zip(fields, types, _numbers(sizes, "SIZE"), strict=True):
        code = _KINDS.get(kind.upper(), "?")
        if size not in _SIZES.get(code, ()):
            raise ValueError(f"its field {name} has the unknown TYPE {kind} of SIZE {size}")
        kinds.append(np.dtype(f"<{code}{size}"))
    return _Layout(at, kinds, counts, _point_count(head))


def _point_count(head: dict[str, list[str]]) -> int:
    """Return how many points there are: POINTS, or WIDTH x HEIGHT, which must agree where both are given."""
    given = {key: _numbers(head[key], key) for key in ("POINTS", "WIDTH", "HEIGHT") if key in head}
    if any(len(values) != 1 for values in given.values()):
        raise ValueError(
            f"its header has {next(key for key, values in given.items() if len(values) != 1)} without one number"
        )
    area = given["WIDTH"][0] * given.get("HEIGHT", [1])[0] if "WIDTH" in given else None
    if "POINTS" not in given and area is None:
        raise ValueError("its header has no POINTS")
    points = given["POINTS"][0] if "POINTS" in given else area
    if area is not None and area != points:
        raise ValueError(f"its header says {points} POINTS, and WIDTH x HEIGHT are {area}")
    return points


def _numbers(words: list[str], key: str) -> list[int]:
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"its header has {key} {' '.join(words)[:40]}; expected numbers from 0 on")
    return [int(word) for word in words]


def _split(content: bytes) -> tuple[dict[str, list[str]], str, bytes]:
    """Return the words of each header line by its first, what DATA says, and what follows."""
    head, start = {}, 0
    while (end := content.find(b"\n", start)) >= 0 and start < MOST_HEADER:
        words = content[start:end].decode("ascii", "replace").split()
        start = end + 1
        key = words[0].upper() if words else ""
        if key == "DATA" and len(words) == 2:
            return head, words[1].lower(), content[start:]
        if key and not key.startswith("#"):
            if key in head:
                raise ValueError(f"its header has {key} twice")
            head[key] = words[1:]
    raise ValueError("is no PCD file: its header does not end with DATA")


def _columns(raw: bytes, layout: _Layout) -> list[np.ndarray]:
    """Take columns from the field-by-field layout of compressed files."""
    columns, start = {}, 0
    for i, (kind, count) in enumerate(zip(layout.kinds, layout.counts, strict=True)):
        if i in layout.at:
            columns[i] = np.frombuffer(raw, kind, layout.points, offset=start)
        start += kind.itemsize * count * layout.points
    return [columns[i] for i in layout.at]


def _decompress(body: bytes, needed: int) -> bytes:
    """Undo the LZF compression of a compressed file, literal runs and back references; equal sizes are data as they are.

    Args:
        needed: bytes that the points take.
    """
    packed, whole = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    data = body[8 : 8 + packed]
    if len(data) < packed:
        raise ValueError(f"its compressed data have {len(data)} of {packed} bytes")
    if whole != needed:
        raise ValueError(f"its compressed data give {whole} bytes, its points take {needed}")
    if packed == whole:
        return data
    out, i = bytearray(), 0
    while i < packed:
        control = data[i]
        i += 1
        if control < 32:
            out += data[i : i + control + 1]
            i += control + 1
        else:
            length = (control >> 5) + 2
            if length == 9:
                length += _byte(data, i)
                i += 1
            start = len(out) - ((control & 31) << 8) - _byte(data, i) - 1
            i += 1
            if start < 0:
                raise ValueError("its compressed data refer to what is not there")
            part = out[start : start + length]
            # A reference may overlap what it writes: then it repeats.
            out += part if len(part) == length else (part * (length // len(part) + 1))[:length]
        if len(out) > whole:
            break
    if len(out) != whole:
        raise ValueError(
            f"its compressed data give {'more than ' * (len(out) > whole)}{min(len(out), whole)} bytes, its header says {whole}"
        )
    return bytes(out)


def _byte(data: bytes, i: int) -> int:
    if i >= len(data):
        raise ValueError("its compressed data are cut short inside a back reference")
    return data[i]
