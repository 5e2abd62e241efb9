"""Names after `--ckpts`: paths stay, names lead to files, nothing is fetched; and the table that they are from."""

import re
from pathlib import Path

import pytest

from tools import weights
from tools.weights import names, resolve, table
from utils import ROOT
from utils.errors import UserError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keep published weights in a folder of the test, and pretend that the small ones are part of this copy."""
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "PACKAGED", tmp_path / "packaged")
    (tmp_path / "packaged").mkdir()
    for name in table.MINI:
        (tmp_path / "packaged" / f"{name}.safetensors").write_bytes(b"x")


@pytest.mark.parametrize("path", ["a/b", "none.pth", "x.safetensors", "./mini", "MODEL.PT"])
def test_paths_stay_as_they_are(path):
    assert resolve(path) == Path(path) == resolve(Path(path))


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mini").write_bytes(b"mine")
    assert resolve("mini") == Path("mini")


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("mini", None, "mini-point-m2ae"),
        ("mini", "point-mae", "mini-point-mae"),
        ("mini", "Point_MAE", "mini-point-mae"),
        ("mini", "point_mae.classify.modelnet40", "mini-point-mae"),
        ("mini", "point_m2ae.pretrain", "mini-point-m2ae"),
        ("mini", "PointTransformer", "mini-point-mae"),
        ("mini-point-mae", "point-m2ae", "mini-point-mae"),
    ],
)
def test_small_weights(tmp_path, name, model, expected):
    assert resolve(name, model=model) == tmp_path / "packaged" / f"{expected}.safetensors"


def test_small_weights_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"mini: there are small weights of point-m2ae and point-mae, none of i2p-mae"):
        resolve("mini", model="I2P_MAE")
    (tmp_path / "packaged" / "mini-point-m2ae.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"mini-point-m2ae: .*mini-point-m2ae.safetensors is missing; this copy is without"
    ):
        resolve("mini")


def test_names_of_the_table(tmp_path):
    with pytest.raises(UserError, match=r"point-mae-pretrain: is not on this machine .*fetch point-mae-pretrain"):
        resolve("point-mae-pretrain")
    place = tmp_path / "cache" / "weights" / "point-mae-pretrain.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert resolve("point-mae-pretrain") == place
    with pytest.raises(UserError, match=r"point-mae-pretrian: is neither .* did you mean point-mae-pretrain"):
        resolve("point-mae-pretrian")


def test_the_table_is_whole():
    found = table.entries()
    assert {entry.via for entry in found.values()} <= {"https", "hf", "drive", "page"}
    for name, entry in found.items():
        assert not names._is_path(name) and name not in table.MINI, name
        assert entry.sha256 == "" or (re.fullmatch("[0-9a-f]{64}", entry.sha256) and entry.stated_by), name
        assert not entry.recipe or (ROOT / "cfgs" / entry.recipe).is_file(), name
        assert entry.source.link.startswith("https://"), name
        assert re.fullmatch("[0-9a-f]{40}", entry.revision) if entry.via == "hf" else not entry.revision, name
    addresses = [entry.source.link + entry.file for entry in found.values()]
    assert len(set(addresses)) == len(addresses)


def test_names_that_lie_are_put_right():
    found = table.entries()
    only, background = found["point-mae-scan-obj-only"], found["point-mae-scan-obj-bg"]
    assert (only.file, only.task) == ("scan_objbg.pth", "scan_obj") and "swapped" in only.note
    assert (background.file, background.task) == ("scan_objonly.pth", "scan_obj-bg") and "swapped" in background.note
    assert "not published" in found["point-m2ae-scan-obj-bg"].note
    assert not any(entry.task == "scan_obj" for entry in found.values() if entry.method == "point-m2ae")


def test_published_numbers_are_those_of_the_page_of_results():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition("## Published numbers")[2].partition("\n## ")[0]
    known = set(re.findall(r"\d+\.\d+", section))
    shown = {name: re.findall(r"\d+\.\d+", entry.published) for name, entry in table.entries().items()}
    assert sum(map(len, shown.values())) > 30
    for name, numbers in shown.items():
        assert set(numbers) <= known, name


def test_the_command_is_the_package(capsys):
    with pytest.raises(SystemExit):
        weights.main(["--help"])
    assert "python -m tools.weights" in capsys.readouterr().out
