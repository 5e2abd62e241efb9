"""Read PLY files, clouds and meshes; write point clouds, which MeshLab, CloudCompare, Blender and Open3D open.

Legend: n vertices, F triangles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.formats.rows import parse_rows, polygon_groups, triangles
from utils.files import write_atomic
from utils.reading import check_file, read_bytes

WRITTEN_TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
READ_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
MOST_HEADER = 1 << 20  # bytes; longer headers are none
CORNERS = ("vertex_indices", "vertex_index")  # names of the list of a face


@dataclass
class Property:
    """One property of an element: a number, or a list with the type of its length."""

    name: str
    kind: str  # code of NumPy, without byte order
    length: str | None = None


@dataclass
class Element:
    """One element of a header."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        """Whether a property of the element is a list."""
        return any(entry.length for entry in self.properties)

    def position(self, *names: str) -> int:
        """Return which property has one of the names.

        Raises:
            ValueError: none or several have it.
        """
        found = [i for i, entry in enumerate(self.properties) if entry.name in names]
        if len(found) != 1:
            raise ValueError(f"its {self.name} has {len(found)} properties {names[0]}; expected one")
        return found[0]


@dataclass
class Header:
    """The header of a file, and where its data begin."""

    layout: str
    elements: list[Element]
    size: int

    def element(self, name: str) -> Element | None:
        """Return the element of a name, or None."""
        return next((element for element in self.elements if element.name == name), None)


def read_header(path: Path) -> Header:
    """Read the header of a PLY file, line by line, in upper or lower case.

    Raises:
        ValueError: it is no PLY file, or its header is malformed.
        UserError: the file cannot be read.
    """
    check_file(path)
    with path.open("rb") as file:
        return _parse_header(file.read(MOST_HEADER))


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the vertices (n, 3) float64 of a PLY file and its triangles (F, 3) int64, None where its header announces no faces.

    Raises:
        ValueError: the header is malformed, or the data end before it says.
        UserError: the file cannot be read.
    """
    data = read_bytes(path)
    header = _parse_header(data[:MOST_HEADER])
    vertex, face = header.element("vertex"), header.element("face")
    if vertex is None or vertex.count == 0:
        raise ValueError("its header has no vertices with x, y and z")
    if any(entry.name in "xyz" and entry.length for entry in vertex.properties):
        raise ValueError("a coordinate of its vertices is a list; expected numbers x, y and z")
    at = [vertex.position(axis) for axis in "xyz"]
    body = data[header.size :]
    if header.layout == "ascii":
        return _read_ascii(body, header, at)
    vertices, faces, offset = None, None, 0
    for element in header.elements:
        if element is vertex:
            vertices, offset = _vertices(body, offset, element, ORDERS[header.layout], at)
        elif element is face and face.count:
            faces, offset = _faces(body, offset, element, ORDERS[header.layout])
        elif vertices is None or (face is not None and face.count and faces is None):
            offset = _skip(body, offset, element, ORDERS[header.layout])
    return vertices, faces


def _parse_header(data: bytes) -> Header:
    elements: list[Element] = []
    layout, begin, number = None, 0, 0
    if data[:3].lower() != b"ply":
        raise ValueError("is no PLY file: it does not start with ply")
    # Old programs end lines by a carriage return alone.
    end_mark = b"\r" if data[3:4] == b"\r" and data[4:5] != b"\n" else b"\n"
    while (end := data.find(end_mark, begin)) >= 0:
        words = data[begin:end].decode("ascii", "replace").lower().split()
        begin, number = end + 1, number + 1
        if words[:1] == ["end_header"] and len(words) == 1:
            if layout is None:
                raise ValueError("its header has no line format")
            return Header(layout, elements, begin)
        if words[:1] == ["format"]:
            layout = words[1] if len(words) > 1 else ""
            if layout not in ORDERS:
                raise ValueError(f"its format {layout} is unknown; expected {' or '.join(ORDERS)}")
        elif words[:1] == ["element"]:
            elements.append(_parse_element(words, elements))
        elif words[:1] == ["property"]:
            if not elements:
                raise ValueError(f"line {number} of its header is a property before any element")
            elements[-1].properties.append(_parse_property(words))
    raise ValueError("is no PLY file: its header does not end")


def _parse_element(words: list[str], before: list[Element]) -> Element:
    if len(words) != 3 or not words[2].isdecimal():
        raise ValueError(
            f"its element {' '.join(words[1:])[:60]!r} has no count; expected a name and a number from 0 on"
        )
    if words[1] in (element.name for element in before):
        raise ValueError(f"its header has the element {words[1]} twice")
    return Element(words[1], int(words[2]))


def _parse_property(words: list[str]) -> Property:
    listed = words[1:2] == ["list"]
    kinds = words[2:4] if listed else words[1:2]
    if len(words) != (5 if listed else 3) or any(kind not in READ_TYPES for kind in kinds):
        raise ValueError(f"its property {' '.join(words[1:])[:60]!r} is none that can be read")
    codes = [READ_TYPES[kind] for kind in kinds]
    if listed and codes[0][0] == "f":
        raise ValueError(f"its property {words[4]!r} has a length that is no whole number")
    return Property(words[-1], codes[-1], codes[0] if listed else None)


