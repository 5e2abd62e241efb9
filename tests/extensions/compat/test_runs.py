"""`python -m m2ae_ops.compat run`: scripts of ours in the place of another repository's main.py, in every way they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from extensions.m2ae_ops.compat.launch import main

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "scripts"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
INSTALLED = ["-m", "m2ae_ops.compat"], ROOT / "extensions"
IN_REPOSITORY = ["-m", "extensions.m2ae_ops.compat"], ROOT
PAGE = "docs/published-code.md"
ON_CPU = ["--device", "cpu"]


@pytest.fixture
def other_repository(tmp_path) -> Path:
    """Make another repository, whose own extensions cannot be imported without being built."""
    for folder in ("extensions/chamfer_dist", "extensions/emd", "models"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("chamfer_dist", "emd"):
        (tmp_path / "extensions" / folder / "__init__.py").write_text("raise ImportError('not built')\n")
    (tmp_path / "extensions" / "own.py").write_text("WHERE = 'their folder'\n")
    (tmp_path / "models" / "net.py").write_text("WHERE = 'their models'\n")
    return tmp_path


def start(folder: Path, *arguments: str, way=INSTALLED, **environment: str):
    """Start `run` with these arguments in the other repository."""
    command, path = way
    env = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *command, "run", *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def run(folder: Path, script: str, options: list[str], *arguments: str, way=INSTALLED, **environment: str) -> str:
    """Run a script as the other repository's main.py and return what it writes to stdout."""
    (folder / "main.py").write_text((SCRIPTS / script).read_text())
    answer = start(folder, *options, "main.py", *arguments, way=way, **environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    "way", [INSTALLED, pytest.param(IN_REPOSITORY, marks=pytest.mark.slow)], ids=["installed", "in the repository"]
)
@pytest.mark.parametrize("device", DEVICES)
def test_every_import_and_call_form_runs(other_repository, way, device):
    if way is INSTALLED:  # with a regular package, ours could not be found under this name at all
        (other_repository / "extensions" / "__init__.py").write_text("")
    said = run(other_repository, "uses_ops.py", [], device, "--flag", "--device", "x", way=way)
    assert said == f"all forms ran on {device}\n"


@pytest.mark.parametrize("device", DEVICES)
def test_the_auction_runs_under_its_published_names(other_repository, device):
    assert run(other_repository, "uses_emd.py", [], device) == f"matched on {device}\n"


@pytest.mark.parametrize("device", DEVICES)
def test_names_of_other_repositories(other_repository, device):
    options = ON_CPU if device == "cpu" else []
    assert run(other_repository, "uses_other_names.py", options, device) == f"other names ran on {device}\n"


def test_cuda_means_the_cpu_when_asked_for(other_repository):
    assert run(other_repository, "uses_cuda.py", ON_CPU, "--device", "cuda") == "mapped --device cuda\n"


def test_shims_give_back_what_age_took_away(other_repository):
    said = run(other_repository, "uses_age.py", [*ON_CPU, "--shims"], str(other_repository))
    assert said == "gave back what age took away\n"


@pytest.mark.slow  # of the launcher below, each process does the same
def test_processes_that_start_afresh_are_served(other_repository):
    assert run(other_repository, "uses_workers.py", ON_CPU) == "workers of rank 0 ran on pointnet2_ops\n"


def test_a_launcher_and_its_workers_are_served(other_repository):
    (other_repository / "main.py").write_text((SCRIPTS / "uses_workers.py").read_text())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py", "--world", "2"]
    answer = start(other_repository, *ON_CPU, "--shims", *launcher)
    assert answer.returncode == 0, answer.stderr
    assert sorted(answer.stdout.splitlines()) == [f"workers of rank {rank} ran on pointnet2_ops" for rank in range(2)]


