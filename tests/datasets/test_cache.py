"""The cache: used when sound, rebuilt when stale, broken or half-written, left out when it cannot be written."""

import errno
import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from datasets import cache as module
from datasets.cache import Recipe, cache_folder, cached


class Source:
    """A file and a recipe that doubles its numbers; counts how often it is built."""

    def __init__(self, path: Path, values=range(12)):
        self.path, self.built = path, 0
        self.write(values)

    def write(self, values):
        np.asarray(list(values), dtype="<f4").tofile(self.path)

    def get(self, **keys):
        def chunks():
            self.built += 1
            values = np.fromfile(self.path, "<f4").reshape(-1, 3) * 2
            for row in range(0, len(values), 3):
                yield {"points": values[row : row + 3], "labels": np.arange(row, min(row + 3, len(values)))}

        fields = {"points": ("<f4", (3,)), "labels": ("<i8", ())}
        recipe = Recipe(name="Made", key=keys, sources=[self.path], fields=fields, count=4, chunks=chunks)
        arrays = cached(recipe)
        expected = np.fromfile(self.path, "<f4").reshape(-1, 3) * 2
        assert np.array_equal(arrays["points"], expected) and arrays["labels"].tolist() == [0, 1, 2, 3]
        return arrays


@pytest.fixture
def source(tmp_path):
    (tmp_path / "data").mkdir()
    return Source(tmp_path / "data" / "source.bin")


def entry(folder):
    (only,) = [path for path in folder.iterdir() if path.is_dir()]
    return only


def test_second_start_maps_the_file(source, cache):
    source.get()
    again = source.get()
    assert source.built == 1
    assert isinstance(again["points"], np.memmap)
    assert os.listdir(source.path.parent) == ["source.bin"]  # never inside a data folder
    again["points"][0] = 99  # copy-on-write: the file stays as it is
    source.get()
    assert source.built == 1


def test_other_keys_are_other_entries(source, cache):
    source.get(points=1)
    source.get(points=2)
    source.get(points=1)
    assert source.built == 2


def test_changed_source_is_rebuilt_in_the_same_place(source, cache):
    source.get()
    source.write(range(100, 112))
    os.utime(source.path, ns=(1, 1))
    source.get()
    assert source.built == 2
    entry(cache)  # one entry only


def truncate(folder):
    data = (folder / "points.npy").read_bytes()
    (folder / "points.npy").write_bytes(data[:-5])


def flip(folder):
    data = bytearray((folder / "points.npy").read_bytes())
    data[-3] ^= 0x40
    (folder / "points.npy").write_bytes(data)


DAMAGE = {
    "truncated array": truncate,
    "flipped bit": flip,
    "missing array": lambda folder: (folder / "labels.npy").unlink(),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "cut manifest": lambda folder: (folder / "manifest.json").write_text('{"fingerprint": "'),
    "foreign manifest": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "manifest without arrays": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({**json.loads((folder / "manifest.json").read_text()), "arrays": {}})
    ),
    "older format": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({**json.loads((folder / "manifest.json").read_text()), "fingerprint": "of format 0"})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_repaired(source, cache, damage):
    source.get()
    damage(entry(cache))
    source.get()
    assert source.built == 2
    source.get()
    assert source.built == 2


def test_left_over_of_a_killed_process_is_cleared(source, cache):
    source.get()
    folder = entry(cache)
    left = folder.with_name(f"{folder.name}.tmp-killed")
    folder.rename(left)
    (left / "manifest.json").unlink()
    source.get()
    assert source.built == 2
    assert not left.exists()


def test_failed_build_leaves_nothing(source, cache, monkeypatch):
    def fail(*_):
        raise RuntimeError("stopped half-way")

    monkeypatch.setattr(module, "_write_arrays", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        source.get()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_unusable_cache_folder_falls_back_to_memory(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "file" / "cache"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            assert not isinstance(source.get()["points"], np.memmap)
    assert len(caught) == 1
    assert "M2AE_CACHE" in str(caught[0].message)


def test_full_disk_falls_back_to_memory(source, cache, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def limited(self, mode="r", *args, **kwargs):
        file = opened(self, mode, *args, **kwargs)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", limited)
    with pytest.warns(UserWarning, match="No space left"):
        source.get()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_large_files_are_checked_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE_CHECK", 1000)
    monkeypatch.setattr(module, "BLOCK", 16)
    path = tmp_path / "large"
    path.write_bytes(bytes(5000))
    whole = module._checksum(path)
    for spot in (0, 4999):
        data = bytearray(5000)
        data[spot] = 1
        path.write_bytes(data)
        assert module._checksum(path) != whole


def _build_once(path, count_folder):
    def chunks():
        Path(count_folder, str(os.getpid())).touch()
        time.sleep(0.3)  # long enough for the others to arrive
        yield {"points": np.zeros((4, 3), "<f4")}

    recipe = Recipe(name="Race", key={}, sources=[Path(path)], fields={"points": ("<f4", (3,))}, count=4, chunks=chunks)
    assert cached(recipe)["points"].shape == (4, 3)


def test_several_processes_build_once(source, tmp_path, cache):
    pytest.importorskip("fcntl")
    counts = tmp_path / "counts"
    counts.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_once, args=(source.path, counts)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(list(counts.iterdir())) == 1


def test_default_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("M2AE_CACHE")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("some") / "where"))
    assert cache_folder() == Path("some") / "where" / "m2ae" / "data"
