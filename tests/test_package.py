"""The installed package `m2ae` (setup.py) and its command (tools/cli.py)."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
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
        ("x = 'torchrun --nproc_per_node=N main.py --x'", "x = 'torchrun --nproc_per_node=N -m m2ae.main --x'"),
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
        name = re.sub(r'^(prog=|PROG = )"|"$', "", short).removeprefix("m2ae ")
        module = re.sub(r'^(prog=|PROG = )"|"$|^python (-m )?', "", command)
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
    assert cli.main(["frobnicate"]) == 2
    assert capsys.readouterr().err == "error: m2ae frobnicate: is no command; m2ae --help lists them\n"


@pytest.mark.parametrize("name", ["pretrain", "svm", "segment"])
def test_help_and_messages_call_the_command_by_its_name(capsys, name):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: m2ae {name} ")
    assert cli.main([name, "--config"]) == 2
    assert f"m2ae {name} --help explains the flags" in capsys.readouterr().err


def test_every_program_has_a_name_that_the_build_knows(build):
    """What --help of an installation calls it follows from this name."""
    for name, command in cli.COMMANDS.items():
        for path in command.parsers:
            module, function = path.split(":")
            prog = getattr(importlib.import_module(module), function)().prog
            known = {build.COMMANDS.get(text) for text in (prog, f'prog="{prog}"', f'PROG = "{prog}"')}
            assert known & {f"m2ae {name}", f'prog="m2ae {name}"', 'PROG = "m2ae run"'}, (name, prog)


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
    """Return a folder with the installed wheel, and with a package `datasets` of others."""
    return build_site(build, tmp_path_factory)


def build_site(build, tmp_path_factory, **variables: str) -> Path:
    """Build the wheel and install it into a folder that holds a package `datasets` already."""
    if tuple(map(int, importlib.metadata.version("setuptools").split(".")[:2])) < (70, 1):
        pytest.skip("a wheel without isolation needs setuptools 70.1")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    of_build = ("setup.py", "extensions/setup.py", "pyproject.toml", "README.md", "LICENSE")
    for path in [*(path for path, _ in build.files()), *map(ROOT.joinpath, of_build)]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index"]
    wheel_command = [*pip, "wheel", *options, "--no-build-isolation", "-w", str(source), str(source)]
    subprocess.run(wheel_command, check=True, env={**os.environ, **variables})
    (wheel,) = source.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"m2ae", f"m2ae-{__version__}.dist-info"}
    kernels = any(name.endswith(".so") for name in names)
    assert wheel.name.startswith(f"m2ae-{__version__}-py3-none-") and wheel.name.endswith("-any.whl") != kernels
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text("OTHER = 1\n")
    subprocess.run([*pip, "install", *options, "--target", str(folder), str(wheel)], check=True)
    return folder


def call(site: Path, folder: Path, *command: str, status: int = 0, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


PRE = "experiments/debug/point-m2ae/a/ckpt-last.pth"
FINE = "experiments/fine-tuning/point-m2ae/debug/a/ckpt-best.pth"
VIS = "experiments/debug/point-m2ae/vis"
SHORT = ("--set", "max_epoch_inclusive=false", "--set", "max_epoch=1", "--device", "cpu", "--exp_name", "a")
SMALL_SET = ("--set", "dataset.svm=null", "--set", "total_bs=4", "--set", "dataset.train.clouds=32")
SVM_SETS = ("--set", "dataset.svm.train.clouds=32", "--set", "dataset.svm.test.clouds=32", "--device", "cpu")
FOLD = ("--way", "5", "--shot", "10", "--fold", "0", "--data_root", "trial")
# Each takes what those before it wrote.
CHAIN = [
    ("pretrain", "--config", "cfgs/debug/point-m2ae.yaml", *SHORT, *SMALL_SET),
    ("svm", "synthetic", "--config", "cfgs/linear-svm/point-m2ae/synthetic.yaml", "--ckpts", PRE, *SVM_SETS),
    ("finetune", "--config", "cfgs/fine-tuning/point-m2ae/debug.yaml", "--ckpts", PRE, *SHORT),
    ("data", "fixtures", "ModelNetFewShot", "--out", "trial"),
    ("few-shot", "--config", "cfgs/few-shot/point-m2ae/debug.yaml", "--ckpts", PRE, *FOLD, *SHORT),
    ("segment", "--config", "cfgs/segmentation/point-m2ae/debug.yaml", "--ckpts", PRE, *SHORT),
    ("vis", "--config", "cfgs/debug/point-m2ae.yaml", "--ckpts", PRE, "--exp_name", "vis", "--count", "2"),
    ("embed", "--ckpts", FINE, "--input", VIS, "--out", "features.npz"),
    ("weights", "clean", PRE, "clean.pth"),
    ("export", "--ckpts", PRE, "--out", "exported.safetensors"),
    ("embed", "--ckpts", "exported.safetensors", "--input", VIS, "--out", "exported.npz"),
    ("data", "check"),
    ("doctor", "--device", "cpu", "--methods", "point-m2ae"),
]
USE = f"""if True:
    import sys, datasets, numpy, torch, m2ae
    assert datasets.OTHER and not {{"models", "tools", "utils", "main", "segmentation"}} & set(sys.modules)
    assert "point_m2ae.pretrain" in m2ae.list_models()
    model = m2ae.create_model("point_m2ae.pretrain", weights="exported.safetensors")
    points = m2ae.transforms.for_checkpoint("{PRE}")(torch.rand(2, 3000, 3), up="z")
    assert model.encode(points).isfinite().all() and model.reconstruct(points).hidden.any()
    assert len(numpy.load("exported.npz")["features"]) and len(numpy.load("features.npz")["features"])
    from m2ae.extensions.m2ae_ops import backend, loader
    print(backend(), loader.FINISHED)