def _read_ascii(body: bytes, header: Header, at: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    rows, first, vertices, faces = parse_rows(body), 0, None, None
    for element in header.elements:
        if not element.properties:
            raise ValueError(f"its element {element.name} has no properties")
        wanted = element.name in ("vertex", "face") and element.count
        if wanted and len(rows) < first + element.count:
            raise ValueError(
                f"its header says {element.count} of {element.name} with {len(element.properties)} values, its data end before "
                f"(after {max(len(rows) - first, 0)})"
            )
        part = rows.part(first, first + element.count)
        first += element.count
        if element.name == "vertex":
            if min(part.counts) < len(element.properties):
                raise ValueError(
                    f"its header says {element.count} vertices of {len(element.properties)} values, its data end before"
                )
            starts = [_ascii_start(part, element, i) for i in at]
            vertices = np.stack([part.values[start] for start in starts], axis=1)
        elif wanted:
            corners = element.position(*CORNERS)
            start = _ascii_start(part, element, corners)
            sizes = _whole(part.values[start])
            faces = polygon_groups(part, sizes, start[0] - part.starts[0] + 1)
    return vertices, faces


def _ascii_start(part, element: Element, position: int) -> np.ndarray:
    """Return where the property at `position` begins in each row: lists before it have lengths of their own."""
    start = part.starts.copy()
    for entry in element.properties[:position]:
        if entry.length:
            start = start + _whole(part.values[np.minimum(start, len(part.values) - 1)])
        start = start + 1
    if (start >= part.starts + part.counts).any():
        raise ValueError(f"a row of {element.name} has too few values; its data end before")
    return start


def _whole(values: np.ndarray) -> np.ndarray:
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values) or whole.min(initial=0) < 0:
        raise ValueError("a list has a length that is no whole number from 0 on")
    return whole


def _vertices(body: bytes, offset: int, element: Element, order: str, at: list[int]) -> tuple[np.ndarray, int]:
    kind, end = _table(body, offset, element, order)
    if kind is None:
        columns, end = _walk(body, offset, element, order, at)
        return np.stack([column.astype(np.float64) for column in columns], axis=1), end
    table = np.frombuffer(body, kind, element.count, offset)
    with np.errstate(invalid="ignore"):  # bits that are no number mark missing points
        return np.stack([table[f"{i}"].astype(np.float64) for i in at], axis=1), end


def _table(body: bytes, offset: int, element: Element, order: str) -> tuple[np.dtype | None, int]:
    """Return the type of a row and where the rows end, (None, offset) for rows with lists."""
    if element.has_lists:
        return None, offset
    kind = np.dtype([(f"{i}", order + entry.kind) for i, entry in enumerate(element.properties)])
    end = offset + kind.itemsize * element.count
    if end > len(body):
        raise ValueError(
            f"its header says {element.count} of {element.name}, {end - offset:,} bytes, and its data end before, "
            f"after {len(body) - offset:,}"
        )
    return kind, end


def _skip(body: bytes, offset: int, element: Element, order: str) -> int:
    if not element.properties:
        return offset
    kind, end = _table(body, offset, element, order)
    return _walk(body, offset, element, order, [])[1] if kind is None else end


def _faces(body: bytes, offset: int, element: Element, order: str) -> tuple[np.ndarray, int]:
    corners = element.position(*CORNERS)
    if element.properties[corners].length is None:
        raise ValueError("the corners of its faces are no list")
    (lists,), end = _walk(body, offset, element, order, [corners])
    values, starts, sizes = lists
    return triangles(values, starts, sizes), end


