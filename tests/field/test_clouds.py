"""Clouds in files of their own: the right numbers, or one message with the file, the cause and a remedy."""

import os
import socket
import struct
import zipfile

import numpy as np
import pytest

from datasets.formats.cloud_files import cloud_files, read_cloud, read_shape
from datasets.formats.ply import read_ply, write_ply
from datasets.formats.points import Notes
from utils.errors import UserError

FAR = np.array([4_543_210.0, 512_345.0, 101.0])  # map coordinates, metres
POINTS = np.array([[0.5, 1.5, 2.5], [-1.25, 0.125, 3.0], [2.0, -0.75, 1.0], [1.0, 1.0, -4.5]])


def text_of(points, form="{} {} {}"):
    return "\n".join(form.format(*row) for row in points.tolist()) + "\n"


def notes_of(path):
    notes = Notes()
    return read_cloud(path, notes=notes), notes.lines()


def comma(points, separator):
    return text_of(points).replace(".", ",").replace(" ", separator)


# K1: double precision until the cloud is centred, and on the way out


def test_k1_map_coordinates_come_back_from_every_writer(tmp_path, cloud):
    far = cloud + FAR
    for name, options in {"a.ply": {}, "b.ply": {"binary": False}}.items():
        write_ply(tmp_path / name, far, **options)
        np.testing.assert_array_equal(read_ply(tmp_path / name)[0], far)
    write_ply(tmp_path / "c.ply", cloud)
    assert b"property float x" in (tmp_path / "c.ply").read_bytes()  # near the origin single precision is enough


def test_k1_coordinates_that_were_rounded_before_are_said(tmp_path, cloud):
    np.save(tmp_path / "a.npy", (cloud + FAR).astype(np.float32))
    _, lines = notes_of(tmp_path / "a.npy")
    assert len(lines) == 1 and "a.npy" in lines[0] and "single precision" in lines[0]
    np.save(tmp_path / "b.npy", cloud + FAR)
    assert notes_of(tmp_path / "b.npy")[1] == []


# K2: values beyond single precision, K10: missing points


@pytest.mark.parametrize("mark", [np.nan, np.inf, -np.inf, 1e39, -3.4e38, 1.7e308])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.xyz", "a.ply", "a.pcd"])
def test_k10_missing_points_are_left_out_and_counted(tmp_path, cloud, name, mark):
    points = cloud.copy()
    points[[3, 7]] = mark
    points[9, 1] = mark
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, points)
    elif name.endswith("npz"):
        np.savez(path, points)
    elif name.endswith("xyz"):
        np.savetxt(path, points, fmt="%.17g")
    elif name.endswith("ply"):
        header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
        path.write_text(
            header + "".join(f"property double {axis}\n" for axis in "xyz") + "end_header\n" + text_of(points)
        )
    else:
        head = f"FIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nWIDTH 20\nHEIGHT 20\nPOINTS {len(points)}\nDATA binary\n"
        path.write_bytes(head.encode() + points.tobytes())
    found, lines = notes_of(path)
    np.testing.assert_allclose(found, np.delete(cloud, [3, 7, 9], axis=0), rtol=1e-15)
    assert len(lines) == 1 and "3 of 400" in lines[0] and name in lines[0]


@pytest.mark.parametrize("mark", [np.nan, 1e39])
def test_k2_nothing_left_is_refused(tmp_path, mark):
    np.save(tmp_path / "a.npy", np.full((8, 3), mark))
    with pytest.raises(UserError, match=r"a\.npy: none of its 8 points"):
        read_cloud(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.ones((400, 3)), "400 points are all in one place"),
        (np.ones((1, 3)), "holds one point"),
        (np.zeros((5, 3)), "all in one place"),
        (np.random.default_rng(0).normal(size=(50, 3)) * 1e-25, "extent is .*e-25, too small"),
    ],
)
def test_k2_clouds_without_extent_are_refused(tmp_path, points, message):
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(UserError, match=rf"a\.npy: .*{message}"):
        read_cloud(tmp_path / "a.npy")


# K3: separators of text


