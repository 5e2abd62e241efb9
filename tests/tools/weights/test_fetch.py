"""`weights fetch`, `list` and `check` as commands: over three protocols, from a table of small models."""

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save as save_safetensors

from models import build_model
from tests.datasets.test_prepare_sources import DRIVE_ID, drive, hub
from tests.models.test_pyg_layout import converted
from tests.serving import lead_to, serving
from tools.launch import load_recipe
from tools.weights import resolve, table
from tools.weights.command import main
from utils.files import read_checkpoint


def model():
    torch.manual_seed(3)
    return build_model(load_recipe("cfgs/debug/point-mae.yaml").model)


@pytest.fixture(scope="module")
def content() -> bytes:
    """Return a published checkpoint: weights below `base_model`, with wrapped keys."""
    buffer = io.BytesIO()
    torch.save({"base_model": {f"module.{key}": value for key, value in model().state_dict().items()}}, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch, content):
    """Serve the models of a table of their own, which stands in for that of the published ones."""
    shared = {"method": "point-mae", "task": "pretrain", "system": "tests", "recipe": "debug/point-mae.yaml"}
    digest = hashlib.sha256(content).hexdigest()
    files = {
        "toy": {"via": "https", "file": "toy.pth", "address": "https://host.org/toy.pth"}
        | {"sha256": digest, "stated_by": "one third party", "note": "the name lies"},
        "toy-drive": {"via": "drive", "file": "toy.pth", "address": DRIVE_ID},
        "toy.hub": {"via": "hf", "file": "model.bin", "address": "some/repo", "revision": "v1"},
        "toy-page": {"via": "page", "file": "toy.pth", "address": "https://host.org/folder"},
        "toy-other": {"via": "https", "file": "log.txt", "address": "https://host.org/log.txt", "recipe": ""},
    }
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"toys": {**shared, "files": files}}))
    monkeypatch.setattr(table, "FILE", path)
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    table.entries.cache_clear()
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        lead_to(running, monkeypatch)
        running.files["host.org/toy.pth"] = content
        running.digest = digest
        yield running
    table.entries.cache_clear()


def test_fetched_weights_are_where_a_name_leads(server, capsys, caplog):
    assert main(["fetch", "toy"]) == 0
    out = capsys.readouterr().out
    assert f"sha256 {server.digest}: toy, as stated by one third party" in out and "note: the name lies" in out
    assert "loads: " in out and "--ckpts toy" in out
    assert resolve("toy") == Path("cache/weights/toy.pth").resolve()
    server.asked.clear()
    assert main(["fetch", "toy"]) == 0 and server.asked == []


def test_google_drive(server, content, capsys):
    drive(server, content)
    assert main(["fetch", "toy-drive"]) == 0
    out = capsys.readouterr().out
    assert "toy, as stated by" in out and resolve("toy-drive").read_bytes() == content


def test_keys_of_torch_pointcloud_come_back(server, capsys):
    there = save_safetensors({k: v.contiguous() for k, v in converted(model().state_dict(), "debug/point-mae").items()})
    hub(server, there, hashlib.sha256(there).hexdigest())
    assert main(["fetch", "toy.hub"]) == 0
    assert "loads: " in capsys.readouterr().out
    saved = read_checkpoint(resolve("toy.hub"))
    assert saved["provenance"]["sha256"] == hashlib.sha256(there).hexdigest()
    for key, value in model().state_dict().items():
        assert torch.equal(saved["base_model"][key], value), key
    # The file itself, fetched by hand: check says what it is. Its size is that of no recipe.
    Path("by-hand.safetensors").write_bytes(there)
    assert main(["check", "by-hand.safetensors"]) == 2
    out = capsys.readouterr().out
    assert "keys of torch-pointcloud, which every command" in out and "point-mae, pre-training, by its keys" in out
    assert main(["fetch", "toy.hub", "--url", "by-hand.safetensors", "--out", "mine.safetensors"]) == 0
    assert "loads: " in capsys.readouterr().out