def _walk(body: bytes, offset: int, element: Element, order: str, wanted: list[int]) -> tuple[list, int]:
    """Read rows with lists: runs of rows whose lists have the same lengths are read at once.

    Returns:
        for each wanted property its numbers, or (numbers, starts, sizes) of its lists; and where the rows end.
    """
    taken: dict[int, list[np.ndarray]] = {i: [] for i in wanted}
    sizes: dict[int, list[tuple[int, int]]] = {i: [] for i in wanted}
    done, block = 0, 64
    while done < element.count:
        kind, lengths = _row(body, offset, element, order)
        block = min(block, element.count - done, (len(body) - offset) // kind.itemsize)
        rows = np.frombuffer(body, kind, block, offset)
        same = np.ones(block, bool)
        for i, length in lengths.items():
            same &= rows[f"n{i}"] == length
        run = block if same.all() else int(np.argmin(same))
        for i in wanted:
            if f"{i}" in kind.names:
                taken[i].append(rows[f"{i}"][:run].ravel())
            sizes[i].append((run, lengths.get(i, 1)))
        block = block * 2 if run == block else max(4, run)
        done, offset = done + run, offset + run * kind.itemsize
    results = []
    for i in wanted:
        values = np.concatenate(taken[i]) if taken[i] else np.empty(0)
        if element.properties[i].length is None:
            results.append(values)
            continue
        size = np.concatenate([np.full(run, length, np.int64) for run, length in sizes[i]])
        results.append((values, np.cumsum(size) - size, size))
    return results, offset


def _row(body: bytes, offset: int, element: Element, order: str) -> tuple[np.dtype, dict[int, int]]:
    """Return the type of the row at `offset`, and the lengths of its lists by property."""
    fields, lengths, at = [], {}, offset
    for i, entry in enumerate(element.properties):
        shape: tuple[int, ...] = ()
        if entry.length is not None:
            head = np.dtype(order + entry.length)
            if at + head.itemsize > len(body):
                raise ValueError(f"its header says {element.count} of {element.name}, and its data end before")
            length = int(np.frombuffer(body, head, 1, at)[0])
            if length < 0:
                raise ValueError(f"a list of its {element.name} has the length {length}")
            fields.append((f"n{i}", head))
            at, lengths[i], shape = at + head.itemsize, length, (length,)
        kind = np.dtype(order + entry.kind)
        if shape != (0,):
            fields.append((f"{i}", kind, shape))
        at += kind.itemsize * (shape[0] if shape else 1)
        if at > len(body):
            raise ValueError(f"its header says {element.count} of {element.name}, and its data end before")
    return np.dtype(fields), lengths


def write_ply(
    path: str | Path,
    points: np.ndarray,
    *,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    comments: Sequence[str] = (),
    binary: bool = True,
) -> None:
    """Write a PLY file atomically, binary little-endian or ASCII.

    Args:
        points: (n, 3), written as x, y, z: float32 where that holds them, else float64.
        normals: (n, 3), written as float32 nx, ny, nz.
        colors: (n, 3), integers in 0-255 or floats in 0-1, written as bytes red, green, blue.
        labels: (n,) integers, written as int32 `label`.
        comments: lines of the header for people to read.

    Raises:
        ValueError: if a shape or a range does not fit.
        UserError: if the file cannot be written.
    """
    points = _checked("points", points, (len(points), 3))
    count = len(points)
    columns = _columns(("x", "y", "z"), points, coordinate_type(points))
    if normals is not None:
        columns |= _columns(("nx", "ny", "nz"), _checked("normals", normals, (count, 3)), "f4")
    if colors is not None:
        columns |= _columns(("red", "green", "blue"), _bytes(_checked("colors", colors, (count, 3))), "u1")
    if labels is not None:
        labels = _checked("labels", labels, (count,))
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"write_ply: labels have type {labels.dtype}, expected integers")
        columns["label"] = ("i4", labels)
    vertices = np.empty(count, [(name, "<" + kind) for name, (kind, _) in columns.items()])
    for name, (_, values) in columns.items():
        vertices[name] = values
    header = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", f"element vertex {count}"]
    header[2:2] = [f"comment {' '.join(line.split())}" for line in comments]
    header += [f"property {WRITTEN_TYPES[kind]} {name}" for name, (kind, _) in columns.items()]
    body = vertices.tobytes() if binary else _lines(vertices)
    data = "\n".join([*header, "end_header", ""]).encode("ascii", "replace") + body
    write_atomic(path, lambda file: file.write(data))


def coordinate_type(points: np.ndarray) -> str:
    """Return "f4" where single precision holds coordinates well enough for their extent, "f8" where it would move them.

    What was computed in double precision is written in single precision where that rounds it by a millionth of the extent at most.
    """
    if points.dtype.kind != "f" or points.dtype.itemsize <= 4 or not points.size:
        return "f8" if points.dtype.kind in "iu" and points.size and np.abs(points).max() > 1 << 24 else "f4"
    with np.errstate(over="ignore"):
        moved = np.abs(points.astype(np.float32) - points).max()
    return "f4" if moved <= 1e-6 * np.ptp(points, axis=0).max() else "f8"


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != shape:
        raise ValueError(f"write_ply: {name} have shape {array.shape}, expected {shape}")
    return array


def _columns(names: tuple[str, ...], values: np.ndarray, kind: str) -> dict:
    return {name: (kind, values[:, index]) for index, name in enumerate(names)}


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Return integers in 0-255; floats are shares of full brightness."""
    limit = 255 if np.issubdtype(colors.dtype, np.integer) else 1
    if colors.size and not (colors.min() >= 0 and colors.max() <= limit):
        raise ValueError(f"write_ply: colors of type {colors.dtype} must lie in 0-{limit}")
    return colors if limit == 255 else np.rint(colors * 255)


def _lines(vertices: np.ndarray) -> bytes:
    """Write one line a point; nine digits carry every float32 exactly, seventeen every float64."""
    digits = 17 if vertices.dtype["x"] == np.float64 else 9

    def word(value: float | int) -> str:
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)

    return "".join(" ".join(map(word, row)) + "\n" for row in vertices.tolist()).encode("ascii")
