"""Small inputs that people of this trade met in other tools, made anew, by kind (K1 to K18)."""

import numpy as np
import pytest
import torch

from extensions import fps


@pytest.fixture(scope="session")
def compiled_ops():
    """Load the compiled ops before a test gets a cache folder of its own, where they would be compiled anew."""
    fps(torch.zeros(1, 1, 3), 1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch, compiled_ops):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cloud():
    """Return 400 points of an object of about a metre, (400, 3) float64."""
    return np.random.default_rng(0).normal(size=(400, 3)) * [0.3, 0.5, 0.2]