def test_another_hash(server, capsys):
    assert main(["fetch", "toy", "--sha256", "0" * 64]) == 2
    err = capsys.readouterr().err
    assert f"another hash than sha256:{'0' * 64} (got {server.digest})" in err and "toy.pth.other-hash" in err
    assert [path.name for path in Path("cache/weights").iterdir()] == ["toy.pth.other-hash"]
    assert main(["fetch", "toy", "--sha256", "12"]) == 2 and "is no sha256 hash of 64" in capsys.readouterr().err
    assert main(["fetch", "toy", "--sha256", server.digest, "--out", "here.pth"]) == 0 and Path("here.pth").is_file()


def test_by_hand(server, content, capsys):
    server.states["host.org/toy.pth"] = 403
    assert main(["fetch", "toy"]) == 2
    err = capsys.readouterr().err
    assert "is forbidden" in err and "By hand: get https://host.org/toy.pth in a browser" in err
    place = Path("cache/weights/toy.pth").resolve()
    assert f"python -m tools.weights fetch toy --url FILE, which puts it at {place}" in err and not place.exists()
    Path("downloaded").write_bytes(content)
    assert main(["fetch", "toy", "--url", "downloaded"]) == 0 and place.read_bytes() == content
    assert main(["fetch", "toy-page"]) == 2
    assert "https://host.org/folder: a person has to get toy.pth there" in capsys.readouterr().err


def test_what_is_no_checkpoint(server, capsys):
    server.files["host.org/log.txt"] = b"epoch 1"
    assert main(["fetch", "toy-other"]) == 0  # a log is not loaded
    assert main(["fetch", "toy-drive", "--url", "https://host.org/log.txt"]) == 2
    assert "is a text file, not a checkpoint" in capsys.readouterr().err
    assert main(["fetch", "tpy"]) == 2 and "did you mean toy" in capsys.readouterr().err
    Path("file").write_text("x")
    assert (
        main(["fetch", "toy", "--out", "file/below.pth"]) == 2
        and "a part of the path is a file" in capsys.readouterr().err
    )


def test_lists(server, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "mini-point-mae" in out and "toy-drive" in out
    assert main(["list", "mini", "mae"]) == 0
    out = capsys.readouterr().out
    assert "mini-point-mae" in out and "mini-point-m2ae" not in out and "toy" not in out
    assert main(["list", "toy"]) == 0 and "https://host.org/toy.pth" in capsys.readouterr().out
    assert main(["list", "mini-point-mae"]) == 0
    assert re.search(r"  place +\S+/mini-point-mae\.safetensors", capsys.readouterr().out)
    assert main(["list", "point-mea"]) == 2
    assert "point-mea: is in no name, method, task or system of the table; did you mean" in capsys.readouterr().err
    assert main(["list", "--json"]) == 0 and json.loads(capsys.readouterr().out)["toy"]["sha256"] == server.digest


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("fine-tuning/point-m2ae/scan_pb", "point-m2ae, a classifier of 15 classes (ScanObjectNN"),
        ("segmentation/point-mae/shapenet_part", "point-mae, part segmentation, by its keys"),
    ],
)
def test_published_files_are_told_by_their_keys(tmp_path, capsys, recipe, words):
    path = tmp_path / "x.pth"
    torch.save({"base_model": build_model(load_recipe(f"cfgs/{recipe}.yaml").model).state_dict()}, path)
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert words in out and "loads: " in out


def test_files_that_do_not_load(tmp_path, capsys):
    torch.save({"neck.weight": torch.zeros(2)}, tmp_path / "x.pth")
    state = model().state_dict()
    torch.save({key: value for key, value in state.items() if "decoder" not in key}, tmp_path / "y.pth")
    assert main(["check", str(tmp_path / "x.pth"), str(tmp_path / "y.pth")]) == 2
    out = capsys.readouterr().out
    assert "of no method that is known here" in out and "point-mae, pre-training, by its keys" in out
    assert "does not load: " in out
    (tmp_path / "z.pth").write_bytes(b"<html>")
    assert main(["check", str(tmp_path / "z.pth")]) == 2 and "is a web page" in capsys.readouterr().err
