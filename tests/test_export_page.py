"""docs/export.md as a reader takes it: its commands, one after the other, on checkpoints of the debug recipes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.debug_models import small
from utils.config.merge import to_dict
from utils.files import save_checkpoint

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "export.md"


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path):
    for name, part in (("pre-train.pth", "encoder"), ("classifier.pth", "classifier")):
        embedder = small("point-mae", part)
        save_checkpoint(
            tmp_path / name, {"base_model": embedder.model.state_dict(), "config": to_dict(embedder.config)}
        )
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    python ")]
    assert len(lines) >= 8
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert np.load(tmp_path / "features.npy").shape == (48,)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["small.safetensors"] < 0.7 * sizes["encoder.safetensors"]
