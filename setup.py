"""Build the package `m2ae` of this repository. The metadata is in pyproject.toml.

Here the code is in folders of common names, so that `python main.py` works. An installation has them all below `m2ae`, where they
meet no other package: `api/` becomes the package itself, the other folders and the programs become parts of it, and their imports of
each other get the prefix `m2ae.`. Nothing else in the files changes but the commands that texts name. Where there are a compiler and
a PyTorch to compile for, the CPU kernels are compiled too; only then the wheel belongs to a platform.
"""

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NAME = "m2ae"
ROOT = Path(__file__).resolve().parent
API = "api"  # becomes the package itself
FOLDERS = ("models", "datasets", "tools", "utils", "segmentation", "detection", "extensions")
PROGRAMS = ("main", "main_vis", "main_pretrain", "main_finetune")
RECIPES = "cfgs"
OPS = "extensions/m2ae_ops"
SETUP_OF_OPS = "extensions/setup.py"
SUFFIXES = {".py", ".typed", ".yaml", ".html", ".css", ".js", ".md", ".safetensors", ".cpp", ".h", ".cu", ".cuh"}
# They install a part of the repository on its own.
LEFT_OUT = {f"extensions/{file}" for file in ("setup.py", "install_beside.py", "emd/setup.py", "chamfer_dist/setup.py")}
# What texts call the programs here -> in an installation; neither is Python, so no code is hit.
COMMANDS = {
    "python main.py": "m2ae run",
    "python main_vis.py": "m2ae vis",
    'PROG = "main.py"': 'PROG = "m2ae run"',
    'prog="main_vis.py"': 'prog="m2ae vis"',
    'prog="tools.doctor"': 'prog="m2ae doctor"',
    "python -m datasets.prepare": "m2ae data",
    "python -m tools.embed": "m2ae embed",
    "python -m tools.look": "m2ae look",
    "python -m tools.summary": "m2ae summary",
    "python -m tools.compare": "m2ae compare",
    "python -m tools.sweep": "m2ae sweep",
    "python -m tools.reproduce": "m2ae reproduce",
    "python -m tools.cost": "m2ae cost",
    "python -m tools.tracking": "m2ae track",
    "python -m tools.weights": "m2ae weights",
    "python -m tools.export": "m2ae export",
    "python -m tools.doctor": "m2ae doctor",
}
_COMMAND = re.compile("|".join("(?<!& )" + re.escape(command) + r"\b" * command[-1].isalnum() for command in COMMANDS))
_TORCHRUN = re.compile(r"(torchrun (?:--\S+ )*)main\.py")
_MODULE = re.compile(rf"python -m ({'|'.join(FOLDERS)})\.")


def files() -> Iterator[tuple[Path, str]]:
    """Yield every file of the package: where it is here, and its path in an installation."""
    for folder in (API, *FOLDERS, RECIPES):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in SUFFIXES and name not in LEFT_OUT and path.is_file():
                yield path, f"{NAME}/{name.removeprefix(f'{API}/')}"
    for program in PROGRAMS:
        yield ROOT / f"{program}.py", f"{NAME}/{program}.py"


def installed_name(module: str) -> str | None:
    """Return what a module of this repository is called in an installation, or None for a module of others."""
    top, dot, rest = module.partition(".")
    if top == API:
        return NAME + dot + rest
    return f"{NAME}.{module}" if top in FOLDERS or top in PROGRAMS else None


def rewrite(source: str, file: str) -> str:
    """Return a Python file as it is installed: its absolute imports of this repository and the commands of its texts renamed.

    Args:
        file: its path in the repository, for messages and exceptions.

    Raises:
        ValueError: `import a.b` of this repository without `as`, which binds a name that does not exist in an installation.
    """
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # positions count bytes
    for row, column, old, new in sorted(_renamed(ast.parse(source, file), lines, file), reverse=True):
        line = lines[row]
        lines[row] = line[:column] + new.encode() + line[column + len(old.encode()) :]
    text = b"".join(lines).decode()
    if not file.startswith("extensions/m2ae_ops/compat/"):  # which speaks of the programs of other repositories
        text = _COMMAND.sub(lambda match: COMMANDS[match[0]], text)
    text = _TORCHRUN.sub(rf"\1-m {NAME}.main", text)
    text = _MODULE.sub(rf"python -m {NAME}.\1.", text)
    compile(text, file, "exec", dont_inherit=True)
    return text


