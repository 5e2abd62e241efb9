"""PLY files, read back by an independent parser."""

import numpy as np
import pytest

from datasets.formats.ply import write_ply
from utils.errors import UserError

TYPES = {"float": "<f4", "uchar": "<u1", "int": "<i4"}


def read_ply(path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[0] == "ply"
    count = int(lines[2].removeprefix("element vertex "))
    fields = [(line.split()[2], TYPES[line.split()[1]]) for line in lines if line.startswith("property")]
    if lines[1] == "format binary_little_endian 1.0":
        table = np.frombuffer(body, np.dtype(fields))
        assert len(table) == count
        return {name: table[name] for name, _ in fields}
    assert lines[1] == "format ascii 1.0"
    cells = [line.split() for line in body.decode("ascii").splitlines()]
    assert len(cells) == count and all(len(row) == len(fields) for row in cells)
    return {name: np.array([row[i] for row in cells]).astype(kind) for i, (name, kind) in enumerate(fields)}


@pytest.mark.parametrize("binary", [True, False])
def test_round_trip(tmp_path, binary):
    rng = np.random.default_rng(0)
    points, normals = rng.normal(size=(2, 40, 3)).astype(np.float32)
    colors, labels = rng.integers(0, 256, (40, 3)), rng.integers(-1, 50, 40)
    write_ply(tmp_path / "a.ply", points, normals=normals, colors=colors, labels=labels, binary=binary)
    read = read_ply(tmp_path / "a.ply")
    assert list(read) == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "label"]
    for names, expected in (("x y z", points), ("nx ny nz", normals), ("red green blue", colors)):
        assert np.array_equal(np.stack([read[name] for name in names.split()], axis=1), expected)
    assert np.array_equal(read["label"], labels)


@pytest.mark.parametrize("binary", [True, False])
def test_no_points(tmp_path, binary):
    write_ply(tmp_path / "a.ply", np.zeros((0, 3)), binary=binary)
    assert [len(values) for values in read_ply(tmp_path / "a.ply").values()] == [0, 0, 0]


def test_float_colors(tmp_path):
    write_ply(tmp_path / "a.ply", np.zeros((1, 3)), colors=np.array([[0.0, 0.5, 1.0]]))
    assert [int(read_ply(tmp_path / "a.ply")[name][0]) for name in ("red", "green", "blue")] == [0, 128, 255]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"points": np.zeros((4, 2))}, r"points have shape \(4, 2\)"),
        ({"normals": np.zeros((3, 3))}, "normals have shape"),
        ({"colors": np.full((4, 3), 300)}, "0-255"),
        ({"colors": np.full((4, 3), 1.5)}, "0-1"),
        ({"labels": np.zeros(4)}, "integers"),
    ],
)
def test_bad_arrays(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        write_ply(tmp_path / "a.ply", **{"points": np.zeros((4, 3)), **kwargs})
    assert not list(tmp_path.iterdir())


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.ply"):
        write_ply(tmp_path / "file" / "a.ply", np.zeros((4, 3)))
