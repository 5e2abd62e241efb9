"""The packages and the direction of imports (`docs/architecture.md`)."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each package may import from the packages named here, and from itself.
MAY_IMPORT = {
    "utils": set(),
    "extensions": set(),
    "models": {"extensions", "utils"},
    "datasets": {"extensions", "utils"},
    "tools": {"datasets", "models", "extensions", "utils"},
    "segmentation": {"datasets", "models", "extensions", "utils", "tools"},
    "detection": {"datasets", "models", "extensions", "utils", "tools"},
    "api": {"datasets", "models", "extensions", "utils", "tools"},
}
# Published commands change into segmentation/ or detection/; the launchers do for another script what the interpreter does.
COMPAT = ROOT / "extensions" / "m2ae_ops" / "compat"
PUBLISHED = {ROOT / folder / "main.py" for folder in ("segmentation", "detection")}
MAY_EDIT_THE_PATH = {*PUBLISHED, COMPAT / "launch.py", COMPAT / "start" / "sitecustomize.py"}
# Commands that are not at the top run the main program.
MAY_RUN_MAIN = PUBLISHED
COMMANDS = [
    ROOT / "main.py",
    ROOT / "main_vis.py",
    ROOT / "main_pretrain.py",
    ROOT / "main_finetune.py",
    ROOT / "hubconf.py",
]
PACKAGES = set(MAY_IMPORT) | {"main", "tests", "benchmarks"}
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
MOST_PARAMETERS = 10
# Questions about the device, the compiler or the instruction set.
PLACE = re.compile(
    r"is_cuda|device\.type *(==|!=|in\b)|\bcuda\.|is_compiling|is_available|capability|torch\.backends|has_kernel|"
    r"\bbackend\(|[\"']cuda[\"']|platform"
)


@cache
def read(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, at its top or inside functions; of `from a import b` both a and a.b."""
    names = set()
    for node in ast.walk(read(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).split(".")
            package = package if path.name == "__init__.py" else package[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def imports_of_files() -> dict[str, set[str]]:
    """Return the files that each file imports, by module name; of `from package import module` the module alone."""
    files = {module_name(path): path for path in [*SOURCES, *COMMANDS]}
    graph = {}
    for name, path in files.items():
        found = imported(path) & set(files)
        packages = {other for other in found if any(one.startswith(f"{other}.") for one in found)}
        named = {node.names[0].name for node in ast.walk(read(path)) if isinstance(node, ast.Import)}
        graph[name] = found - {name} - (packages - named)
    return graph


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    tree = read(path)
    package = path.relative_to(ROOT).parts[0]
    packages = {name.split(".")[0] for name in imported(path)} & PACKAGES
    assert packages <= MAY_IMPORT[package] | {package} | ({"main"} if path in MAY_RUN_MAIN else set())
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        assert not (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)), "import *"
        if isinstance(node, ast.Attribute) and path not in MAY_EDIT_THE_PATH:
            assert not (node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"), "sys.path"


def test_files_import_each_other_in_no_circle():
    try:
        TopologicalSorter(imports_of_files()).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {' <- '.join(error.args[1])}")


def test_functions_have_few_parameters():
    """Command lines, and ops, whose signatures are those of the kernels, are left out."""
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "extensions":
            continue
        for node in ast.walk(read(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                assert count <= MOST_PARAMETERS, f"{path.relative_to(ROOT)}: {node.name} has {count} parameters"


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_models_do_not_ask_where_they_run(path):
    """Device, backend, instruction set and compiler are questions of `extensions` and of `utils.device`."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if PLACE.search(line)]
    assert not lines


def test_top_level():
    for name in (
        "main.py",
        "main_vis.py",
        "main_pretrain.py",
        "main_finetune.py",
        "hubconf.py",
        "cfgs",
        "models",
        "datasets",
        "tools",
        "utils",
        "extensions",
        "data",
        "docs",
        "tests",
        "benchmarks",
    ):
        assert (ROOT / name).exists(), name
    for name in (
        "requirements.txt",
        "pyproject.toml",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "LICENSE",
        ".ci/run",
    ):
        assert (ROOT / name).is_file(), name
