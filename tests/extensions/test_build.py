"""Building and falling back: no compiler, a broken compiler, a forced reference, what is kept, several at once, CUDA."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from extensions.m2ae_ops import backend, loader
from extensions.m2ae_ops.building import BuildError, cache_folder
from extensions.m2ae_ops.building.recipe import CPU_FLAGS, ISA_FLAGS
from extensions.m2ae_ops.building.toolchain import X86, find_cuda
from extensions.m2ae_ops.building.torch_files import torch_files
from extensions.m2ae_ops.private import library
from extensions.m2ae_ops.private.library import build

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from extensions import fps
from extensions.m2ae_ops import backend
print(fps(torch.tensor([[[0., 0, 0], [1, 0, 0], [3, 0, 0]]]), 3).tolist(), backend())
"""


def has_compiler() -> bool:
    return sys.platform == "linux" and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def has_nvcc() -> bool:
    try:
        find_cuda(torch_files(Path(torch.__file__).parent))
    except BuildError:
        return False
    return has_compiler() and (library.CSRC / "cuda").is_dir()


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run SCRIPT in a fresh process with an empty cache."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "M2AE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)


def test_without_a_compiler_the_reference_serves(tmp_path):
    answer = run(tmp_path, CXX="no-such-compiler")
    assert answer.stdout.startswith("[[0, 2, 1]] reference (no C++ compiler found (no-such-compiler)")
    assert answer.stderr.count("using the PyTorch reference") == 1
    assert "python -m extensions.m2ae_ops.build --cpu --verbose" in answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="builds on Linux only")
def test_a_failed_build_does_not_stop_the_program(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\necho it broke >&2\nexit 1\n')
    compiler.chmod(0o755)
    answer = run(tmp_path / "cache", CXX=str(compiler))
    assert answer.stdout.startswith("[[0, 2, 1]] reference (the compiler failed; its output is in ")
    log = next((tmp_path / "cache").glob("ops-*/build.log"))
    assert str(log) in answer.stderr and "it broke" in log.read_text()
    assert not list((tmp_path / "cache").glob("ops-*/build-*"))


def test_a_cache_that_cannot_be_written_does_not_stop_the_program(tmp_path):
    if not has_compiler():
        pytest.skip("no C++ compiler")
    (tmp_path / "file").write_text("")
    answer = run(tmp_path / "file")
    assert answer.stdout.startswith("[[0, 2, 1]] reference (cannot write to the cache")


def test_the_reference_can_be_forced(tmp_path):
    answer = run(tmp_path, M2AE_OPS="reference")
    assert answer.stdout == "[[0, 2, 1]] reference (M2AE_OPS=reference)\n"
    assert not list(tmp_path.iterdir())


def test_the_library_may_load_before_the_ops_are_declared():
    if not backend().startswith("compiled"):
        pytest.skip(f"no compiled library: {backend()}")
    command = [sys.executable, "-c", f"import torch; torch.ops.load_library({str(build())!r})\n{SCRIPT}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("[[0, 2, 1]] compiled (")


@pytest.fixture
def small_sources(tmp_path, monkeypatch):
    """Let the CPU half consist of two tiny files, in a cache of its own; return their folder."""
    if not has_compiler():
        pytest.skip("no C++ compiler")
    backend()  # the real library loads once, from the real cache, before the variable below hides that
    folder = tmp_path / "csrc" / "cpu"
    folder.mkdir(parents=True)
    (folder / "answer.h").write_text("inline int answer() { return 41; }\n")
    (folder / "one.cpp").write_text(
        '#include "answer.h"\nextern "C" __attribute__((visibility("default"))) int one() { return answer(); }\n'
    )
    (folder / "two.cpp").write_text('extern "C" __attribute__((visibility("default"))) int two() { return 2; }\n')
    monkeypatch.setattr(library, "CSRC", folder.parent)
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    return folder


def compiled_files(library: Path) -> set[str]:
    log = (library.parent / "build.log").read_text()
    return {name for name in ("one.cpp", "two.cpp") if f"{name} -o" in log}


def test_only_what_changed_is_compiled_again(small_sources, monkeypatch, caplog):
    monkeypatch.setattr("extensions.m2ae_ops.building.compile.SAY_EVERY", 0.0)
    first = build()
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("compiling the CPU kernels into ") and said[1:] == ["compiled 1 of 2 files"]
    assert compiled_files(first) == {"one.cpp", "two.cpp"}
    stamp = first.stat().st_mtime_ns
    assert build() == first and first.stat().st_mtime_ns == stamp  # from the cache
    (small_sources / "two.cpp").write_text("int two() { return 3; }\n")
    second = build()
    assert second != first and compiled_files(second) == {"two.cpp"}
    (small_sources / "answer.h").write_text("inline int answer() { return 42; }\n")  # any source may include it
    third = build()
    assert third not in (first, second) and compiled_files(third) == {"one.cpp", "two.cpp"}


def test_a_mistake_is_told_and_the_good_files_are_kept(small_sources):
    (small_sources / "two.cpp").write_text("this is no C++\n")
    with pytest.raises(BuildError, match=r"the compiler failed; its output is in (.*build\.log)") as error:
        build()
    log = Path(str(error.value).split(" is in ")[1])
    assert "error" in log.read_text()
    (small_sources / "two.cpp").write_text("int two() { return 2; }\n")
    assert compiled_files(build()) == {"two.cpp"}


@pytest.mark.skipif(sys.platform != "linux", reason="builds on Linux only")
def test_what_a_killed_build_has_finished_is_kept(small_sources, tmp_path, monkeypatch):
    """Objects are kept one by one: a build that is stopped in its last file leaves only that to the next one."""
    real = shutil.which("g++") or shutil.which("c++")
    slow = tmp_path / "slow"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *two.cpp*) touch "{tmp_path}/waits"; exec sleep 60 ;; esac\nexec {real} "$@"\n'
    )
    slow.chmod(0o755)
    script = (
        "import sys; from pathlib import Path; from extensions.m2ae_ops.private import library; "
        "library.CSRC = Path(sys.argv[1]); library.build()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": str(slow), "MAX_JOBS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-c", script, str(small_sources.parent)], env=env, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "waits").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert [path.name.split("-")[0] for path in (tmp_path / "cache" / "ops-objects").glob("*.o")] == ["one"]
    slow.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    monkeypatch.setenv("CXX", str(slow))
    assert compiled_files(build()) == {"two.cpp"}