@pytest.mark.parametrize(
    "text",
    [
        text_of(POINTS),
        text_of(POINTS, "{}\t{}\t{}"),
        text_of(POINTS, "{},{},{}"),
        text_of(POINTS, "{}, {}, {}"),
        text_of(POINTS, " {} ; {} ; {}"),
        text_of(POINTS, '"{}","{}","{}"'),
        text_of(POINTS, "{},{},{},255,0,0"),
        text_of(POINTS, "{} {} {} # a comment, with commas"),
        comma(POINTS, ";"),
        comma(POINTS, "\t"),
        comma(POINTS, " "),
        comma(POINTS, "  ;  "),
        text_of(POINTS).replace("\n", "\r\n"),
        text_of(POINTS).replace("\n", "\r"),
        text_of(POINTS).replace("\n", "\v"),
        text_of(POINTS).replace("\n", "\u2028"),
        text_of(POINTS, "{},{},{},"),
        '"' + comma(POINTS, '";"').replace("\n", '"\n"').removesuffix('"'),
    ],
)
def test_k3_one_separator_a_file(tmp_path, text):
    (tmp_path / "a.xyz").write_text(text, newline="", encoding="utf-8")
    found, lines = notes_of(tmp_path / "a.xyz")
    np.testing.assert_array_equal(found, POINTS)
    assert lines == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,543,210.12 512,345.1 101.2\n4,543,211.12 512,345.1 101.2\n", "separates thousands"),
        ("4,543 1,512 1,101\n4,544 1,513 1,102\n", "decimal comma or separate thousands"),
        ("1,2,3\n1 2,5 3\n", "line 2"),
        ("1 2 3\n1;2;3\n", "line 2"),
        ("1 2 3\n4 five 6\n", "line 2.*five"),
        ("1 2 3\n4 5\n", "line 2.*has 2 values"),
        ("0.1 0.2 0.x\n1 2 3\n", "line 1"),
        (" ".join(["0.5"] * 192) + "\n", "line|point"),
        ("1.0D+03 2 3\n1 2 3\n", "line 1.*is no number"),
        ("1.234,5 2,5 3,5\n1 2 3\n", "line 1.*is no number"),
        ("(1, 2, 3)\n(4, 5, 6)\n", "no line of three numbers"),
    ],
)
def test_k3_other_separators_are_refused(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(UserError, match=rf"(?s)a\.xyz: .*({message})"):
        read_cloud(tmp_path / "a.xyz")


# K4: byte order marks, lines before the numbers, other endings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_k4_byte_order_marks(tmp_path, encoding):
    (tmp_path / "a.xyz").write_text(text_of(POINTS), encoding=encoding)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.xyz"), POINTS)


@pytest.mark.parametrize("name", ["a.xyz", "a.txt", "a.csv", "a.asc", "a.pts"])
@pytest.mark.parametrize(
    "head", ["x y z\n", "//X Y Z\n", "X,Y,Z,I\n", "# made by a scanner \xe9\n\n", "Scan 7\nmetres\n"]
)
def test_k4_leading_lines_are_skipped_and_said(tmp_path, name, head):
    (tmp_path / name).write_bytes(head.encode("latin1") + text_of(POINTS).encode())
    found, lines = notes_of(tmp_path / name)
    np.testing.assert_array_equal(found, POINTS)
    assert lines == [] if head[0] in "#/" else len(lines) == 1 and "skipped" in lines[0]


def test_k4_a_count_of_points(tmp_path):
    (tmp_path / "a.pts").write_text(f"4\n{text_of(POINTS, '{} {} {} 12 255 0 0')}")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.pts"), POINTS)
    (tmp_path / "a.pts").write_text(f"9\n{text_of(POINTS)}")
    with pytest.raises(UserError, match=r"a\.pts: .*says 9 points, 4 follow"):
        read_cloud(tmp_path / "a.pts")


def test_k4_columns_by_their_names(tmp_path):
    rows = "".join(f"{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(POINTS.tolist()))
    for head, first in (("id,X,Y,Z\n", ""), ("name,x,y,z\n", "chair_")):
        (tmp_path / "a.csv").write_text(head + "".join(first + row + "\n" for row in rows.splitlines()))
        np.testing.assert_array_equal(read_cloud(tmp_path / "a.csv"), POINTS)


# K5: whatever a reader raises is one message


def npy(shape, dtype="<f8"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def damaged_npz(path):
    np.savez_compressed(path, points=np.random.default_rng(0).normal(size=(500, 3)))
    data = bytearray(path.read_bytes())
    data[400:420] = b"\xff" * 20
    path.write_bytes(data)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("points.npy", "no array")


PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nPOINTS %s\nDATA %s\n"
BROKEN = {
    "damaged.npz": damaged_npz,
    "text.npz": other_zip,
    "claims.npy": npy((10**13, 3)),
    "claims2.npy": npy((10**12, 3), "|O"),
    "tokens.npy": npy((4, 3)).replace(b"'shape'", b"'shape\x00"),
    "zip.npy": other_zip,
    "strings.npy": npy((2, 3), "<U1") + b"1\0\0\0" * 6,
    "count.pcd": PCD % (b"", b"ascii"),
    "negative.pcd": PCD % (b"-1", b"binary"),
    "reference.pcd": PCD % (b"2", b"binary_compressed") + struct.pack("<II", 1, 24) + b"\xe0",
    "twice.pcd": (PCD % (b"1", b"ascii")).replace(b"x y z", b"x y z x"),
    "index.off": b"OFF\n8 1 0\n" + b"0 0 0\n1 0 0\n0 1 0\n0 0 1\n" * 2 + b"3 0 1 99\n",
    "negative.off": b"OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 -7\n",
    "short.obj": b"v 1 0\nv 1 2 3\nv 0 0 1\nf 1 2 3\n",
    "zero.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n",
    "cut.glb": b"glTF\x02\0\0\0\xff\xff\0\0",
    "words.ply": b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n",
    "minus.ply": b"ply\nformat ascii 1.0\nelement vertex -1\nproperty float x\nend_header\n1 2 3\n",
    "nul.xyz": b"1 2 3\0\0\0\n",
    "empty.csv": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_k5_readers_raise_one_kind_of_error(tmp_path, name):
    path, content = tmp_path / name, BROKEN[name]
    content(path) if callable(content) else path.write_bytes(content)
    if not path.exists():  # savez adds its ending
        path.with_name(path.name + ".npz").rename(path)
    with pytest.raises(UserError) as caught:
        read_cloud(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 400 + len(str(path)) and "\n" not in message


@pytest.mark.parametrize("name", ["a.npy", "a.xyz", "a.ply", "a.pcd", "a.off", "a.npz", "a.glb"])
def test_files_that_are_no_regular_files_are_refused_at_once(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a named pipe"):
        read_cloud(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a device"):
        read_cloud(path)
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="is a link to a file that cannot be reached"):
        read_cloud(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(UserError, match=r"a\.\w+: "):
        read_cloud(path)


def test_sockets_are_refused(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the address of a socket is short: a relative one always fits
        server.bind("a.npy")
        with pytest.raises(UserError, match="is a socket"):
            read_cloud(tmp_path / "a.npy")


# K6: headers of PLY


def test_k6_properties_of_one_name_do_not_shift_rows(tmp_path):
    rows = np.zeros(4, [(name, "<f4") for name in ("x", "y", "z", "q0", "q1")])
    for i, axis in enumerate("xyz"):
        rows[axis] = POINTS[:, i]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 4\n"
    header += "".join(f"property float {name}\n" for name in ("x", "y", "z", "q", "q")) + "end_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + rows.tobytes())
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply"), POINTS)
    (tmp_path / "b.ply").write_bytes(header.replace("float q", "float x").encode() + rows.tobytes())
    with pytest.raises(UserError, match="3 properties x"):
        read_cloud(tmp_path / "b.ply")


@pytest.mark.parametrize("layout", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("upper", [False, True])
def test_k6_lists_elements_and_comments(tmp_path, layout, upper):
    """Lists inside vertices, elements before them, words of the header in comments, upper case."""
    order = ">" if "big" in layout else "<"
    header = (
        f"ply\nformat {layout} 1.0\ncomment not yet the end_header\ncomment no element face 5 here\n"
        "element camera 2\nproperty list uchar int a\nproperty float b\n"
        "element vertex 4\nproperty list uint double d\nproperty double x\nproperty double y\nproperty double z\n"
        "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if upper:
        header = "\n".join(line if line.startswith(("ply", "end")) else line.upper() for line in header.split("\n"))
    lengths = [2, 0, 3, 3]
    if layout == "ascii":
        body = "1 7 0.5\n0 0.5\n" + "".join(
            f"{n} {'9 ' * n}{x} {y} {z}\n" for n, (x, y, z) in zip(lengths, POINTS.tolist(), strict=True)
        )
        body = body.encode()
    else:
        body = struct.pack(f"{order}Bif", 1, 7, 0.5) + struct.pack(f"{order}Bf", 0, 0.5)
        for n, row in zip(lengths, POINTS.tolist(), strict=True):
            body += struct.pack(f"{order}I{n}d3d", n, *[9.0] * n, *row)
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply"), POINTS)


# K7: variants of PCD


def test_k7_padding_raw_data_and_old_headers(tmp_path):
    points = POINTS.astype(np.float32)
    path = tmp_path / "a.pcd"
    head = "FIELDS x y z _\nSIZE 4 4 4 1\nTYPE F F F U\nCOUNT 1 1 1 {}\nWIDTH 2\nHEIGHT 2\nPOINTS 4\nDATA {}\n"
    raw = b"".join(points[:, i].tobytes() for i in range(3))
    for layout, body in {
        "binary": points.tobytes(),
        "binary_compressed": struct.pack("<II", len(raw), len(raw)) + raw,
        "ascii": text_of(points).encode(),
    }.items():
        path.write_bytes(head.format(0, layout).encode() + body)
        np.testing.assert_array_equal(read_cloud(path), points)
    path.write_text("COLUMNS x y z\nPOINTS 4\nDATA ascii\n" + text_of(POINTS))  # version 0.5
    np.testing.assert_array_equal(read_cloud(path), POINTS)
    path.write_text("FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 2\nHEIGHT 2\nDATA ascii\n" + text_of(POINTS))
    np.testing.assert_array_equal(read_cloud(path), POINTS)
    path.write_text("FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 3\nHEIGHT 2\nPOINTS 4\nDATA ascii\n" + text_of(POINTS))
    with pytest.raises(UserError, match=r"4 POINTS, and WIDTH x HEIGHT are 6"):
        read_cloud(path)


# K8: polygons, indices, meshes that are cut short

CORNERS = [(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)]
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)]
HALVES = [(1, 5, 7), (1, 7, 3)]
FACES = [*SIDES, *HALVES]


def mesh_text(name):
    """Return a cube of quadrilaterals and triangles as the text of a format."""
    vertices = text_of(np.array(CORNERS))
    faces = "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in FACES)
    if name == "off":
        return f"OFF\n# a comment\n8 {len(FACES)} 0\n{vertices}{faces}"
    if name == "obj":
        faces = "".join("f " + " ".join(f"{i + 1}//{i + 1}" for i in face) + "\n" for face in FACES)
        return "mtllib /dev/zero\n" + "".join(f"v {line}\n" for line in vertices.splitlines()) + faces
    header = "".join(f"property float {axis}\n" for axis in "xyz")
    return (
        f"ply\nformat ascii 1.0\nelement vertex 8\n{header}element face {len(FACES)}\n"
        f"property list uchar int vertex_indices\nend_header\n{vertices}{faces}"
    )


@pytest.mark.parametrize("name", ["off", "obj", "ply"])
def test_k8_mixed_polygons(tmp_path, name):
    (tmp_path / f"a.{name}").write_text(mesh_text(name))
    shape = read_shape(tmp_path / f"a.{name}")
    assert len(shape.faces) == 12
    np.testing.assert_allclose(shape.areas.sum(), 6.0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_k8_mixed_polygons_in_binary_ply(tmp_path, order):
    layout = "binary_little_endian" if order == "<" else "binary_big_endian"
    header = f"ply\nformat {layout} 1.0\nelement vertex 8\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "element face 7\nproperty uchar flag\nproperty list uchar uint vertex_index\nproperty list uchar float texcoord\nend_header\n"
    body = np.array(CORNERS, order + "f4").tobytes()
    for number, face in enumerate(FACES):
        body += struct.pack(f"{order}BB{len(face)}I", 7, len(face), *face)
        body += struct.pack(f"{order}B{number % 3}f", number % 3, *[0.5] * (number % 3))
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    shape = read_shape(tmp_path / "a.ply")
    assert len(shape.faces) == 12
    np.testing.assert_allclose(shape.areas.sum(), 6.0)
    (tmp_path / "a.ply").write_bytes(header.encode() + body[:-9])
    with pytest.raises(UserError, match="data end before"):
        read_shape(tmp_path / "a.ply")


@pytest.mark.parametrize("word", ["OFF\n", "off\n", "", "COFF\n", "OFF "])
def test_k8_first_words_of_off(tmp_path, word):
    text = mesh_text("off").replace("OFF\n", word)
    if word == "COFF\n":
        text = text.replace("1.0\n", "1.0 255 0 0 255\n").replace("0.0\n", "0.0 9 9 9 255\n")
    (tmp_path / "a.off").write_text(text)
    np.testing.assert_allclose(read_shape(tmp_path / "a.off").areas.sum(), 6.0)


def test_k8_off_with_pentagons_and_colours_of_faces(tmp_path):
    angles = np.arange(5) * 2 * np.pi / 5
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(5)], axis=1)
    (tmp_path / "a.off").write_text(f"OFF\n5 2 0\n{text_of(ring)}5 0 1 2 3 4 0.5 0.5 0.5\n3 0 1 2\n")
    shape = read_shape(tmp_path / "a.off")
    assert len(shape.faces) == 4
    pentagon = 2.5 * np.sin(2 * np.pi / 5)
    np.testing.assert_allclose(shape.areas[1:].sum(), pentagon)


@pytest.mark.parametrize("name", ["off", "ply"])
def test_k8_every_cut_of_a_mesh_is_refused(tmp_path, name):
    path = tmp_path / f"a.{name}"
    text = mesh_text(name)
    for end in range(10, len(text) - len("3 1 7 3\n")):
        path.write_text(text[:end])
        with pytest.raises(UserError):
            read_cloud(path)


def test_k8_cut_stl_and_obj(tmp_path):
    import trimesh

    mesh = trimesh.Trimesh(CORNERS, [(0, 1, 3), (0, 3, 2), (4, 6, 7)], process=False)
    for kind in ("stl", "stl_ascii"):
        mesh.export(tmp_path / "a.stl", file_type=kind)
        data = (tmp_path / "a.stl").read_bytes()
        assert len(read_shape(tmp_path / "a.stl").faces) == 3
        (tmp_path / "b.stl").write_bytes(data[: int(len(data) * 0.7)])
        with pytest.raises(UserError, match="cut short"):
            read_cloud(tmp_path / "b.stl")
    text = mesh_text("obj")
    (tmp_path / "a.obj").write_text(text[: text.index("f 5//5")])
    assert any("no face uses" in line for line in notes_of(tmp_path / "a.obj")[1])


def test_k8_negative_numbers_of_obj_count_back(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 0 0 5\nv 9 9 9\nv 9 9 8\n")
    assert read_shape(tmp_path / "a.obj").faces.tolist() == [[0, 1, 2]]


def test_meshes_open_no_other_file(tmp_path, monkeypatch):
    """Neither a library of materials nor a texture is looked at, wherever it is said to lie."""
    opened = []
    real = open
    (tmp_path / "a.obj").write_text(mesh_text("obj").replace("/dev/zero", str(tmp_path / "b.mtl")))
    (tmp_path / "b.mtl").write_text("newmtl a\nmap_Kd c.png\n")
    monkeypatch.setattr("builtins.open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    read_cloud(tmp_path / "a.obj")
    assert not any(name.endswith((".mtl", ".png")) for name in opened)


# K9: arrays in other shapes, meshes of points only


@pytest.mark.parametrize("shape", [(3, 400), (6, 400), (4, 400), (3, 6), (1, 3, 400), (1, 64)])
def test_k9_exchanged_rows_and_columns_are_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=shape))
    with pytest.raises(UserError, match="transpose"):
        read_cloud(tmp_path / "a.npy")


def test_k9_exchanged_rows_and_columns_of_text(tmp_path, cloud):
    np.savetxt(tmp_path / "a.txt", cloud.T)
    with pytest.raises(UserError, match="transpose"):
        read_cloud(tmp_path / "a.txt")


def test_k9_shapes_that_are_read(tmp_path, cloud):
    path = tmp_path / "a.npy"
    records = np.zeros(400, [("intensity", "u1"), ("X", "f4"), ("Y", "f8"), ("Z", "f8")])
    for i, axis in enumerate("XYZ"):
        records[axis] = cloud[:, i]
    for array in (np.hstack([cloud, cloud]), cloud[None], np.asfortranarray(cloud), records):
        np.save(path, array)
        np.testing.assert_allclose(read_cloud(path), cloud, atol=1e-6)
    np.save(path, (cloud * 1000).astype(np.int32))
    np.testing.assert_array_equal(read_cloud(path), (cloud * 1000).astype(np.int32))
    for array, message in [
        (cloud.reshape(4, 100, 3), "4 clouds"),
        (cloud[:, :2], "x, y, z"),
        (cloud + 0j, "real numbers"),
    ]:
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            read_cloud(path)


def test_k9_meshes_without_faces_are_clouds(tmp_path, cloud):
    import trimesh

    (tmp_path / "a.obj").write_text("".join(f"v {line}\n" for line in text_of(cloud).splitlines()))
    (tmp_path / "a.off").write_text(f"OFF\n400 0 0\n{text_of(cloud)}")
    trimesh.Scene([trimesh.PointCloud(cloud)]).export(tmp_path / "a.glb")
    for name in ("a.obj", "a.off", "a.glb"):
        found, lines = notes_of(tmp_path / name)
        np.testing.assert_allclose(found, cloud, atol=1e-6)
        assert len(lines) == 1 and "without faces" in lines[0]


def test_k9_points_beside_a_mesh_are_said(tmp_path, cloud):
    import trimesh

    cube = trimesh.Trimesh(CORNERS, HALVES, process=False)
    trimesh.Scene([cube, trimesh.PointCloud(cloud)]).export(tmp_path / "a.glb")
    assert any("points beside the mesh" in line for line in notes_of(tmp_path / "a.glb")[1])


# K16: what lies in a folder


def test_k16_hidden_files_and_notes_are_passed_over(tmp_path, caplog):
    np.save(tmp_path / "x.npy", POINTS)
    (tmp_path / "._x.npy").write_bytes(b"\0\5\x16\7")
    (tmp_path / "README.txt").write_text("These clouds were scanned in 2019.\n")
    (tmp_path / "labels.txt").write_text("0\n1\n1\n")
    (tmp_path / "meta.csv").write_text("id,class\n0,3\n1,5\n")
    (tmp_path / "predictions.csv").write_text("file,class,name,probability,class_2\nx.npy,3,chair,0.9,4\n")
    (tmp_path / "y.txt").write_text(text_of(POINTS))
    for recursive in (False, True):
        assert [file.name for file in cloud_files(tmp_path, recursive=recursive)] == ["x.npy", "y.txt"]
    assert "passed over" in caplog.text


def test_k16_folders_behind_links(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    np.save(tmp_path / "real" / "deep" / "x.npy", POINTS)
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "deep" / "up").symlink_to(tmp_path / "input")  # a circle
    assert [file.name for file in cloud_files(tmp_path / "input", recursive=True)] == ["x.npy"]


def test_k16_links_to_nothing_are_listed(tmp_path):
    (tmp_path / "x.npy").symlink_to(tmp_path / "gone.npy")
    with pytest.raises(UserError, match="is a link to a file"):
        read_cloud(cloud_files(tmp_path)[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_k16_folders_that_may_not_be_read_are_said(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "x.npy", POINTS)
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="no permission"):
        cloud_files(tmp_path, recursive=True)


def test_k16_names_that_are_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.npy")
    np.save(path, np.ones((4, 3)))
    with pytest.raises(UserError) as caught:
        read_cloud(path)
    assert str(caught.value).encode() and r"caf\xe9" in str(caught.value).replace("\\udce9", r"\xe9")
