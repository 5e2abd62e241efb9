"""`fetch` against a server on this machine: whole, cut and gone on with, refused, wrong hashes; unpacking of hostile archives."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from datasets.prepare import main
from datasets.preparing.download import Patience
from datasets.preparing.fetch import Order, downloads_folder, fetch
from datasets.preparing.layouts import find
from datasets.preparing.recognise import PUBLISHED_POINTS
from datasets.preparing.unpack import unpack
from tests.serving import serving
from utils.errors import UserError


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Return a zip of a fixture of ModelNet10, in a wrapper folder as mirrors have it."""
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M2AE_CACHE", str(out / "cache"))
        assert main(["fixtures", "ModelNet10", "--out", str(out), "--clouds", "20", "--points", "512"]) == 0
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted((out / "modelnet10_hdf5_1024").iterdir()):
            file.write(path, f"mirror/modelnet10/{path.name}")
        file.writestr("__MACOSX/._x", "left out")
    return buffer.getvalue()


@pytest.fixture
def published(monkeypatch):
    """Let the fixture's counts be the published ones."""
    monkeypatch.setitem(PUBLISHED_POINTS, "ModelNet10", 512)
    counts = find("ModelNet10")[0].counts
    monkeypatch.setitem(counts, "train", 20)
    monkeypatch.setitem(counts, "test", 10)


def go(server, root, *flags, name="set.zip"):
    return main(
        ["fetch", "ModelNet10", "--url", f"{server.address}/{name}?download=1", "--data_root", str(root), *flags]
    )


def fetch_with(server, root, digest=None, attempts=5):
    order = Order(f"{server.address}/set.zip", known_hash=digest, patience=Patience(attempts, wait=0.0))
    archive, added = fetch(find("ModelNet10")[0], root, order)
    return archive.path, archive.sha256, added


def test_a_set_is_fetched_unpacked_and_checked(server, archive, tmp_path, capsys, published):
    server.files["set.zip"] = archive
    digest = hashlib.sha256(archive).hexdigest()
    assert go(server, tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert f"sha256 {digest} (nothing to compare it with" in out and "3 files added" in out and "complete" in out
    folder = tmp_path / "data" / "modelnet10_hdf5_1024"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ply_data_test0.h5",
        "ply_data_train0.h5",
        "shape_names.txt",
    ]
    assert not list((tmp_path / "data").glob(".unpacking*"))
    # With the hash the archive of before is taken; what is there stays.
    (folder / "shape_names.txt").write_text("mine\n" * 10)
    requests = len(server.asked)
    assert go(server, tmp_path / "data", "--sha256", digest.upper()) in (0, 2)
    assert len(server.asked) == requests and "0 files added" in capsys.readouterr().out
    assert (folder / "shape_names.txt").read_text().startswith("mine")


def test_counts_are_checked_after_fetching(server, archive, tmp_path, capsys):
    server.files["set.zip"] = archive
    assert go(server, tmp_path, "--md5", hashlib.md5(archive).hexdigest()) == 2
    assert "train: 20 found, 3,991 published" in capsys.readouterr().out


def test_a_cut_connection_is_gone_on_with(server, archive, tmp_path):
    server.files["set.zip"] = archive
    third = len(archive) // 3
    server.cuts = [third, 0, third]
    _, digest, added = fetch_with(server, tmp_path)
    assert digest == hashlib.sha256(archive).hexdigest() and added == 3
    assert server.asked == [None, f"bytes={third}-", f"bytes={third}-", f"bytes={2 * third}-"]
    assert not list(downloads_folder().glob("*.part*"))


def test_another_process_goes_on(server, archive, tmp_path):
    server.files["set.zip"] = archive
    server.cuts = [1000]
    with pytest.raises(UserError, match=r"failed after 1,000 bytes .*call it again, it goes on from there"):
        fetch_with(server, tmp_path, attempts=1)
    assert not (tmp_path / "modelnet10_hdf5_1024").exists()
    assert fetch_with(server, tmp_path)[1] == hashlib.sha256(archive).hexdigest()
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("change", ["tag", "ranges", "note", "longer"])
def test_another_version_of_the_file_is_fetched_anew(server, archive, tmp_path, change):
    server.files["set.zip"] = archive
    server.cuts = [1000]
    with pytest.raises(UserError):
        fetch_with(server, tmp_path, attempts=1)
    part = downloads_folder() / "set.zip.part"
    if change == "tag":
        server.tag = '"v2"'
    elif change == "ranges":
        server.ranges = False
    elif change == "note":
        part.with_name("set.zip.part.json").unlink()
    else:
        part.write_bytes(archive + b"more")
    if change != "longer":
        part.write_bytes(b"x" * 1000)  # would spoil the file if it were kept
    assert fetch_with(server, tmp_path)[1] == hashlib.sha256(archive).hexdigest()


