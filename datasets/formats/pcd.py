"""Read point clouds in the PCD format of the Point Cloud Library, version 0.7: ASCII, binary, compressed binary.

Legend: n points.
"""

from pathlib import Path

import numpy as np

_KINDS = {"F": "f", "I": "i", "U": "u"}


def read_pcd(path: Path) -> np.ndarray:
    """Return x, y and z of a PCD file, (n, 3) float64. Points that the file marks as missing (NaN) are left out.

    Raises:
        ValueError: the header is not one, or the data end before it says.
    """
    head, layout, body = _split(path.read_bytes())
    fields = head.get("FIELDS", [])
    counts = [int(count) for count in head.get("COUNT", ["1"] * len(fields))]
    kinds = [
        _KINDS.get(kind, "?") + size for kind, size in zip(head.get("TYPE", []), head.get("SIZE", []), strict=False)
    ]
    if not {"x", "y", "z"} <= set(fields) or not len(fields) == len(counts) == len(kinds) or "POINTS" not in head:
        raise ValueError("its header has no FIELDS x, y, z with SIZE, TYPE, COUNT and POINTS")
    number = int(head["POINTS"][0])
    dtype = np.dtype(
        [(f"{i}", f"<{kind}", (count,)) for i, (kind, count) in enumerate(zip(kinds, counts, strict=True))]
    )
    at = [fields.index(axis) for axis in "xyz"]
    if layout == "ascii":
        rows = [row.split() for row in body.split(b"\n") if row.strip()]
        starts = np.cumsum([0, *counts])
        if len(rows) < number or any(len(row) < starts[-1] for row in rows[:number]):
            raise ValueError(f"its header says {number} points of {starts[-1]} values, its data end before")
        columns = [[float(row[starts[i]]) for row in rows[:number]] for i in at]
    elif layout == "binary":
        table = np.frombuffer(body, dtype, number)
        columns = [table[f"{i}"][:, 0] for i in at]
    elif layout == "binary_compressed":
        columns = _columns(_decompress(body), dtype, number, at)
    else:
        raise ValueError(f"its DATA {layout} is unknown; expected ascii, binary or binary_compressed")
    points = np.stack([np.asarray(column, np.float64) for column in columns], axis=1).reshape(-1, 3)
    return points[~np.isnan(points).any(axis=1)]


def _split(content: bytes) -> tuple[dict[str, list[str]], str, bytes]:
    """Return the words of each header line by its first, what DATA says, and what follows."""
    head, start = {}, 0
    while (end := content.find(b"\n", start)) >= 0 and start < 1 << 16:
        words = content[start:end].decode("ascii", "replace").split()
        start = end + 1
        if words[:1] == ["DATA"] and len(words) == 2:
            return head, words[1].lower(), content[start:]
        if words and not words[0].startswith("#"):
            head[words[0]] = words[1:]
    raise ValueError("is no PCD file: its header does not end with DATA")


def _columns(raw: bytes, dtype: np.dtype, number: int, at: list[int]) -> list[np.ndarray]:
    """Take columns from the field-by-field layout of compressed files."""
    columns, start = {}, 0
    for i, name in enumerate(dtype.names):
        base, shape = dtype[name].subdtype
        values = np.frombuffer(raw, base, number * shape[0], offset=start)
        columns[i] = values.reshape(number, shape[0])[:, 0]
        start += values.nbytes
    return [columns[i] for i in at]


def _decompress(body: bytes) -> bytes:
    """Undo the LZF compression of a compressed file: literal runs and back references."""
    packed, whole = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    data = body[8 : 8 + packed]
    if len(data) < packed:
        raise ValueError(f"its compressed data have {len(data)} of {packed} bytes")
    out, i = bytearray(), 0
    while i < packed:
        control = data[i]
        i += 1
        if control < 32:
            out += data[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[i]
            i += 1
        start = len(out) - ((control & 31) << 8) - data[i] - 1
        i += 1
        if start < 0:
            raise ValueError("its compressed data refer to what is not there")
        for k in range(start, start + length + 2):  # a reference may overlap what it writes
            out.append(out[k])
    if len(out) != whole:
        raise ValueError(f"its compressed data give {len(out)} bytes, its header says {whole}")
    return bytes(out)
