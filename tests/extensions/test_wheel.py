"""`pip install ./extensions`: what the wheel is called, what is inside, and which library an installation loads."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from extensions.m2ae_ops import backend

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
import m2ae_ops
assert m2ae_ops.fps(torch.tensor([[[0., 0, 0], [1, 0, 0], [3, 0, 0]]]), 3).tolist() == [[0, 2, 1]]
print(m2ae_ops.backend())
"""


def copy_sources(folder: Path) -> Path:
    """Copy what `pip install ./extensions` sees, so that the tests leave nothing behind in the tree."""
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT / "extensions", folder / "extensions", ignore=ignored))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel as pip does, in an environment of its own, which has no PyTorch."""
    if not backend().startswith("compiled"):
        pytest.skip(f"nothing can be compiled here: {backend()}")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--retries", "0", "--timeout", "10", "--no-deps", "--wheel-dir"]
    command = [*pip, str(folder), str(copy_sources(folder)), "--verbose"]
    env = {name: value for name, value in os.environ.items() if name != "M2AE_CUDA"}
    answer = subprocess.run(command, env=env, capture_output=True, text=True)
    output = answer.stdout + answer.stderr
    if answer.returncode and ("No matching distribution" in output or "No module named pip" in output):
        pytest.skip("pip cannot get setuptools here")
    assert answer.returncode == 0, output
    assert f"compiled CPU kernels for PyTorch {torch.__version__}" in output
    said = [line.partition("m2ae_ops: ")[2] for line in output.splitlines() if "m2ae_ops: comp" in line]
    assert [line.split()[0] for line in said] == ["compiling", "compiled"]  # said before it is done, and after
    assert "left out the CUDA kernels: on a GPU they are compiled at first use, with M2AE_CUDA=1" in output
    (path,) = folder.glob("*.whl")
    return path


def run_installed(folder: Path, cache: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder), "M2AE_CACHE": cache}
    command = [sys.executable, "-c", SCRIPT]
    answer = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("compiled (")
    return answer.stderr


def test_the_wheel_has_no_python_abi_and_all_that_it_needs(wheel):
    assert wheel.name.startswith("m2ae_ops-") and "-py3-none-linux_" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = ROOT / "extensions" / "m2ae_ops"
    expected = [
        path for path in sources.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.parent.name != "lib"
    ]
    assert {path.relative_to(sources.parent).as_posix() for path in expected} <= names
    assert {"m2ae_ops/lib/libm2ae_ops.so", "m2ae_ops/lib/stamp.json"} <= names
    assert not any(name.endswith(".log") for name in names)
    assert "m2ae_ops/compat/start/sitecustomize.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"m2ae_ops"}


def test_an_installation_loads_its_own_library_and_compiles_for_another_pytorch(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    library = tmp_path / "m2ae_ops" / "lib" / "libm2ae_ops.so"
    assert str(library) in run_installed(tmp_path, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    stamp = library.parent / "stamp.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "torch": "2.0.0"}))
    cache = os.environ.get("M2AE_CACHE", "")  # holds the library for these sources, so that nothing is compiled
    log = run_installed(tmp_path, cache)
    assert str(library) not in log and "using compiled CPU kernels" in log and "ops-cpu-" in log


CALLS = {
    "chamfer": "d = torch.ones(1, 2, 3); assert chamfer.forward(d, d)[0].tolist() == [[0, 0]]",
    "emd": "d, i = torch.ones(1, 2), torch.ones(1, 2).int(); a = torch.eye(3)[None, :2]; "
    "emd.forward(a, a.flip(1), d, i, 0.005, 50); assert i.tolist() == [[1, 0]] and d.tolist() == [[0, 0]]",
}


@pytest.mark.parametrize(
    ("folder", "module"), [("chamfer_dist", "chamfer"), pytest.param("emd", "emd", marks=pytest.mark.slow)]
)
def test_the_published_install_line(tmp_path, folder, module):
    """`cd extensions/chamfer_dist && python setup.py install --user`, then the import of published code."""
    pytest.importorskip("setuptools")
    env = {**os.environ, "PYTHONUSERBASE": str(tmp_path / "user"), "M2AE_CUDA": "0"}
    command = [sys.executable, "setup.py", "install", "--user"]
    work = copy_sources(tmp_path) / folder
    answer = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    (site,) = (tmp_path / "user").glob("lib/python*/site-packages")
    script = f"import {module}, torch, m2ae_ops; {CALLS[module]}; print(m2ae_ops.__file__)"
    env["PYTHONPATH"] = str(site)
    answer = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()).is_relative_to(site)