def test_a_part_that_is_whole_is_only_checked(server, archive, tmp_path):
    server.files["set.zip"] = archive
    server.cuts = [1000]
    with pytest.raises(UserError):
        fetch_with(server, tmp_path, attempts=1)
    (downloads_folder() / "set.zip.part").write_bytes(archive)
    assert fetch_with(server, tmp_path)[2] == 3


def test_states_that_pass_are_waited_for_and_others_are_final(server, archive, tmp_path):
    server.files["set.zip"] = archive
    server.states["set.zip"] = [503, 429]
    assert fetch_with(server, tmp_path)[2] == 3
    for state, words in ((404, "does not exist"), (403, "is forbidden"), (418, "is refused")):
        server.states["set.zip"], server.asked[:] = state, []
        with pytest.raises(UserError, match=rf"{words} \(HTTP {state}.*--url"):
            fetch_with(server, tmp_path)
        assert len(server.asked) == 1


def test_a_file_of_another_hash_is_kept_aside(server, archive, tmp_path, capsys):
    server.files["set.zip"] = archive
    assert go(server, tmp_path, "--sha256", "0" * 64) == 2
    err = capsys.readouterr().err
    assert "has another hash than sha256:0000" in err and hashlib.sha256(archive).hexdigest() in err
    assert [path.name for path in downloads_folder().iterdir()] == ["set.zip.other-hash"]
    assert str(downloads_folder() / "set.zip.other-hash") in err and not (tmp_path / "modelnet10_hdf5_1024").exists()
    assert go(server, tmp_path, "--sha256", "123") == 2
    assert "is no sha256 hash of 64" in capsys.readouterr().err


def test_a_file_on_this_machine(archive, tmp_path, capsys, published):
    path = tmp_path / "mine.zip"
    path.write_bytes(archive)
    flags = ["fetch", "ModelNet10", "--url", str(path), "--data_root", str(tmp_path / "data")]
    assert main([*flags, "--md5", "0" * 32]) == 2 and "has another hash" in capsys.readouterr().err
    assert main(flags) == 0 and path.exists()


def test_pages_and_other_content_are_refused(server, tmp_path, capsys):
    server.files["page.html"] = b"<html>sign in</html>"
    assert go(server, tmp_path, name="page.html") == 2 and "answers with a web page" in capsys.readouterr().err
    server.files["set.zip"] = b"neither zip nor tar"
    assert go(server, tmp_path) == 2 and "neither a zip nor a tar archive" in capsys.readouterr().err
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("other/readme.txt", "x")
    server.files["set.zip"] = buffer.getvalue()
    assert go(server, tmp_path) == 2
    assert "does not look like ModelNet10: no ply_data_train0.h5" in capsys.readouterr().err
    assert main(["fetch", "ModelNet10", "--url", "ftp//x", "--data_root", str(tmp_path)]) == 2
    assert "is no link" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ShapeNet", "ModelNet", "ScanObjectNN", "ModelNetFewShot", "ShapeNetPart", "Folder"])
def test_without_a_link_the_page_is_named(tmp_path, capsys, name):
    assert main(["fetch", name, "--data_root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "no link that can be fetched without you" in err and str(tmp_path) in err
    assert name == "Folder" or "https://" in err


def zip_of(path, name, content=b"x", mode=0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.txt", "fine")
        file.writestr(info, content)


def tar_of(path, name, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "w:gz") as file:
        file.addfile(info, io.BytesIO(b""))


def test_hostile_archives_write_nothing(tmp_path):
    path, folder = tmp_path / "bad", tmp_path / "a" / "b"
    for name in ("../evil.txt", "/tmp/evil.txt", "x/../../evil.txt", "..\\evil.txt", "C:/evil.txt"):
        for pack in (zip_of, tar_of):
            pack(path, name)
            with pytest.raises(UserError, match="leads out of the folder"):
                unpack(path, folder)
    zip_of(path, "link", b"/etc/passwd", 0o120777)
    with pytest.raises(UserError, match="is a link"):
        unpack(path, folder)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        tar_of(path, "x", kind)
        with pytest.raises(UserError, match="is a link or a device"):
            unpack(path, folder)
    assert not list(tmp_path.rglob("evil*")) and not folder.exists()


def test_tar_archives_and_damaged_ones(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("set/a.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"hello"))
    assert (
        unpack(path, tmp_path / "out") == ["set/a.txt"]
        and (tmp_path / "out" / "set" / "a.txt").read_bytes() == b"hello"
    )
    zip_of(tmp_path / "y.zip", "b.txt", b"payload" * 100)
    raw = bytearray((tmp_path / "y.zip").read_bytes())
    raw[raw.index(b"payload") + 3] ^= 255
    (tmp_path / "y.zip").write_bytes(raw)
    with pytest.raises(UserError, match=r"y\.zip: cannot be unpacked"):
        unpack(tmp_path / "y.zip", tmp_path / "out2")
    monkeypatch.setattr("datasets.preparing.unpack.RESERVE", 1 << 62)
    with pytest.raises(UserError, match="are free on the disk"):
        unpack(path, tmp_path / "out3")
