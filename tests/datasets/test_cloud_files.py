"""Readers of single clouds and meshes: every format, and one clear message for each kind of bad file."""

import struct

import numpy as np
import pytest

from datasets.formats.cloud_files import cloud_files, read_cloud, resample, sample_mesh
from datasets.formats.ply import write_ply
from utils.errors import UserError

POINTS = np.random.default_rng(0).normal(size=(300, 3)).round(4)
CUBE_VERTICES = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
CUBE_FACES = [
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
]  # fmt: skip


def write_pcd(path, points, layout="ascii", lzf=None):
    """Write x, y, z and a byte a point, in an order that is not x, y, z."""
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS z label x y\nSIZE 8 1 8 8\nTYPE F U F F\nCOUNT 1 2 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {layout}\n"
    )
    rows = np.zeros(len(points), [("z", "<f8"), ("label", "u1", (2,)), ("x", "<f8"), ("y", "<f8")])
    for axis, name in enumerate("xyz"):
        rows[name] = points[:, axis]
    if layout == "ascii":
        body = "".join(f"{row['z']} 1 2 {row['x']} {row['y']}\n" for row in rows).encode()
    elif layout == "binary":
        body = rows.tobytes()
    else:
        raw = b"".join(np.ascontiguousarray(rows[name]).tobytes() for name in rows.dtype.names)
        packed = lzf(raw)
        body = struct.pack("<II", len(packed), len(raw)) + packed
    path.write_bytes(head.encode() + body)


def literal_runs(raw):
    """Compress with literal runs and, where 40 equal bytes follow, one overlapping reference."""
    out, i = bytearray(), 0
    while i < len(raw):
        run = 0
        while i > 0 and i + run < len(raw) and raw[i + run] == raw[i - 1] and run < 200:
            run += 1
        if run >= 40:
            out += bytes([7 << 5, run - 9, 0])
            i += run
            continue
        piece = raw[i : i + 16]
        out += bytes([len(piece) - 1]) + piece
        i += len(piece)
    return bytes(out)


def write_off(path, vertices=CUBE_VERTICES, faces=CUBE_FACES):
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0", *(" ".join(map(str, v)) for v in vertices)]
    path.write_text("\n".join([*lines, *("3 " + " ".join(map(str, f)) for f in faces)]) + "\n")


def write_big_endian(path, points):
    header = f"ply\r\nformat binary_big_endian 1.0\r\ncomment x\r\nelement vertex {len(points)}\r\n"
    header += "property double z\r\nproperty uchar red\r\nproperty double x\r\nproperty double y\r\n"
    header += "element edge 1\r\nproperty int vertex1\r\nproperty int vertex2\r\nend_header\r\n"
    rows = np.zeros(len(points), [("z", ">f8"), ("red", "u1"), ("x", ">f8"), ("y", ">f8")])
    for axis, name in enumerate("xyz"):
        rows[name] = points[:, axis]
    path.write_bytes(header.encode() + rows.tobytes() + b"\0\0\0\0\0\0\0\1")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", lambda path: np.save(path, np.hstack([POINTS, POINTS]))),
        ("a.npz", lambda path: np.savez(path, labels=np.arange(3), points=POINTS)),
        ("b.npz", lambda path: np.savez_compressed(path, cloud=POINTS)),
        ("a.txt", lambda path: np.savetxt(path, POINTS, delimiter=";", header="x y z")),
        ("b.txt", lambda path: np.savetxt(path, np.hstack([POINTS, POINTS]), delimiter=", ")),
        ("a.XYZ", lambda path: np.savetxt(path, POINTS)),
        ("a.ply", lambda path: write_ply(path, POINTS, normals=POINTS, labels=np.arange(300))),
        ("b.ply", lambda path: write_ply(path, POINTS, colors=np.zeros((300, 3), int), binary=False)),
        ("c.ply", lambda path: write_big_endian(path, POINTS)),
        ("a.pcd", lambda path: write_pcd(path, POINTS)),
        ("b.pcd", lambda path: write_pcd(path, POINTS, "binary")),
        ("c.pcd", lambda path: write_pcd(path, POINTS, "binary_compressed", literal_runs)),
    ],
)
def test_formats(tmp_path, name, write):
    write(tmp_path / name)
    assert cloud_files(tmp_path) == [tmp_path / name]
    np.testing.assert_allclose(read_cloud(tmp_path / name), POINTS, atol=1e-6)