def test_shell_scripts_find_this_interpreter(other_repository):
    script = "export PYTHONPATH=./\npython main.py $1\npython3 -c 'import sys; print(sys.executable)'\ntorchrun --help | head -1\n"
    (other_repository / "train.sh").write_text(script)
    (other_repository / "main.py").write_text(
        "import sys, chamfer, torch\nprint(sys.argv, torch.zeros(1).cuda().device)\nsys.exit(3)\n"
    )
    answer = start(other_repository, *ON_CPU, "train.sh", "x", PATH=os.defpath)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[:2] == ["['main.py', 'x'] cpu", sys.executable] and lines[2].startswith("usage: ")


def test_a_process_below_that_needs_no_torch_imports_none_and_keeps_the_own_sitecustomize(other_repository):
    own = other_repository / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("OWN = True\n")
    code = "import sys, collections; print('torch' in sys.modules, 'm2ae_ops' in sys.modules, 'Iterable' in vars(collections))"
    path = os.pathsep.join([str(ROOT / "extensions"), str(own)])
    (own / "sitecustomize.py").write_text("print('own')\n")
    answer = start(other_repository, "--shims", "python", "-c", code, PYTHONPATH=path)
    assert answer.stdout == "own\nown\nFalse False True\n", answer.stderr


@pytest.mark.slow
def test_timm_045_imports_where_it_installs(other_repository):
    target = other_repository / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--retries",
        "0",
        "--timeout",
        "10",
        "--no-deps",
        "--target",
        str(target),
    ]
    answer = subprocess.run([*pip, "timm==0.4.5"], capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"timm 0.4.5 cannot be installed here: {answer.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join([str(ROOT / "extensions"), str(target)])
    for options in (ON_CPU, [*ON_CPU, "--shims"]):
        assert run(other_repository, "uses_timm_045.py", options, PYTHONPATH=path) == "timm 0.4.5\n"


@pytest.mark.parametrize("arguments", [["main.py"], ["--device", "cpu"]], ids=["no such script", "nothing"])
def test_what_is_not_there_is_told(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["run", *arguments])
    said = capsys.readouterr().err
    assert PAGE in said and (f"there is no script main.py in {tmp_path}" in said or "what is to be run?" in said)


def test_a_missing_module_is_told(tmp_path):
    answer = start(tmp_path, "-m", "no_such_module", way=IN_REPOSITORY)
    assert answer.returncode == 2 and f"there is no module no_such_module in {tmp_path}" in answer.stderr


ENDINGS = {
    "import pointops_cuda": "pointops_cuda is neither installed nor served. Served are pointnet2_ops,",
    "import pointnet2_ops.pointnet2_extra": "pointnet2_ops.pointnet2_extra is neither installed nor served",
    "from knn_cuda import heap": "knn_cuda is served, but lacks that name",
    "import torch_scatter": "`run --shims` gives it back",
    "import numpy; numpy.float": "`run --shims` gives it back",
    "import torch; torch.distributed.get_rank()": "a launcher starts: python -m m2ae_ops.compat run",
    "import torch; torch.distributed.init_process_group('nccl')": "a launcher starts: python -m m2ae_ops.compat run",
    "import os; os.environ['RANK']": "a launcher starts: python -m m2ae_ops.compat run",
}


def test_errors_say_what_to_do(tmp_path):
    """All in one process: the hook that the interpreter calls with an error that ends it."""
    lines = [
        "import sys, os",
        "os.environ.pop('RANK', None)",
        f"ENDINGS = {list(ENDINGS)!r}",
        "for code in ENDINGS:",
        "    try: exec(code)",
    ]
    lines += ["    except Exception: sys.excepthook(*sys.exc_info())", "1 / 0"]
    (tmp_path / "main.py").write_text("\n".join(lines))
    answer = start(tmp_path, *ON_CPU, "main.py")
    advice = [line for line in answer.stderr.splitlines() if line.startswith("m2ae_ops.compat: ")]
    assert answer.returncode == 1 and "ZeroDivisionError" in answer.stderr
    assert len(advice) == len(ENDINGS), answer.stderr
    for line, expected in zip(advice, ENDINGS.values(), strict=True):
        assert expected in line and PAGE in line
