"""Checkpoint files: whole or not at all, and nothing in them is ever executed."""

import errno
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint, write_atomic

STATE = {"base_model": {"w": torch.arange(3000.0)}, "epoch": 3, "best_metrics": {"acc": 0.5}, "format": 1, "ema": None}


class Touch:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a.pth", STATE)
    saved = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(saved.pop("base_model")["w"], STATE["base_model"]["w"])
    assert saved == {key: value for key, value in STATE.items() if key != "base_model"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "file system is read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "check the folder"),
    ],
)
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_failed_write_keeps_what_was_there(tmp_path, monkeypatch, number, message, step):
    path = tmp_path / "a.pth"
    save_checkpoint(path, STATE)
    before = path.read_bytes()
    monkeypatch.setattr(os, step, failing(OSError(number, os.strerror(number))))
    with pytest.raises(UserError, match=rf"cannot write a.pth in {tmp_path}: .*{message}"):
        save_checkpoint(path, {"epoch": 4})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_disk_that_fills_up_while_writing(tmp_path):
    # A file size limit makes the kernel refuse in the middle of a write, as a full disk does.
    resource = pytest.importorskip("resource")
    import signal

    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write a.pth"):
            save_checkpoint(path, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_checkpoint(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_full_disk_is_named_though_torch_hides_it(tmp_path, monkeypatch):
    def full_disk(state, file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="disk is full; free space"):
        save_checkpoint(tmp_path / "a.pth", STATE)


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, lambda file: file.write(b"old"))

    def writer(file):
        file.write(b"new, first half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, writer)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist; create it"):
        write_atomic(tmp_path / "no" / "a.txt", lambda file: None)


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle", "protocol 0"])
def test_malicious_pickle_is_not_executed(tmp_path, layout):
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    state = {"base_model": {"w": Touch(mark)}}
    if layout in ("zip", "legacy"):
        torch.save(state, path, _use_new_zipfile_serialization=layout == "zip")
    else:
        path.write_bytes(pickle.dumps(state, protocol=0 if layout == "protocol 0" else 2))
    with pytest.raises(UserError, match=r"evil.pth: .*nothing in (it|the file) was executed"):
        read_checkpoint(path)
    assert not mark.exists()
    if layout in ("zip", "legacy"):
        with pytest.raises(UserError, match=r"holds the Python object (posix|nt).system"):
            read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_numbers_of_official_files(tmp_path, legacy, module):
    path = tmp_path / "old.pth"
    state = {"metrics": {"acc": np.float64(92.5), "n": np.int64(3), "f": np.float32(0.5)}, "base_model": {}}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    written = np.float64(0).__reduce__()[0].__module__.encode()
    if legacy:
        path.write_bytes(path.read_bytes().replace(written, module))
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name).replace(written, module) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    assert read_checkpoint(path)["metrics"] == {"acc": 92.5, "n": 3, "f": 0.5}


def damaged(kind, path):
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    if kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "almost":
        path.write_bytes(whole[:-30])
    elif kind == "legacy half":
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("half", "cut short .* the end is missing"),
        ("almost", "cut short|damaged"),
        ("legacy half", "damaged or no torch checkpoint"),
        ("zip", r"is a zip archive \(of readme.txt\), not a checkpoint"),
        ("list", "holds a list, expected a dict"),
        ("module", "holds the Python object torch.nn.modules.linear.Linear"),
        (b"", "the file is empty"),
        (b"just some words\n", "is a text file"),
        (b"(1, 2, 3)\n", "no torch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (bytes(range(3, 256)) * 20, "damaged or no torch checkpoint"),
        (b"\x80\x02", "damaged or no torch checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(tmp_path, kind, message):
    path = tmp_path / "bad.pth"
    damaged(kind, path)
    with pytest.raises(UserError, match=rf"bad.pth: .*({message})"):
        read_checkpoint(path)


def test_missing_checkpoint_names_those_that_exist(tmp_path):
    save_checkpoint(tmp_path / "ckpt-last.pth", {})
    with pytest.raises(UserError, match=r"does not exist; checkpoints there: ckpt-last\.pth"):
        read_checkpoint(tmp_path / "ckpt-best.pth")
    with pytest.raises(UserError, match="is a folder; name a checkpoint file"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"there is no \.pth file"):
        read_checkpoint(tmp_path / "none" / "a.pth")