def test_a_wrong_number_of_jobs_is_refused(small_sources, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(BuildError, match="MAX_JOBS=many is not a number of at least 1"):
        build()


def test_a_library_that_does_not_load_names_what_helps(small_sources, monkeypatch, caplog):
    """Building again would not help on a file system without execution."""
    load = loader._load.__wrapped__
    monkeypatch.delenv("M2AE_OPS", raising=False)
    monkeypatch.setattr(loader, "FINISHED", small_sources / "none")
    path = build()
    path.write_bytes(b"no library")
    assert load("cpu")[0] is None and f"remove {path.parent} to compile it anew" in caplog.text
    monkeypatch.setattr(loader.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    caplog.clear()
    assert "does not load" in load("cpu")[1]
    assert "mounted noexec: set M2AE_CACHE to a folder on another one" in caplog.text
    assert "m2ae_ops.build" not in caplog.text


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    for name in ("M2AE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder().name == f"m2ae-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/some")
    assert cache_folder() == Path("/some/m2ae")


def test_what_builds_the_kernels_stays_small():
    files = (ROOT / "extensions" / "m2ae_ops" / "building").rglob("*.py")
    assert sum(len(path.read_text().splitlines()) for path in files) <= 500


def test_the_compilers_output_is_logged_for_verbose(small_sources, caplog):
    with caplog.at_level(logging.DEBUG, logger="m2ae_ops"):
        library = build()
    assert (library.parent / "build.log").read_text() in caplog.text


def test_many_at_once_compile_once(small_sources, caplog):
    with caplog.at_level(logging.WARNING, logger="m2ae_ops"), ThreadPoolExecutor(4) as pool:
        paths = {pool.submit(build) for _ in range(4)}
    assert len({path.result() for path in paths}) == 1
    assert sum("compiling the CPU kernels" in record.message for record in caplog.records) == 1


def test_who_waits_for_another_build_says_so(small_sources, monkeypatch, caplog):
    """And takes what the other one has made; one that never ends is named."""
    path = build()
    lock, kept = FileLock(path.parent / "build.lock"), path.rename(path.with_name("kept"))
    monkeypatch.setattr(library, "LOCK_TIMEOUT", 0.2)
    with lock, pytest.raises(BuildError, match=r"another process holds .*build\.lock for over 0\.2 s"):
        build()
    said = [record.getMessage() for record in caplog.records][-1]
    assert said == "another process builds the CPU kernels; waiting until they are there"
    monkeypatch.setattr(library, "LOCK_TIMEOUT", 60)
    caplog.clear()
    with ThreadPoolExecutor(1) as pool:
        with lock:
            waiting = pool.submit(build)
            while not caplog.records:
                time.sleep(0.01)
            kept.rename(path)
        assert waiting.result() == path
    assert len(caplog.records) == 1


def test_installed_kernels_for_another_pytorch_are_told(small_sources, tmp_path, monkeypatch, caplog):
    """As after an update of PyTorch next to an installed wheel."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stamp.json").write_text(json.dumps({"torch": "2.9.0", "halves": {}}))
    monkeypatch.setattr(loader, "FINISHED", tmp_path / "lib")
    assert loader._load_finished("cpu") is None
    (record,) = caplog.records
    assert (
        f"installed are for PyTorch 2.9.0 and not for this {torch.__version__}; kernels compiled" in record.getMessage()
    )


@pytest.mark.skipif(not shutil.which("clang++"), reason="no clang++")
@pytest.mark.parametrize("isa", ["base", *(["avx2", "avx512"] if X86 else [])])
def test_clang_takes_the_kernels_too(isa, tmp_path):
    """Compilers differ in what they know about vectors."""
    source = library.CSRC / "cpu" / f"isa_{isa}.cpp"
    command = ["clang++", "-std=c++20", *CPU_FLAGS, *ISA_FLAGS.get(source.name, ()), "-O0", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernels.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="backend: device='tpu' is not one of cpu, cuda"):
        backend("tpu")


def test_without_cuda_sources_the_cpu_half_stands(small_sources, monkeypatch):
    # The fake half is compiled by whatever is at hand; the CUDA half fails for want of sources or of nvcc.
    with pytest.raises(BuildError):
        build("cuda")
    assert build().exists()


KERNELS = """
import json, sys, torch
import extensions
from extensions.m2ae_ops import backend
before = backend()
torch.ops.load_library(sys.argv[1])
def kernels(key):
    return [name for name in torch._C._dispatch_get_registrations_for_dispatch_key(key) if name.startswith("m2ae::")]
print(json.dumps([before, kernels("CPU"), kernels("CUDA")]))
"""


# On CUDA the plain layers run instead of the pieces of the fused patch embedding, PyTorch has an attention of its own, and the Chamfer loss
# comes with its gradients (which the reference scales) instead of who chose whom.
CPU_ONLY = (
    "attention", "attention_backward",
    "chamfer_chosen", "chamfer_chosen_backward",
    "norm_relu", "norm_relu_backward", "norm_relu_sums",
    "group_max", "join_rows", "lift_rows", "lift_rows_sums", "peak_backward", "peak_sums", "spread_winners",
)  # fmt: skip

# The Chamfer loss with its gradients, and what is written in Triton.
CUDA_ONLY = ("chamfer_loss", "mini_pointnet", "mini_pointnet_backward")


@pytest.mark.skipif(not has_nvcc(), reason="no CUDA sources, or no nvcc that fits this PyTorch")
def test_the_cuda_half_compiles_and_loads_without_a_gpu():
    """Compile for Hopper and Blackwell, in the usual cache; both devices have the same kernels but for those named above."""
    library = build("cuda", architectures=["9.0", "10.0"])
    command = [sys.executable, "-c", KERNELS, str(library)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    before, cpu, cuda = json.loads(answer.stdout)
    assert before.startswith("compiled") and cpu
    assert set(cpu) - set(cuda) == {f"m2ae::{name}" for name in CPU_ONLY}
    assert "m2ae::chamfer_loss" in cuda
    assert set(cuda) - {f"m2ae::{name}" for name in CUDA_ONLY} <= set(cpu)


@pytest.mark.slow
def test_several_processes_build_once(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "M2AE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=env, **pipes) for _ in range(3)]
    answers = [process.communicate(timeout=600) for process in processes]
    if "no C++ compiler" in answers[0][0]:
        pytest.skip("no C++ compiler")
    assert all(out.startswith("[[0, 2, 1]] compiled (") for out, _ in answers)
    assert sum(err.count("compiling the CPU kernels") for _, err in answers) == 1
