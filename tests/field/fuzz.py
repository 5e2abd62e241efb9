"""Broken inputs by the thousand, from a seed: every reader gives a result or one message; no traceback, no hang, no signal.

`python -m tests.field.fuzz --cases 1000 --seed 0` prints outcomes by kind.
"""

import argparse
import io
import json
import pickle
import signal
import struct
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from datasets import build_dataset
from datasets.formats.cloud_files import read_cloud
from datasets.formats.ply import write_ply
from datasets.formats.safe_pickle import read_arrays
from datasets.part_table import read_table
from datasets.preparing.convert import PLAN, Settings, convert
from datasets.preparing.unpack import unpack
from utils.checkpoints import check_weights, find_weights
from utils.config.yaml import read_yaml
from utils.errors import UserError
from utils.event_files import ScalarFile, drop_scalars
from utils.files import read_checkpoint
from utils.metrics_log import MetricsWriter

SECONDS = 20  # of one case; more is a hang
LONGEST = 900  # characters of a message, its paths apart
POINTS = np.random.default_rng(0).normal(size=(40, 3))
FACES = [(i, i + 1, i + 2) for i in range(30)]


@dataclass
class Subject:
    """One kind of input: how a good one is made, and what reads it."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    target: str = ""  # the file that is broken, where `make` makes a folder


@dataclass
class Report:
    """Outcomes by kind, and the cases that must not be."""

    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def _rows(points: np.ndarray, form: str = "{} {} {}") -> str:
    return "".join(form.format(*row) + "\n" for row in points.round(4).tolist())


def _text(content: str) -> Callable[[Path], None]:
    return _bytes(content.encode())


def _bytes(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def _off(path: Path) -> None:
    faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in FACES)
    path.write_text(f"OFF\n{len(POINTS)} {len(FACES)} 0\n{_rows(POINTS)}{faces}")


def _obj(path: Path) -> None:
    faces = "".join(f"f {a + 1}//1 {b + 1} {c + 1}\n" for a, b, c in FACES)
    path.write_text("mtllib none.mtl\n" + _rows(POINTS, "v {} {} {}") + faces)


def _trimesh(path: Path) -> None:
    import trimesh

    trimesh.Trimesh(POINTS, FACES, process=False).export(path)


def _mesh_ply(path: Path) -> None:
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(POINTS)}\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    header += f"element face {len(FACES)}\nproperty list uchar int vertex_indices\nend_header\n"
    body = b"".join(struct.pack("<B3i", 3, *face) for face in FACES)
    path.write_bytes(header.encode() + POINTS.astype("<f4").tobytes() + body)


def _pcd(layout: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        head = f"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 40\nHEIGHT 1\nPOINTS 40\nDATA {layout}\n"
        single = POINTS.astype("<f4")
        raw = b"".join(single[:, axis].tobytes() for axis in range(3))
        packed = b"".join(bytes([31]) + raw[i : i + 32] for i in range(0, len(raw), 32))
        bodies = {
            "ascii": _rows(POINTS).encode(),
            "binary": single.tobytes(),
            "binary_compressed": struct.pack("<II", len(packed), len(raw)) + packed,
        }
        path.write_bytes(head.encode() + bodies[layout])

    return make


def _hdf5(folder: Path) -> None:
    import h5py

    folder.mkdir()
    with h5py.File(folder / "ply_data_train0.h5", "w") as file:
        file.create_dataset("data", data=np.stack([POINTS] * 4), chunks=(2, 40, 3), compression="gzip")
        file["label"] = np.arange(4)


def _shapenet(folder: Path) -> None:
    (folder / "lists").mkdir(parents=True)
    (folder / "clouds").mkdir()
    for name in ("0-a.npy", "1-b.npy"):
        np.save(folder / "clouds" / name, POINTS)
    for subset in ("train", "test"):
        (folder / "lists" / f"{subset}.txt").write_text("0-a.npy\n1-b.npy\n")


def _read_shapenet(folder: Path) -> object:
    paths = {"DATA_PATH": str(folder / "lists"), "PC_PATH": str(folder / "clouds")}
    return build_dataset({"NAME": "ShapeNet", **paths, "N_POINTS": 40, "npoints": 40})


def _modelnet(folder: Path) -> None:
    (folder / "chair").mkdir(parents=True)
    (folder / "modelnet40_shape_names.txt").write_text("chair\n")
    (folder / "modelnet40_train.txt").write_text("chair_0001\n")
    (folder / "chair" / "chair_0001.txt").write_text(_rows(np.hstack([POINTS, POINTS]), ",".join(["{}"] * 6)))


def _read_modelnet(folder: Path) -> object:
    return build_dataset({"NAME": "ModelNet", "DATA_PATH": str(folder), "N_POINTS": 16})


def _parts(folder: Path) -> None:
    (folder / "02").mkdir(parents=True)
    (folder / "train_test_split").mkdir()
    (folder / "synsetoffset2category.txt").write_text("Cup\t02\n")
    (folder / "parts.json").write_text('{"Cup": {"parts": {"0": "rim"}}}')
    (folder / "02" / "a.txt").write_text(_rows(np.hstack([POINTS, POINTS, POINTS[:, :1] * 0]), " ".join(["{}"] * 7)))
    for split in ("train", "val", "test"):
        path = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text('["shape_data/02/a"]')


def _fold(folder: Path) -> None:
    (folder / "2way_2shot").mkdir(parents=True)
    items = [(POINTS.astype(np.float32), row % 2, row % 2) for row in range(4)]
    (folder / "2way_2shot" / "0.pkl").write_bytes(pickle.dumps({"train": items, "test": items}))


def _read_fold(folder: Path) -> object:
    return build_dataset({"NAME": "ModelNetFewShot", "DATA_PATH": str(folder), "way": 2, "shot": 2, "fold": 0})


def _checkpoint(path: Path) -> None:
    weights = {"encoder.weight": torch.randn(4, 3), "norm.running_var": torch.ones(4)}
    torch.save({"base_model": weights, "config": {"model": {"NAME": "Point_MAE"}}, "epoch": 3}, path)


def _read_weights(path: Path) -> object:
    weights = find_weights(read_checkpoint(path))
    check_weights(str(path), weights, list(weights))
    return weights


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"encoder.weight": torch.randn(4, 3)}, path)


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("set/a.txt", _rows(POINTS))
        file.writestr("set/b.bin", bytes(500))


def _tar(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("set/a.txt")
        info.size = 600
        file.addfile(info, io.BytesIO(b"1 2 3\n" * 100))


def _metrics(folder: Path) -> None:
    folder.mkdir()
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 0.5, "seconds": 1.25} for epoch in range(6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _events(folder: Path) -> None:
    file = ScalarFile(folder)
    for step in range(8):
        file.add_scalar("Loss", 0.5, step)
    file.close()
    next(folder.iterdir()).rename(folder / "events")


def _conversion(folder: Path) -> None:
    (folder / "in").mkdir(parents=True)
    for number in range(2):
        np.save(folder / "in" / f"{number}.npy", POINTS + number)
    (folder / "in" / "bad.npy").write_bytes(b"bad")
    with redirect_stderr(io.StringIO()):
        convert(folder / "in", folder / "out", Settings(points=8), workers=1)


def _convert(folder: Path) -> object:
    with redirect_stderr(io.StringIO()):
        return convert(folder / "in", folder / "out", Settings(points=8), workers=1, skip_bad=True)


SUBJECTS = [
    Subject("a.npy", lambda path: np.save(path, POINTS), read_cloud),
    Subject("a.npz", lambda path: np.savez_compressed(path, points=POINTS), read_cloud),
    Subject("a.xyz", _text(_rows(POINTS)), read_cloud),
    Subject("a.csv", _text("x,y,z\n" + _rows(POINTS, "{},{},{}")), read_cloud),
    Subject("a.ply", lambda path: write_ply(path, POINTS, labels=np.arange(40)), read_cloud),
    Subject("b.ply", lambda path: write_ply(path, POINTS, binary=False), read_cloud),
    Subject("c.ply", _mesh_ply, read_cloud),
    Subject("a.pcd", _pcd("ascii"), read_cloud),
    Subject("b.pcd", _pcd("binary"), read_cloud),
    Subject("c.pcd", _pcd("binary_compressed"), read_cloud),
    Subject("a.off", _off, read_cloud),
    Subject("a.obj", _obj, read_cloud),
    Subject("a.stl", _trimesh, read_cloud),
    Subject("a.glb", _trimesh, read_cloud),
    Subject("hdf5", _hdf5, lambda folder: build_dataset({"NAME": "ModelNet10", "DATA_DIR": str(folder), "num_points": 40}),
            "ply_data_train0.h5"),
    Subject("shapenet list", _shapenet, _read_shapenet, "lists/train.txt"),
    Subject("shapenet cloud", _shapenet, _read_shapenet, "clouds/1-b.npy"),
    Subject("modelnet text", _modelnet, _read_modelnet, "chair/chair_0001.txt"),
    Subject("modelnet list", _modelnet, _read_modelnet, "modelnet40_train.txt"),
    Subject("parts list", _parts, lambda folder: build_dataset({"NAME": "ShapeNetPart", "ROOT": str(folder), "subset": "train"}),
            "train_test_split/shuffled_train_file_list.json"),
    Subject("parts cloud", _parts, lambda folder: build_dataset({"NAME": "ShapeNetPart", "ROOT": str(folder), "subset": "train"}),
            "02/a.txt"),
    Subject("fold", _fold, _read_fold, "2way_2shot/0.pkl"),
    Subject("a.pkl", _bytes(pickle.dumps([POINTS, [1, "a"]])), lambda path: read_arrays(path, "arrays")),
    Subject("parts.json", _text('{"Cup": {"parts": {"0": "rim"}}}'), lambda path: read_table(path, ["Cup"])),
    Subject("a.pth", _checkpoint, _read_weights),
    Subject("a.safetensors", _safetensors, _read_weights),
    Subject("a.zip", _archive, lambda path: unpack(path, path.parent / "unpacked")),
    Subject("a.tar.gz", _tar, lambda path: unpack(path, path.parent / "unpacked")),
    Subject("metrics", _metrics, lambda folder: MetricsWriter(folder, resume_from=(4, 0)).close(), "metrics.jsonl"),
    Subject("events", _events, lambda folder: drop_scalars([folder / "events"], "Loss", 4), "events"),
    Subject("plan", _conversion, _convert, f"out.converting/{PLAN}"),
    Subject("finished clouds", _conversion, _convert, "out.converting/.convert.done"),
    Subject("a.yaml", _text("model: {NAME: Point_MAE}\nmax_epoch: 3\nlist: [1, 2.5, a]\n"), read_yaml),
]  # fmt: skip

HUGE = [
    b"-1",
    b"99999999999999999999",
    b"1e39",
    b"nan",
    b"inf",
    b"0",
    b"1,5",
    b"0x10",
    b"9" * 400,
    b"\xff",
    b"--",
    b"1e-320",
]


def broken(data: bytes, draw: np.random.Generator) -> bytes:
    """Return bytes with one to three faults: cut, flipped, dropped, doubled, zeroed, replaced, garbage, odd numbers."""
    out = bytearray(data)
    for _ in range(draw.integers(1, 4)):
        size = len(out)
        if not size:
            break
        begin = int(draw.integers(size))
        length = int(draw.integers(1, 1 + min(64, size - begin)))
        kind = draw.integers(9)
        if kind == 0:
            del out[begin:]
        elif kind == 1:
            out[begin] ^= 1 << int(draw.integers(8))
        elif kind == 2:
            del out[begin : begin + length]
        elif kind == 3:
            out[begin:begin] = out[begin : begin + length]
        elif kind == 4:
            out[begin : begin + length] = bytes(length)
        elif kind == 5:
            out[begin : begin + length] = draw.bytes(length)
        elif kind == 6:
            out = bytearray(out[:begin] + draw.bytes(8) + out[begin:])
        else:
            out = _with_number(out, begin, draw)
    return bytes(out)


def _with_number(data: bytearray, begin: int, draw: np.random.Generator) -> bytearray:
    """Put an odd number in place of the one at or after `begin`."""
    text = bytes(data)
    start = next((i for i in range(begin, len(text)) if text[i : i + 1].isdigit()), None)
    if start is None:
        return data
    end = start
    while end < len(text) and text[end : end + 1].isdigit():
        end += 1
    return bytearray(text[:start] + HUGE[int(draw.integers(len(HUGE)))] + text[end:])


@contextmanager
def limited(seconds: int):
    """Raise TimeoutError where a case takes longer."""

    def stop(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(cases: int, seed: int, folder: Path) -> Report:
    """Break inputs of all subjects in turn, `cases` in all, and read them."""
    report = Report()
    for case in range(cases):
        subject = SUBJECTS[case % len(SUBJECTS)]
        draw = np.random.default_rng([seed, case])
        path = folder / f"{case}" / subject.name
        path.parent.mkdir()
        subject.make(path)
        target = path / subject.target if subject.target else path
        target.write_bytes(broken(target.read_bytes(), draw))
        name = f"{subject.name}, seed {seed}, case {case}"
        try:
            with limited(SECONDS):
                subject.read(path)
        except UserError as error:
            message = str(error)
            report.outcomes[subject.name, "message"] += 1
            bare = message.replace(str(path), "")
            if str(path.parent) not in message and "checkpoint" not in message and "convert" not in message:
                report.failures.append(f"{name}: no file in the message {message[:300]}")
            if len(bare) > LONGEST or "Traceback" in message:
                report.failures.append(f"{name}: a message of {len(bare)} characters")
        except (Exception, TimeoutError):
            report.outcomes[subject.name, "failure"] += 1
            report.failures.append(f"{name}: {traceback.format_exc()}")
        else:
            report.outcomes[subject.name, "result"] += 1
    return report


def main() -> None:
    """Print outcomes by kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = run(args.cases, args.seed, Path(folder))
    for subject in SUBJECTS:
        counts = {kind: report.outcomes[subject.name, kind] for kind in ("result", "message", "failure")}
        print(f"{subject.name:20}" + "".join(f"{kind} {count:5}   " for kind, count in counts.items()))
    print("\n".join(report.failures))
    print(f"{args.cases} cases, {len(report.failures)} failures, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
