"""What tests of `tools.look` share."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def without_umap():
    """Hide the optional package, which compiles for most of a minute when it is first used; a slow test takes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        yield
