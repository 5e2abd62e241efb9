"""The installed package `m2ae` (setup.py) and its command (tools/cli.py)."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import cli
from utils import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("m2ae_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import extensions as ops", "import m2ae.extensions as ops"),
        ("import main, os", "import m2ae.main as main, os"),
        ("from models import a, b", "from m2ae.models import a, b"),
        ("if 1:\n    'é'; from  tools.x import (\n        y,\n    )", "if 1:\n    'é'; from  m2ae.tools.x import (\n        y,\n    )"),
        ("from api.transforms import f", "from m2ae.transforms import f"),
        ("from .models import a", "from .models import a"),
        ("import datasets_of_others, timm.models as t", "import datasets_of_others, timm.models as t"),
        ("x = 'from models import a'", "x = 'from models import a'"),
        ("x = f'python -m datasets.prepare check {y}'", "x = f'm2ae data check {y}'"),
        ("x = 'python -m tools.self_test'", "x = 'python -m m2ae.tools.self_test'"),
        ("x = 'python main.pyc; cd x && python main.py'", "x = 'python main.pyc; cd x && python main.py'"),
    ],
)  # fmt: skip
def test_imports_and_commands_are_renamed(build, source, expected):
    assert build.rewrite(source, "tools/x.py") == expected


def test_an_import_that_binds_no_name_of_an_installation_is_refused(build):
    with pytest.raises(ValueError, match=r"tools/x\.py, line 2: import models\.base; write from"):
        build.rewrite("import os\nimport models.base", "tools/x.py")


@pytest.mark.parametrize("call", ['import_module("datasets.x")', 'importlib.import_module(f"models.{x}")'])
def test_a_module_that_is_named_by_text_is_refused(build, call):
    """In an installation it would be a package of others."""
    with pytest.raises(ValueError, match=r"tools/x\.py, line 1: the module '(datasets\.x|models\.)' has another name"):
        build.rewrite(call, "tools/x.py")
    build.rewrite('import_module(f"{__name__}.x")\nimport_module("timm.models")', "tools/x.py")


def test_every_file_is_rewritten_and_none_is_missing(build):
    installed = {name for _, name in build.files()}
    for path, name in build.files():
        if path.suffix == ".py":
            build.rewrite(path.read_text(encoding="utf-8"), name)
    assert {"m2ae/__init__.py", "m2ae/main.py", "m2ae/py.typed", "m2ae/cfgs/debug/point-m2ae.yaml"} <= installed
    assert {"m2ae/tools/report/page.css", "m2ae/extensions/m2ae_ops/csrc/cuda/chamfer.cu"} <= installed
    assert not any(name.endswith("setup.py") for name in installed)


def test_commands_of_texts_are_those_of_the_command_line(build):
    for command, short in build.COMMANDS.items():
        name = short.removeprefix('prog="').rstrip('"').removeprefix("m2ae ")
        module = command.removeprefix("python -m ").removeprefix("python ").removeprefix('prog="').rstrip('"')
        assert cli.COMMANDS[name].module == module.removesuffix(".py")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["pretrain", "--config", "x"], ["--config", "x"]),
        (["finetune", "--config", "x"], ["--finetune_model", "--config", "x"]),
        (["few-shot", "--scratch_model"], ["--scratch_model"]),
        (["svm", "modelnet40"], ["--test_svm", "modelnet40"]),
        (["svm", "--test_svm=scan"], ["--test_svm=scan"]),
        (["finetune", "--help"], ["--help"]),
    ],
)
def test_the_command_hands_flags_to_its_program(monkeypatch, argv, expected):
    import main

    def program(flags, prog):
        assert (flags, prog) == (expected, f"m2ae {argv[0]}")
        return 7

    monkeypatch.setattr(main, "main", program)
    assert cli.main(argv) == 7


def test_the_command_explains_itself(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"m2ae {__version__}\n"
    assert cli.main(["pretrian"]) == 2
    assert "did you mean pretrain?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain", "svm", "segment"])
def test_help_and_messages_call_the_command_by_its_name(capsys, name):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: m2ae {name} ")
    assert cli.main([name, "--config"]) == 2
    assert f"m2ae {name} --help explains the flags" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--help"], ["pretrain", "--help"]])
def test_a_reader_that_leaves_early_is_no_error(flags):
    """As `m2ae --help | head -1`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", *flags], cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True
        )
    assert done.stderr == "" and done.returncode in (0, 128 + 13)  # argparse passes over what cannot be written


def test_completion(capsys, monkeypatch):
    pytest.importorskip("shtab", reason="needs shtab (requirements-dev.txt)")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*cli.COMMANDS, "--exp_name", "--input", "convert", "--epoch"))
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert cli.main(["completion", "dash"]) == 2
    assert "completion dash: give one shell of bash, zsh" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.fixture(scope="module")
def site(build, tmp_path_factory) -> Path:
    """Install the wheel into a folder that holds a package `datasets` already."""
    if tuple(map(int, importlib.metadata.version("setuptools").split(".")[:2])) < (70, 1):
        pytest.skip("a wheel without isolation needs setuptools 70.1")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in [
        *(path for path, _ in build.files()),
        *map(ROOT.joinpath, ("setup.py", "extensions/setup.py", "pyproject.toml", "README.md", "LICENSE")),
    ]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--no-build-isolation", "-w", str(source), str(source)], check=True)
    (wheel,) = source.glob("*.whl")
    assert {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == {
        "m2ae",
        f"m2ae-{__version__}.dist-info",
    }
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text("OTHER = 1\n")
    subprocess.run([*pip, "install", *options, "--target", str(folder), str(wheel)], check=True)
    return folder


def call(site: Path, folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(site, tmp_path):
    command = str(site / "bin" / "m2ae")
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"bin", "datasets", "m2ae"}
    assert call(site, tmp_path, sys.executable, command, "--version") == f"m2ae {__version__}\n"
    keys = ("dataset.svm=null", "max_epoch_inclusive=false", "max_epoch=1", "total_bs=4", "dataset.train.clouds=32")
    flags = [flag for key in keys for flag in ("--set", key)]
    recipe = ("--config", "cfgs/debug/point-m2ae.yaml", "--exp_name", "a", "--device", "cpu")
    call(site, tmp_path, sys.executable, command, "pretrain", *recipe, *flags)
    assert (tmp_path / "experiments" / "debug" / "point-m2ae" / "a" / "ckpt-last.pth").is_file()
    code = """if True:
        import sys, datasets, m2ae, m2ae.transforms
        assert datasets.OTHER and not {"models", "tools", "utils"} & set(sys.modules)
        assert "point_m2ae.pretrain" in m2ae.list_models()
        m2ae.create_model("point_m2ae.pretrain", weights="experiments/debug/point-m2ae/a/ckpt-last.pth")
    """
    call(site, tmp_path, sys.executable, "-c", code)
