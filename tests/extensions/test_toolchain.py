"""Finding PyTorch's files, the CUDA toolkit and the architectures, with toolkits made of shell scripts."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extensions.m2ae_ops.building import BuildError, recipe, torch_files
from extensions.m2ae_ops.building.installing import find_finished
from extensions.m2ae_ops.building.recipe import cpu_half, cuda_half, sources_digest
from extensions.m2ae_ops.building.toolchain import (
    Compiler,
    CudaToolkit,
    architectures_for,
    check_headers,
    choose_architectures,
    code_flags,
    covers,
    cuda_runtime,
    find_cuda,
    parse_architectures,
)

NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
--dryrun) echo "#$ TOP={home}/bin/.." >&2 ;;
--list-gpu-code) echo sm_75; echo sm_90; echo sm_100 ;;
esac
"""
HOPPER = CudaToolkit("nvcc", Path("/cuda"), "13.0", ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"))
OLD = CudaToolkit("nvcc", Path("/cuda"), "12.4", ("5.0", "7.5", "8.0", "8.6", "8.9", "9.0"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts stand for nvcc")


def make_toolkit(folder: Path, version: str = "13.0") -> Path:
    """Write a toolkit with an nvcc that answers questions; return its folder."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(version=version, home=folder))
    nvcc.chmod(0o755)
    return folder


def make_torch(folder: Path, cuda: str | None = "13.0", cmake_text: str = "") -> torch_files.TorchFiles:
    """Write the files of a PyTorch that matter to a build, and read them."""
    (folder / "torch" / "include").mkdir(parents=True)
    lines = ["from typing import Optional", "__version__ = '2.9.0+x'", f"cuda: Optional[str] = {cuda!r}"]
    (folder / "torch" / "version.py").write_text("\n".join(lines))
    cmake = folder / "torch" / "share" / "cmake" / "Torch"
    cmake.mkdir(parents=True)
    (cmake / "TorchConfig.cmake").write_text(cmake_text)
    return torch_files.torch_files(folder / "torch")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Hide the machine's own toolkit."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def test_the_files_of_pytorch_agree_with_pytorch():
    found = torch_files.find_torch()
    assert found.folder == Path(torch.__file__).parent
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)
    assert found.cxx11_abi == int(torch.compiled_with_cxx11_abi())
    assert all(path.is_dir() for path in found.includes)


def test_pytorch_is_found_where_a_build_environment_hides_it(tmp_path, monkeypatch):
    make_torch(tmp_path / "site")
    monkeypatch.setattr(torch_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        torch_files.sysconfig, "get_paths", lambda: dict.fromkeys(["purelib", "platlib"], tmp_path / "site")
    )
    monkeypatch.setattr(torch_files.site, "getsitepackages", lambda: [])
    monkeypatch.setattr(torch_files.site, "getusersitepackages", lambda: str(tmp_path))
    assert torch_files.find_torch().folder == tmp_path / "site" / "torch"
    (tmp_path / "site" / "torch" / "version.py").unlink()
    assert torch_files.find_torch() is None


def test_the_string_abi_is_read_where_it_is_named(tmp_path):
    assert make_torch(tmp_path / "a", cmake_text='set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")').cxx11_abi == 0
    assert make_torch(tmp_path / "b").cxx11_abi == 1


@posix
def test_nvcc_is_followed_to_its_toolkit_through_a_script(bare, monkeypatch):
    home = make_toolkit(bare / "real toolkit")
    (bare / "path").mkdir()
    script = bare / "path" / "nvcc"
    script.write_text(f'#!/bin/sh\nexec "{home}/bin/nvcc" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bare / 'path'}:/usr/bin:/bin")
    toolkit = find_cuda(make_torch(bare))
    assert (toolkit.nvcc, toolkit.home, toolkit.version) == (str(script), home.resolve(), "13.0")
    assert toolkit.known == ("7.5", "9.0", "10.0")


@posix
def test_cuda_home_comes_first_and_wheels_count(bare, monkeypatch):
    files = make_torch(bare)
    wheel = make_toolkit(bare / "nvidia" / "cu13")
    assert find_cuda(files).home == wheel.resolve()
    chosen = make_toolkit(bare / "chosen")
    monkeypatch.setenv("CUDA_HOME", str(chosen))
    assert find_cuda(files).home == chosen.resolve()
    monkeypatch.setenv("CUDA_HOME", str(bare / "nowhere"))
    with pytest.raises(BuildError, match=r"there is no .*nowhere/bin/nvcc; correct or unset CUDA_HOME"):
        find_cuda(files)


@posix
def test_a_toolkit_of_another_major_version_is_refused(bare, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(bare / "old", version="12.4")))
    with pytest.raises(BuildError, match=r"is CUDA 12.4 but PyTorch 2.9.0\+x has CUDA 13.0"):
        find_cuda(make_torch(bare))
    with pytest.raises(BuildError, match="was built without CUDA"):
        find_cuda(make_torch(bare / "cpu", cuda=None))


@posix
def test_a_toolkit_that_does_not_fit_is_passed_over(bare, monkeypatch):
    old, fitting = make_toolkit(bare / "old", version="12.4"), make_toolkit(bare / "nvidia" / "cu13")
    monkeypatch.setenv("PATH", f"{old / 'bin'}:/usr/bin:/bin")
    assert find_cuda(make_torch(bare)).home == fitting.resolve()


def test_the_runtime_of_pytorch_is_preferred(tmp_path):
    files, toolkit = make_torch(tmp_path), CudaToolkit("nvcc", tmp_path / "toolkit", "13.0", ("9.0",))
    with pytest.raises(BuildError, match=r"libcudart.so.13 is neither next to PyTorch nor in"):
        cuda_runtime(files, toolkit)
    for folder in (tmp_path / "toolkit" / "lib64", tmp_path / "nvidia" / "cu13" / "lib"):
        folder.mkdir(parents=True)
        (folder / "libcudart.so.13").write_text("")
        assert cuda_runtime(files, toolkit) == folder / "libcudart.so.13"


def test_nvcc_without_headers_is_told(tmp_path):
    """As where a package manager has nvcc in a package of its own; the headers of NVIDIA's wheels serve as well."""
    files, toolkit = make_torch(tmp_path), CudaToolkit("/opt/bin/nvcc", tmp_path / "toolkit", "13.0", ("9.0",))
    with pytest.raises(BuildError, match=r"/opt/bin/nvcc comes without headers: .* set CUDA_HOME"):
        check_headers(files, toolkit)
    for folder in (
        tmp_path / "nvidia" / "cu13" / "include",
        tmp_path / "toolkit" / "targets" / "x86_64-linux" / "include",
    ):
        folder.mkdir(parents=True)
        (folder / "cuda_runtime.h").write_text("")
        check_headers(files, toolkit)
        (folder / "cuda_runtime.h").unlink()


def test_the_usual_architectures_are_those_that_nvcc_knows(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert choose_architectures(HOPPER, "", [])[-3:] == ("10.0", "12.0", "12.0+PTX")
    assert choose_architectures(OLD, "", []) == ("7.5", "8.0", "8.6", "8.9", "9.0", "9.0+PTX")
    assert choose_architectures(OLD, "", [(8, 6)]) == ("8.6",) and choose_architectures(OLD, "7.5", [(8, 6)]) == (
        "7.5",
    )
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 8.0")
    assert choose_architectures(OLD, "", [(8, 6)]) == ("9.0", "8.0")


@pytest.mark.parametrize(
    ("toolkit", "capabilities", "expected"),
    [
        (HOPPER, [(9, 0)], ("9.0",)),
        (HOPPER, [(9, 0), (8, 0), (9, 0)], ("8.0", "9.0")),
        (HOPPER, [(10, 3)], ("10.0",)),  # machine code of the same generation
        (HOPPER, [(13, 1)], ("12.0+PTX",)),  # a generation that this nvcc does not know
        (OLD, [(12, 0)], ("9.0+PTX",)),
    ],
)
def test_architectures_for_the_devices_at_hand(toolkit, capabilities, expected):
    assert architectures_for(capabilities, toolkit) == expected
    assert all(covers(expected, capability) for capability in capabilities)


def test_a_device_that_nvcc_has_given_up_is_refused():
    with pytest.raises(BuildError, match=r"nvcc 13\.0 no longer compiles for sm_70"):
        architectures_for([(7, 0)], HOPPER)


def test_lists_of_architectures():
    assert parse_architectures("8.0; 9.0a 12.0+PTX", HOPPER) == ("8.0", "9.0a", "12.0+PTX")
    assert code_flags(["9.0", "9.0+PTX"]) == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    for wrong in ("3.7", "Hopper", "9", ""):
        with pytest.raises(BuildError, match=f"architecture '{wrong}' is unknown to nvcc 13.0"):
            parse_architectures(wrong, HOPPER)


def test_what_runs_where():
    assert covers(["8.0"], (8, 6)) and not covers(["8.6"], (8, 0)) and not covers(["8.0"], (9, 0))
    assert covers(["8.0+PTX"], (9, 0)) and not covers(["8.0+PTX"], (7, 5))
    assert covers(["9.0a"], (9, 0)) and not covers(["10.0a"], (10, 3))


def test_a_key_holds_all_that_decides_the_result(tmp_path, monkeypatch):
    """The same key in two environments alike, another one as soon as anything differs."""
    for name, text in (("cpu/a.cpp", '#include "b.h"'), ("cpu/b.h", ""), ("cuda/a.cu", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    one, other = make_torch(tmp_path / "one"), make_torch(tmp_path / "other")
    toolkit = CudaToolkit("nvcc", tmp_path, "13.0", HOPPER.known)
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libcudart.so.13").write_text("")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").write_text("")
    gcc, later_gcc = Compiler("g++", "g++ 12", False), Compiler("g++", "g++ 13", False)
    cpu = cpu_half(tmp_path, one, gcc).key
    assert cpu_half(tmp_path, other, gcc).key == cpu
    (tmp_path / "cuda" / "c.cuh").write_text("of the other half")
    assert cpu_half(tmp_path, one, gcc).key == cpu
    cuda = cuda_half(tmp_path, one, gcc, toolkit, ("9.0",)).key
    assert cuda_half(tmp_path, other, gcc, toolkit, ("9.0",)).key == cuda
    later_torch = replace(one, version="2.10")
    later_toolkit = toolkit._replace(version="13.1")
    assert cuda not in {
        cuda_half(tmp_path, one, gcc, toolkit, ("9.0", "10.0")).key,
        cuda_half(tmp_path, one, gcc, later_toolkit, ("9.0",)).key,
        cuda_half(tmp_path, later_torch, gcc, toolkit, ("9.0",)).key,
    }
    changed = {cpu_half(tmp_path, later_torch, gcc).key, cpu_half(tmp_path, one, later_gcc).key}
    changed.add(cpu_half(tmp_path, one, gcc._replace(openmp=True)).key)
    monkeypatch.setattr(recipe, "CPU_FLAGS", ("-O0",))
    changed.add(cpu_half(tmp_path, one, gcc).key)
    monkeypatch.undo()
    (tmp_path / "cpu" / "b.h").write_text("int changed;")
    changed.add(cpu_half(tmp_path, one, gcc).key)
    (tmp_path / "cpu" / "a.cpp").write_text("int changed;")
    changed.add(cpu_half(tmp_path, one, gcc).key)
    assert len(changed) == 6 and cpu not in changed


@pytest.mark.parametrize(("cmake_text", "standard"), [("", 17), ("    CXX_STANDARD 20\n", 20)])
def test_kernels_are_compiled_for_the_c_plus_plus_of_the_headers(tmp_path, cmake_text, standard):
    """The headers of PyTorch 2.14 need C++20, which earlier compilers do not have."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "a.cpp").write_text("")
    half = cpu_half(tmp_path, make_torch(tmp_path, cmake_text=cmake_text), Compiler("g++", "g++ 12", False))
    (command,) = half.objects.values()
    assert f"-std=c++{standard}" in command


def test_a_finished_library_must_fit(tmp_path):
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    source = tmp_path / "csrc" / "cuda" / "kernel.cu"
    source.write_text("1")
    half = {"library": "x.so", "sources": sources_digest(source.parent.parent, "cuda"), "architectures": ["9.0"]}
    (tmp_path / "x.so").write_text("")
    stamp = tmp_path / "stamp.json"

    def find(name="cuda", version="2.9", capabilities=((9, 0),)):
        return find_finished(tmp_path, tmp_path / "csrc", name, version, capabilities)

    assert find() is None  # no stamp
    stamp.write_text(json.dumps({"torch": "2.9", "halves": {"cuda": half}}))
    assert find() == tmp_path / "x.so"
    assert find(version="2.10") is None
    assert find(capabilities=((9, 0), (8, 0))) is None
    assert find(name="cpu") is None
    source.write_text("2")
    assert find() is None
    for text in ("broken", "[1]", "[]", "3"):
        stamp.write_text(text)
        assert find() is None
