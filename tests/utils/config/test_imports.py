"""Python files that register further models: the key `imports`, `--import`, and what goes wrong with them."""

import pytest

from models import MODELS
from tools.launch import load_recipe, methods
from utils.config.cli import parse_args
from utils.config.load import saved_config
from utils.config.merge import to_dict
from utils.config.yaml import save_config
from utils.errors import UserError
from utils.registry import Registry

CODE = """
from dataclasses import dataclass
from models.registry import MODELS

@dataclass
class Config:
    NAME: str = "{name}"
    width: int = 3

@MODELS.register("{name}", config=Config)
class Toy:
    method = "{name}-method"
"""


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    """Take the names that a test registers away again."""
    for table in ("_entries", "_canonical"):
        monkeypatch.setattr(MODELS, table, dict(getattr(MODELS, table)))


def write(path, name):
    path.write_text(CODE.format(name=name))
    return path


def test_key_is_relative_to_its_file_and_saved(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = write(tmp_path / "toy.py", "ByKey")
    (tmp_path / "a.yaml").write_text("imports: [toy.py]\nmodel: {NAME: ByKey, width: 5}\n")
    (tmp_path / "elsewhere" / "b.yaml").write_text("_base_: ../a.yaml\nmodel: {width: 6}\n")
    assert load_recipe(tmp_path / "a.yaml").model.width == 5 and "ByKey-method" in methods()
    config = load_recipe("b.yaml")
    assert config.model.width == 6 and config.imports == [file.as_posix()]
    save_config(config, tmp_path / "elsewhere" / "config.yaml")
    assert load_recipe("config.yaml") == config


def test_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "toy.py", "ByFlag")
    (tmp_path / "a.yaml").write_text("model: {NAME: ByFlag}\n")
    args = parse_args(["--config", "a.yaml", "--import", "toy.py"])
    config = load_recipe("a.yaml", imports=args.imports)
    assert config.imports == [(tmp_path / "toy.py").as_posix()] and "ByFlag" in MODELS


def test_checkpoint_runs_no_code(tmp_path):
    file = write(tmp_path / "toy.py", "OfCheckpoint")
    (tmp_path / "a.yaml").write_text("imports: [toy.py]\nmodel: {NAME: OfCheckpoint}\n")
    tree = to_dict(load_recipe(tmp_path / "a.yaml"))
    with pytest.raises(UserError, match=rf"a\.pth: model 'OfCheckpoint' is registered by {file}.*--import"):
        saved_config(tree, "a.pth", models=Registry("model"), datasets=Registry("data set"))
    assert saved_config(tree, "a.pth", models=MODELS, datasets=Registry("data set")).imports == [file.as_posix()]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "toy.py, line 1 does not import: ModuleNotFoundError"),
        ("x = 1\ny = (", "toy.py.* does not import: SyntaxError"),
        ("x = 1\n1 / 0", "toy.py, line 2 does not import: ZeroDivisionError: division by zero"),
        (
            CODE.format(name="Point_MAE"),
            "toy.py, line 10 does not import: TypeError: model 'Point_MAE' is registered twice",
        ),
    ],
)
def test_files_that_do_not_import(tmp_path, code, message):
    (tmp_path / "toy.py").write_text(code)
    (tmp_path / "a.yaml").write_text("imports: [toy.py]\nmodel: {NAME: Point_MAE}\n")
    with pytest.raises(UserError, match=rf"a.yaml: imports: {tmp_path}/toy.py: {tmp_path}/{message}"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ("[none.py]", "imports: none.py: is no Python file"),
        ("[a.yaml]", "is no Python file"),
        ("toy.py", "expected a list"),
    ],
)
def test_what_is_no_python_file(tmp_path, imports, message):
    (tmp_path / "a.yaml").write_text(f"imports: {imports}\nmodel: {{NAME: Point_MAE}}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_flag_that_names_no_file():
    with pytest.raises(UserError, match=r"--import none\.py: is no Python file"):
        load_recipe("cfgs/debug/point-mae.yaml", imports=["none.py"])
