"""Every way a file comes here, against a server on this machine: Hugging Face, Google Drive, a DOI, links; and what goes wrong."""

import errno
import hashlib
import json
import re
import shutil
import sys

import pytest

from datasets.prepare import main
from datasets.preparing import fetch, mirrors, sources
from datasets.preparing.download import Patience
from datasets.preparing.fetch import Order
from datasets.preparing.sources import Source, obtain, source_of
from tests.serving import lead_to, serving
from utils.errors import UserError

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
DRIVE_ID = "1HyUEv04V2K6vMaR0P7WksuoiMtoXx1fM"
CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form></body></html>"""
QUOTA = b"""<!DOCTYPE html><html><body><p class="uc-error-subcaption">Too many users have viewed it recently.</p></body></html>"""


@pytest.fixture
def server(monkeypatch):
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        lead_to(running, monkeypatch)
        yield running


def hub(server, content=CONTENT, digest=DIGEST, name="some/repo/resolve/v1/model.bin"):
    """Publish a file as Hugging Face does: the answer to HEAD says commit and hash."""
    server.files[name] = content
    server.headers[name] = {"X-Repo-Commit": "c" * 40, "ETag": f'"{digest}"'}
    server.tag = f'"{digest}"'
    return Source("hf", "some/repo", file="model.bin", revision="v1")


def drive(server, content=CONTENT, *, confirm=True):
    """Publish a file as Google Drive does: of a large one, a page that asks comes first."""
    asked = "drive.google.com/uc"
    given = "drive.usercontent.google.com/download" if confirm else asked
    if confirm:
        server.files[asked] = CONFIRM.format(id=DRIVE_ID).encode()
    server.files[given] = content
    server.headers[given] = {"Content-Disposition": 'attachment; filename="model.bin"'}
    return Source("drive", DRIVE_ID)


def doi(server, content=CONTENT, digest=None):
    """Publish a record as Zenodo does."""
    server.redirects["doi.org/10.5281/zenodo.7"] = "https://zenodo.org/records/7"
    server.files["zenodo.org/records/7"] = b"<html>a record</html>"
    link = "https://zenodo.org/api/records/7/files/model.bin/content"
    checksum = f"md5:{digest or hashlib.md5(content).hexdigest()}"
    record = {"id": 7, "files": [{"key": "model.bin", "checksum": checksum, "links": {"self": link}}]}
    server.files["zenodo.org/api/records/7"] = json.dumps(record).encode()
    server.files["zenodo.org/api/records/7/files/model.bin/content"] = content
    return Source("doi", "10.5281/zenodo.7", file="model.bin")


def https(server, content=CONTENT):
    server.files["host.org/model.bin"] = content
    return Source("https", "https://host.org/model.bin")


KINDS = {"hf": hub, "drive": drive, "doi": doi, "https": https}


def get(source, target, attempts=1, **keys):
    return obtain(source, target, by_hand="the command --url FILE", patience=Patience(attempts, 0.0), **keys)


@pytest.mark.parametrize(
    ("kind", "stated"), [("hf", f"sha256:{DIGEST}"), ("drive", ""), ("doi", "md5:"), ("https", "")]
)
def test_a_file_comes_whole(server, tmp_path, kind, stated):
    digest, compared = get(KINDS[kind](server), tmp_path / "new" / "x.bin")
    assert digest == DIGEST and compared.startswith(stated) and bool(compared) == bool(stated)
    assert (tmp_path / "new" / "x.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.bin"]


def test_a_small_file_of_drive_is_not_asked_about(server, tmp_path):
    assert get(drive(server, confirm=False), tmp_path / "x")[0] == DIGEST


@pytest.mark.parametrize("kind", KINDS)
def test_another_call_goes_on_where_the_first_was_cut(server, tmp_path, kind):
    content = CONTENT * 100
    source = KINDS[kind](server, content)
    pages = {"hf": 0, "drive": 1, "doi": 2, "https": 0}[kind]  # that are sent before the file
    server.cuts = [len(content)] * pages + [700_000]
    with pytest.raises(UserError, match=r"By hand: get .* give the file: the command --url FILE"):
        get(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    server.asked.clear()
    digest = hashlib.sha256(content).hexdigest()
    assert get(source, tmp_path / "x", known_hash=f"sha256:{digest}")[0] == digest
    assert f"bytes={1 << 19 if kind == 'drive' else 700_000}-" in server.asked  # gdown keeps whole blocks alone
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_drive_begins_anew_where_the_rest_cannot_be_had(server, tmp_path):
    source = drive(server)
    server.cuts = [1 << 20, 1000]
    with pytest.raises(UserError):
        get(source, tmp_path / "x")
    server.ranges = False
    assert get(source, tmp_path / "x")[0] == DIGEST and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_hash_is_kept_aside(server, tmp_path, kind):
    source = KINDS[kind](server)
    with pytest.raises(
        UserError, match=rf"another hash than sha256:0+ \(got {DIGEST}\).*kept as .*x\.other-hash"
    ) as error:
        get(source, tmp_path / "x", known_hash="sha256:" + "0" * 64)
    assert source.link in str(error.value)
    assert (tmp_path / "x.other-hash").read_bytes() == CONTENT and not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["hf", "doi"])
def test_the_hash_of_the_host_counts(server, tmp_path, kind):
    source = KINDS[kind](server, digest="a" * (64 if kind == "hf" else 32))
    with pytest.raises(UserError, match=r"another hash than (sha256|md5):a+"):
        get(source, tmp_path / "x")
    assert get(KINDS[kind](server), tmp_path / "x", known_hash=f"sha256:{DIGEST}")[1] == f"sha256:{DIGEST}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_a_proxy_is_no_file(server, tmp_path, kind):
    source = KINDS[kind](server)
    server.redirects.clear()
    for name in [*server.files, "doi.org/10.5281/zenodo.7"]:
        server.files[name] = b"<html><title>Sign in to the network</title></html>"
    server.headers.clear()
    with pytest.raises(UserError, match=r"By hand"):
        get(source, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_calls_itself_a_file(server, tmp_path):
    source = https(server, b"\n<!DOCTYPE HTML><html>moved</html>")
    server.headers["host.org/model.bin"] = {"Content-Type": "application/octet-stream"}
    with pytest.raises(UserError, match="answers with a web page"):
        get(source, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_drive_says_why_it_gives_nothing(server, tmp_path):
    server.files["drive.google.com/uc"] = QUOTA
    with pytest.raises(UserError, match=r"Google Drive gives no file.*Too many users have viewed"):
        get(Source("drive", DRIVE_ID), tmp_path / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_there(server, tmp_path, kind):
    source = KINDS[kind](server)
    for name in list(server.files):
        server.states[name] = 404
    server.states["doi.org/10.5281/zenodo.7"] = 404
    server.redirects.clear()
    with pytest.raises(UserError, match=r"(?s)404|not found|gives no file|does not exist"):
        get(source, tmp_path / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_no_network(server, tmp_path, kind):
    source = KINDS[kind](server)
    server.shutdown()
    server.server_close()
    with pytest.raises(
        UserError, match=rf"{re.escape(source.link)} in a browser, on another machine if this one has no network"
    ):
        get(source, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_space(server, tmp_path, kind, monkeypatch):
    source = KINDS[kind](server)
    if kind == "drive":
        monkeypatch.setattr("gdown.download", lambda **_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"cannot write x.*: the disk is full"):
        get(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("kind", "name"), [("hf", "huggingface_hub"), ("drive", "gdown")])
def test_a_library_that_is_not_installed(server, tmp_path, kind, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"needs the package {name}; install it: pip install {name}"):
        get(KINDS[kind](server), tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"https://drive.google.com/file/d/{DRIVE_ID}/view?usp=sharing", Source("drive", DRIVE_ID)),
        (f"https://drive.google.com/uc?export=download&id={DRIVE_ID}", Source("drive", DRIVE_ID)),
        ("https://huggingface.co/a/b/resolve/v1/c/d%20e.bin?download=true", Source("hf", "a/b", "c/d e.bin", "v1")),
        ("https://huggingface.co/datasets/a/b/blob/main/c", Source("hf", "a/b", "c", "main", dataset=True)),
        ("doi:10.5281/zenodo.7/a.zip", Source("doi", "10.5281/zenodo.7", "a.zip")),
        ("https://host.org/x.zip", Source("https", "https://host.org/x.zip")),
    ],
)
def test_links_are_told_apart(text, expected):
    assert source_of(text) == expected


def test_a_file_on_this_machine_is_copied(tmp_path):
    (tmp_path / "mine").write_bytes(CONTENT)
    source = source_of(str(tmp_path / "mine"))
    assert get(source, tmp_path / "x", known_hash=f"sha256:{DIGEST}") == (DIGEST, f"sha256:{DIGEST}")
    assert (tmp_path / "mine").exists()


def test_the_table_of_mirrors_is_whole():
    from datasets.preparing.layouts import is_known

    official = {
        name: place for name, places in mirrors.mirrors().items() for place in places.values() if place.official
    }
    assert set(official) == {"ModelNet40-C", "ModelNet40-meshes", "ModelNet10-meshes"}
    for name, places in mirrors.mirrors().items():
        for place in places.values():
            assert place.via in sources._TRANSPORTS and place.source.link.startswith(("https://", "http://kaldir")), (
                name
            )
            assert not place.known_hash or (sources.checked_hash(place.known_hash) and place.stated_by), name
            assert place.via not in ("hf", "doi") or place.file, name
            assert "unofficial" not in place.note or not place.official
    assert {"ShapeNet", "ModelNet", "ScanObjectNN", "ShapeNetPart"} <= {
        name for name in mirrors.mirrors() if is_known(name)
    }


def test_unofficial_mirrors_are_taken_by_name_alone(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    server.files["datasets/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip"] = CONTENT
    assert main(["fetch", "ModelNet40_SVM", "--data_root", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert (
        "no link that can be fetched without you" in message and "--mirror hf-msun: https://huggingface.co" in message
    )
    assert server.asked == []
    assert main(["fetch", "ModelNet40_SVM", "--mirror", "hf-msum", "--data_root", str(tmp_path)]) == 2
    assert "did you mean hf-msun" in capsys.readouterr().err
    name = "datasets/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip"
    server.headers[name] = {"X-Repo-Commit": "c" * 40}
    assert main(["fetch", "ModelNet40_SVM", "--mirror", "hf-msun", "--data_root", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "has another hash than sha256:07670e23" in message and ".other-hash" in message
    assert main(["fetch", "--list"]) == main(["fetch", "ShapeNetPart", "--list"]) == 0
    assert "hf-cminst" in capsys.readouterr().out
    assert main(["fetch", "ScanObjectNN", "--mirror", "authors", "--data_root", str(tmp_path)]) == 2
    assert "a person has to get h5_files.zip there" in capsys.readouterr().err


def test_an_archive_without_a_reader_is_fetched_only(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    server.files["modelnet.cs.princeton.edu/ModelNet40.zip"] = CONTENT
    assert main(["fetch", "ModelNet40-meshes", "--sha256", DIGEST, "--data_root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"sha256 {DIGEST} (compared with sha256 of yours)" in out and "no reader takes it as it is" in out
    assert (tmp_path / "cache" / "downloads" / "ModelNet40.zip").read_bytes() == CONTENT
    server.asked.clear()
    archive = fetch.fetch_archive("ModelNet40-meshes", Order(known_hash=f"sha256:{DIGEST}"))
    assert archive.sha256 == DIGEST and server.asked == []


def test_zenodo_is_the_default_of_modelnet40_c(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    doi(server)
    server.redirects["doi.org/10.5281/zenodo.6017834"] = "https://zenodo.org/records/7"
    record = json.loads(server.files["zenodo.org/api/records/7"])
    record["files"][0]["key"] = "modelnet40_c.zip"
    server.files["zenodo.org/api/records/7"] = json.dumps(record).encode()
    assert main(["fetch", "ModelNet40-C", "--data_root", str(tmp_path)]) == 2
    assert "neither a zip nor a tar archive" in capsys.readouterr().err
    assert (tmp_path / "cache" / "downloads" / "modelnet40_c.zip").read_bytes() == CONTENT
