"""The rooms of the house and the direction of imports (`docs/architecture.md`)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each room may import from the rooms named here, and from itself.
MAY_IMPORT = {
    "utils": set(),
    "extensions": set(),
    "models": {"extensions", "utils"},
    "datasets": {"extensions", "utils"},
    "tools": {"datasets", "models", "extensions", "utils"},
    "segmentation": {"datasets", "models", "extensions", "utils", "tools"},
}
# A published command changes into segmentation/; the launcher does for another script what the interpreter does.
MAY_EDIT_THE_PATH = {ROOT / "segmentation" / "main.py", ROOT / "extensions" / "m2ae_ops" / "compat" / "launch.py"}
# Entries of the house that are not at its top run the main program.
MAY_RUN_MAIN = {ROOT / "segmentation" / "main.py"}
ROOMS = set(MAY_IMPORT) | {"main", "tests", "benchmarks"}
SOURCES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        rooms |= {name.split(".")[0] for name in names} & ROOMS
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way_and_house_rules_hold(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = path.relative_to(ROOT).parts[0]
    assert imported_rooms(tree) <= MAY_IMPORT[room] | {room} | ({"main"} if path in MAY_RUN_MAIN else set())
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        assert not (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)), "import *"
        if isinstance(node, ast.Attribute) and path not in MAY_EDIT_THE_PATH:
            assert not (node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"), "sys.path"


def test_top_level_of_the_house():
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
