"""The public API has types that mypy accepts, here and for another project that uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="needs mypy (requirements-dev.txt)")
ROOT = Path(__file__).parent.parent.parent
USER = """
import torch
from torch import Tensor

import api
from api import transforms

model = api.create_model("point_m2ae.pretrain", weights="mini", mask_ratio=0.5)
expected = transforms.for_checkpoint("mini")
points: Tensor = expected(torch.zeros(1, 2048, 3), up="z")
features: Tensor = model.encode(points)
tokens: Tensor = model.patch_tokens(points)
clouds: list[Tensor] = model.reconstruct(points).clouds
names: list[str] = api.list_models()
"""


@pytest.mark.slow
def test_types(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    cache = ("--cache-dir", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-m", "mypy", *cache], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    strict = ("--strict", "--follow-imports=silent", str(tmp_path / "user.py"))
    done = subprocess.run([sys.executable, "-m", "mypy", *cache, *strict], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "user.py").write_text(USER + "wrong: int = model.encode(points)\n")
    done = subprocess.run([sys.executable, "-m", "mypy", *cache, *strict], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Incompatible types in assignment" in done.stdout