def test_folders_below(tmp_path):
    for name in ("b/c/2.npy", "b/1.xyz", "a.npy", ".trash/3.npy", "b/._1.npy", "b/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert cloud_files(tmp_path) == [tmp_path / "a.npy"]
    found = [file.relative_to(tmp_path).as_posix() for file in cloud_files(tmp_path, recursive=True)]
    assert found == ["a.npy", "b/1.xyz", "b/c/2.npy"]


PLY = "ply\nformat {} 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"

PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nPOINTS 2\nDATA ascii\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", "cannot be read as a cloud"),
        ("a.npz", b"PK\x03\x04", "cannot be read as a cloud"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"1 2\n3 4\n", "cannot be read as a cloud"),
        ("a.txt", b"1 2 3\n4 five 6\n", "five"),
        ("a.txt", b"nan 2 3\n4 nan 6\n", "none of its 2 points"),
        ("a.txt", b"1 2 3\n", "holds one point"),
        ("a.txt", b"1 2 3\n1 2 3\n", "all in one place"),
        ("a.xyz", b"\xff\xfe\x00", "cannot be read as a cloud"),
        ("a.ply", b"solid", "is no PLY file"),
        ("a.ply", PLY.format("ascii").encode() + b"1 2 3\n", "2 of vertex with 3 values, its data end before"),
        (
            "a.ply",
            PLY.format("binary_little_endian").encode() + b"123",
            "2 of vertex, 24 bytes, and its data end before",
        ),
        ("a.ply", PLY.format("binary").encode() + b"123", "format binary is unknown"),
        ("a.ply", PLY.format("ascii").replace("vertex", "edge").encode(), "no vertices with x, y and z"),
        (
            "a.ply",
            PLY.format("ascii").replace("float y", "list uchar int y").encode(),
            "a coordinate of its vertices is a list",
        ),
        ("a.ply", PLY.format("ascii").replace("float y", "float w").encode(), "vertex has 0 properties y"),
        ("a.pcd", b"FIELDS x y z\n", "does not end with DATA"),
        ("a.pcd", b"FIELDS x y\nDATA ascii\n", "no FIELDS x, y, z"),
        ("a.pcd", PCD.replace(b"ascii", b"zip"), "DATA zip is unknown"),
        ("a.pcd", PCD + b"1 2 3\n", "2 points of 3 values, its data end before"),
        ("a.pcd", PCD.replace(b"ascii", b"binary") + b"123", "2 points, 24 bytes, its data end before"),
        ("a.pcd", PCD.replace(b"ascii", b"binary_compressed") + b"\x09\0\0\0\x09\0\0\0ab", "2 of 9 bytes"),
        ("a.pcd", PCD.replace(b"ascii", b"binary_compressed") + b"\x02\0\0\0\x18\0\0\0\x20\x05", "what is not there"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_cloud(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"objects\.npy"):
        read_cloud(tmp_path / "objects.npy")


def test_missing_points_of_a_pcd_file_are_left_out(tmp_path):
    points = POINTS.copy()
    points[7] = np.nan
    write_pcd(tmp_path / "a.pcd", points)
    assert len(read_cloud(tmp_path / "a.pcd")) == 299


def export(path):
    import trimesh

    trimesh.Trimesh(CUBE_VERTICES, CUBE_FACES, process=False).export(path)


@pytest.mark.parametrize("name", ["a.off", "a.obj", "a.stl", "a.glb", "a.ply"])
def test_meshes_are_sampled_by_area(tmp_path, name):
    path = tmp_path / name
    write_off(path) if name == "a.off" else export(path)
    points = read_cloud(path, surface_points=6000)
    assert points.shape == (6000, 3)
    on_face = np.stack([np.isclose(points, 0, atol=1e-6), np.isclose(points, 1, atol=1e-6)])  # (2, n, 3)
    assert on_face.any((0, 2)).all()  # all lie on the surface
    shares = on_face.mean(1).ravel()
    np.testing.assert_allclose(shares, 1 / 6, atol=0.02)  # and each side of the cube has its share
    assert np.array_equal(points, read_cloud(path, surface_points=6000))
    assert not np.array_equal(points, read_cloud(path, surface_points=6000, seed=1))


def test_modelnet_headers_without_a_line_break(tmp_path):
    """Some OFF files of ModelNet have the counts in the first line."""
    write_off(tmp_path / "a.off")
    text = (tmp_path / "a.off").read_text()
    (tmp_path / "a.off").write_text(text.replace("OFF\n", "OFF"))
    assert read_cloud(tmp_path / "a.off", surface_points=10).shape == (10, 3)


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (CUBE_VERTICES, [], "has no faces"),
        ([(0, 0, 0), (1, 1, 1), (2, 2, 2)], [(0, 1, 2)], "have an area of 0"),
        ([(0, 0, 0), (1, "nan", 1), (2, 2, 0)], [(0, 1, 2)], "not finite"),
    ],
)
def test_bad_meshes(tmp_path, vertices, faces, message):
    write_off(tmp_path / "a.off", vertices, faces)
    with pytest.raises(UserError, match=message) as caught:
        sample_mesh(tmp_path / "a.off", 10)
    assert str(caught.value).startswith(str(tmp_path / "a.off"))


def test_a_damaged_mesh_is_named(tmp_path):
    (tmp_path / "a.glb").write_bytes(b"glTF\x02")
    with pytest.raises(UserError, match=r"a\.glb: cannot be read as a mesh"):
        read_cloud(tmp_path / "a.glb")


def test_resampling():
    fewer = resample(POINTS, 50)
    assert fewer.shape == (50, 3) and len(np.unique(fewer, axis=0)) == 50
    more = resample(POINTS, 1000)
    assert np.array_equal(more[:300], POINTS) and {tuple(p) for p in more} == {tuple(p) for p in POINTS}
    assert np.array_equal(resample(POINTS, 50), fewer) and not np.array_equal(resample(POINTS, 50, seed=1), fewer)
