"""README as a new user takes it: every command of its tasks, one after the other, in a fresh clone on built-in data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
LIMIT = 600  # seconds that a command may take


def commands(text: str, title: str) -> list[tuple[str, str]]:
    """Return the commands of the code blocks of a section, each with the assignments that came before it."""
    section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", code).splitlines()]
    assignments, found = "", []
    for line in lines:
        if re.match(r"[A-Z]+=", line):
            assignments += f"{line}; "
        elif line and not line.startswith("#"):
            found.append((assignments, line))
    return found


def test_commands_are_taken_apart():
    text = "# x\n\n## Tasks\n\nWords.\n\n    # a comment\n    one --a \\\n        --b\n    P=c d\n    two $P\n\n## More\n\n    three\n"
    assert commands(text, "Tasks") == [("", "one --a --b"), ("P=c d; ", "two $P")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of this repository with the changes of the working tree."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    folder = tmp_path_factory.mktemp("readme") / "m2ae"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_every_command_works_as_written(clone):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    listed = commands((ROOT / "README.md").read_text(encoding="utf-8"), "Tasks")
    assert len(listed) >= 12
    for assignments, command in listed:
        done = subprocess.run(
            ["bash", "-c", assignments + command],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    features = np.load(clone / "features.npz")["features"]
    assert len(features) >= 4 and np.isfinite(features).all()
    runs = clone / "experiments"
    assert (runs / "debug/point-m2ae/try/report.html").exists()
    assert (runs / "fine-tuning/point-m2ae/debug/seeds/summary.html").exists()
    assert list(runs.rglob("few-shot/**/report.html")) and list(runs.rglob("segmentation/**/report.html"))


@pytest.mark.slow
def test_the_lines_for_python_work(clone):
    """The block of the Python section, on the checkpoint that the first command left."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Python\n", 1)[1].split("\n## ", 1)[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    if not (clone / "experiments/debug/point-m2ae/try/ckpt-last.pth").exists():
        pytest.skip("the first command has left no checkpoint")
    script = f"import torch\npoints = torch.rand(2, 256, 3) - 0.5\n{code}\nprint(features.shape, tokens.shape)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=clone, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("torch.Size([2, ")