def _renamed(tree: ast.AST, lines: list[bytes], file: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield row, column (in bytes), what stands there and what is to stand there, for every import of this repository."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and installed_name(node.module):
            keyword = re.compile(rb"from[ \t]+").match(lines[node.lineno - 1], node.col_offset)
            yield node.lineno - 1, keyword.end(), node.module, installed_name(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                new = installed_name(alias.name)
                if new and alias.asname is None and "." in alias.name:
                    raise ValueError(
                        f"{file}, line {node.lineno}: import {alias.name}; write from ... import, or add as"
                    )
                if new:
                    added = "" if alias.asname else f" as {alias.name}"
                    yield alias.lineno - 1, alias.col_offset, alias.name, new + added
        elif isinstance(node, ast.Call) and node.args and (module := _named_module(node)):
            raise ValueError(
                f"{file}, line {node.lineno}: the module {module!r} has another name in an installation; begin it with __name__"
            )


def _named_module(call: ast.Call) -> str | None:
    """Return the module of this repository that a call of `import_module` or `find_spec` names by its first letters."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    name = call.args[0].values[0] if isinstance(call.args[0], ast.JoinedStr) and call.args[0].values else call.args[0]
    given = name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""
    return given if function in ("import_module", "find_spec") and installed_name(given) else None


def setup_of_ops() -> ModuleType:
    """Return `extensions/setup.py`, which knows how to compile without importing PyTorch."""
    spec = importlib.util.spec_from_file_location("setup_of_ops", ROOT / SETUP_OF_OPS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernels(package: Path) -> bool:
    """Compile the CPU kernels into an installation's folder of the ops, and say so; return whether that was possible."""
    installing, torch_files, objects = setup_of_ops().load_building()
    torch = torch_files.find_torch()
    if torch is None:
        lines = ["no PyTorch in this environment to compile for; the kernels are compiled at first use"]
    else:
        lines = installing.compile_installed(package / "csrc", torch, package / "lib", objects)
    for line in lines:
        print(f"{NAME}: {line}", file=sys.stderr, flush=True)
    return (package / "lib" / installing.STAMP).is_file()


class BuildPackage(build_py):
    """Write the package into the build folder, with its names."""

    def run(self) -> None:
        """Build the package anew."""
        if getattr(self, "editable_mode", False):
            raise SystemExit(
                f"{NAME} cannot be installed in editable mode, for an installation has other names of modules: "
                "run the programs of the repository where they are, or install it with pip install ."
            )
        shutil.rmtree(
            Path(self.build_lib) / NAME, ignore_errors=True
        )  # an earlier build may have left files that are no more
        for path, name in files():
            target = Path(self.build_lib) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                source = path.read_text(encoding="utf-8")
                target.write_text(rewrite(source, path.relative_to(ROOT).as_posix()), encoding="utf-8")
            else:
                shutil.copyfile(path, target)
        self.distribution.has_kernels = compile_kernels(Path(self.build_lib) / NAME / OPS)

    def get_source_files(self) -> list[str]:
        """Return the files of the repository that a source distribution needs."""
        return [*(path.relative_to(ROOT).as_posix() for path, _ in files()), SETUP_OF_OPS]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that are written."""
        return [str(Path(self.build_lib) / name) for _, name in files()]


class Package(Distribution):
    """A package that belongs to a platform once it holds kernels."""

    has_kernels = False

    def has_ext_modules(self) -> bool:
        """Return whether the build compiled kernels."""
        return self.has_kernels


class Wheel(bdist_wheel):
    """Name the platform where the wheel holds kernels, but no Python version or ABI: the libraries have none."""

    def run(self) -> None:
        """Build first: only then it is known whether the wheel holds kernels."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform of the name."""
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel}, distclass=Package)
