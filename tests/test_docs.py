"""README and docs: links lead somewhere, commands are accepted, and numbers follow from the files that they name."""

import ast
import json
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "tour").glob("*.ipynb"))
SPREAD = re.compile(
    r"(-?[\d.]+) ± ([\d.]+)(?:\*\*)? \((-?[\d.]+(?:, -?[\d.]+)+)\)"
)  # mean ± deviation (value, value ...)


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


@cache
def measured() -> list[list[float]]:
    """Return all lists of numbers in the files of results."""
    found: list[list[float]] = []

    def collect(value):
        if isinstance(value, dict):
            list(map(collect, value.values()))
        elif isinstance(value, list):
            if value and all(isinstance(item, int | float) for item in value):
                found.append(value)
            list(map(collect, value))

    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        study = json.loads(path.read_text(encoding="utf-8"))
        collect(study)
        collect(retrieval_by_group(study.get("retrieval", {})))
    return found


def retrieval_by_group(rows: dict) -> list[list[float]]:
    """Return the values of each group of runs, NAME_seed0 and so on, by quantity and by when they were taken."""
    groups: dict[tuple, list[float]] = {}
    for name, moments in rows.items():
        for moment, row in moments.items():
            for quantity, value in row.items():
                groups.setdefault((name.rpartition("_seed")[0], moment, quantity), []).append(value)
    return list(groups.values())


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_numbers_follow_from_files(page):
    """Mean and sample deviation are those of the values beside them, and the values stand in a file of results."""
    for text in SPREAD.findall(page.read_text(encoding="utf-8")):
        values = [float(value) for value in text[2].split(", ")]
        digits = len(text[2].split(",")[0].partition(".")[2])
        known = [
            found for found in measured()
            if len(found) == len(values)
            and all(abs(a - b) <= 0.5001 * 10**-digits for a, b in zip(found, values, strict=True))
        ]  # fmt: skip
        assert known, f"{' '.join(text)}: no file of results has these values"
        for shown, compute in ((text[0], statistics.mean), (text[1], statistics.stdev)):
            close = [abs(compute(found) - float(shown)) <= 0.51 * 10**-digits for found in known]
            assert any(close), f"{' '.join(text)}: {compute.__name__} is {compute(known[0]):.3f}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def text_of(page: Path) -> str:
    """Return the Markdown of a page, or that of the cells of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=names([*PAGES, *NOTEBOOKS]))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def pages_of(nav: list | dict | str) -> Iterator[str]:
    """Yield the pages of a navigation of MkDocs, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def test_the_navigation_of_the_site_has_every_page_once():
    docs = ROOT / "docs"
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    hook = ast.parse((docs / "hooks" / "site.py").read_text(encoding="utf-8"))
    outside = next(
        ast.literal_eval(node.value)
        for node in hook.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PAGES"
    )
    assert [name for name in outside if not (ROOT / name).is_file()] == []
    own = {path.relative_to(docs).as_posix() for path in (*docs.glob("*.md"), *docs.glob("api/*.md"))} - {"README.md"}
    tour = {f"tour/{path.stem}.md" for path in NOTEBOOKS}
    assert sorted(pages_of(config["nav"])) == sorted(own | tour | set(outside.values()))


def prose(page: Path) -> list[tuple[int, str]]:
    """Return the lines of a page that can be wrapped, with their numbers: neither tables nor what is indented or fenced."""
    lines, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        if not (fenced or line.startswith(("|", "    ", "```", "<!--"))):
            lines.append((number, line))
    return lines


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []
    first = lines[:25]  # what a screen shows
    assert any(line.startswith("![") for line in first) and any("make quickstart" in line for line in first)
    assert any(line.startswith("|") for line in first) and any("git clone" in line for line in first)


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert [name for name in pages if f"[{name}]({name})" not in index] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_lines_are_wrapped(page):
    assert [(number, line) for number, line in prose(page) if len(line) > 100] == []


RIDDLES = re.compile(
    r"\b(houses?|rooms?|doors?|judges?|judged|judging|judgements?|beside|owes?|owed|in vain|rehears\w*|faults?)\b",
    re.IGNORECASE,
)
"""Words that stand for a term of the field: package, interface, evaluate, besides, pending, unused, dry run, bug."""


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_words_are_those_of_the_field(page):
    text = re.sub(r"`[^`]*`", "", "\n".join(line for _, line in prose(page)))
    assert RIDDLES.findall(text) == []


def modules_and_scripts(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    modules = {
        f"{name.replace('.', '/')}" for name in re.findall(r"python -m ((?:benchmarks|tools|datasets)[\w.]*)", text)
    }
    return modules | set(re.findall(r"(?<![\w/.<>])((?:benchmarks|cfgs)/[\w./-]+\.(?:py|sh|yaml|json))", text))


# Written by whoever runs the commands, on a machine with a GPU or with an hour for emulating one.
NOT_YET = {f"benchmarks/results/{name}.json" for name in ("ops-gpu", "embed-gpu", "cuda-on-cpu")}
PUBLISHED = ("cfgs/fewshot.yaml", "cfgs/linear-svm/", "cfgs/fine-tuning/", "cfgs/pretrain.yaml", "cfgs/segmentation/")


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_name_files_that_exist(page):
    for name in modules_and_scripts(page) - NOT_YET:
        there = [ROOT / name, ROOT / f"{name}.py", ROOT / name / "__main__.py"]
        published = name.startswith(PUBLISHED) and name.count("/") <= 2
        assert published or any(path.exists() for path in there), name


SOURCE_RIDDLES = re.compile(
    r"\b(houses?|judges?|judged|judging|judgements?|owes?|owed|in vain|rehears\w*|faults?)\b", re.IGNORECASE
)


CODE = ("main.py", "main_vis.py", "main_pretrain.py", "main_finetune.py", "hubconf.py", "models", "datasets", "tools",
        "segmentation", "detection", "utils", "extensions", "benchmarks")  # fmt: skip
SOURCES = [
    path for name in CODE for path in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
]


def test_code_uses_the_words_of_the_field():
    """In names, messages, comments and docstrings; the page fault of an operating system is one."""
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if SOURCE_RIDDLES.search(line.replace("page fault", "")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def undocumented(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the public functions and methods below a node that have no docstring; overloads of a type checker need none."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from undocumented(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            overload = any(isinstance(name, ast.Name) and name.id == "overload" for name in child.decorator_list)
            if not overload and ast.get_docstring(child) is None:
                yield f"{prefix}{child.name}"


@pytest.mark.parametrize("folder", CODE)
def test_public_functions_have_docstrings(folder):
    found = {}
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == folder:
            names = list(undocumented(ast.parse(path.read_text(encoding="utf-8"))))
            found |= {str(path.relative_to(ROOT)): names} if names else {}
    assert found == {}
