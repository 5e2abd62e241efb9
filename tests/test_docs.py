"""README and docs: links lead somewhere, commands are accepted, and numbers follow from the files that they name."""

import json
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target
