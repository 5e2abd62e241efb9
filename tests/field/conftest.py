"""Small inputs that people of this trade met in other tools, made anew, by kind (K1 to K18)."""

import numpy as np
import pytest

import datasets.cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    assert datasets.cache.cache_folder() == tmp_path / "cache"


@pytest.fixture
def cloud():
    """Return 400 points of an object of about a metre, (400, 3) float64."""
    return np.random.default_rng(0).normal(size=(400, 3)) * [0.3, 0.5, 0.2]