"""
OTHERS_OF_OURS = ("python -m ", "main.py", "m2ae run run")


@pytest.mark.slow
def test_every_command_of_the_wheel_works_from_another_folder(site, tmp_path):
    """With a package `datasets` of others next to it; messages name commands of the installation."""
    command = str(site / "bin" / "m2ae")
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"bin", "datasets", "m2ae"}
    assert call(site, tmp_path, command, "--version") == f"m2ae {__version__}\n"
    for words in CHAIN:
        said = call(site, tmp_path, command, *words)
        assert not [text for text in OTHERS_OF_OURS if text in said], said
    with_kernels = any((site / "m2ae").rglob("*.so"))
    assert ("compiled" in call(site, tmp_path, "-c", USE)) == with_kernels


@pytest.mark.slow
def test_the_tour_runs_with_an_installation(site, tmp_path):
    """Its first notebook as a script, next to tour.py outside of a clone."""
    shutil.copyfile(ROOT / "docs" / "tour" / "tour.py", tmp_path / "tour.py")
    cells = json.loads((ROOT / "docs" / "tour" / "start.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "same class: " in call(site, tmp_path, "-c", code, MPLBACKEND="Agg")


@pytest.mark.slow
def test_a_wheel_that_was_built_without_a_compiler(build, tmp_path_factory):
    """Its name says that it is of every platform, and its ops say once what serves."""
    site = build_site(build, tmp_path_factory, CXX="/nowhere/c++")
    assert not any((site / "m2ae").rglob("*.so"))
    folder = tmp_path_factory.mktemp("cache")
    code = "import torch; from m2ae.extensions import fps; fps(torch.rand(1, 9, 3), 3); fps(torch.rand(1, 9, 3), 3)"
    said = call(site, folder, "-c", code, CXX="/nowhere/c++", M2AE_CACHE=str(folder))
    assert said.count("using the PyTorch reference of all ops on CPU") == 1 and "no C++ compiler found" in said
