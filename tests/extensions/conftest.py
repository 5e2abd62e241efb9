"""What tests of the compiled kernels share."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from extensions.m2ae_ops import backend


@pytest.fixture(scope="session", params=["avx2", "base"])
def lesser_processor(request):
    """Give a function that calls another one in a process with the kernels of a lesser processor; one process serves all tests."""
    if not backend().startswith("compiled"):
        pytest.skip(f"no compiled library: {backend()}")
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M2AE_CPU", request.param)  # the process has it from its start, which the first call waits for
        patch.setenv("OMP_NUM_THREADS", "1")
        assert request.param in pool.submit(backend).result() or "base" in pool.submit(backend).result()
    with pool:
        yield lambda function, *given: pool.submit(function, *given).result()
