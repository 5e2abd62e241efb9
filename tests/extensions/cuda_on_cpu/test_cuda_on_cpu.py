"""The CUDA kernels, compiled as C++ and run on the CPU, against the reference and the compiled CPU library.

What cannot be seen here: code generation, the hardware's scheduling, timing, races between blocks that the order of blocks hides.
"""

import pytest
import torch

from tests.extensions.cuda_on_cpu import cases
from tests.extensions.cuda_on_cpu.build import Emulated, Variant, build
from tests.extensions.cuda_on_cpu.mutants import MUTANTS
from tests.extensions.cuda_on_cpu.rewrite import RewriteError, rewrite
from tests.extensions.cuda_on_cpu.run import missing, run_cases

QUICK = "FPS: ties go to the last position"


def needs(variant: str) -> None:
    if reason := missing(variant):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def emulated() -> Emulated:
    needs("plain")
    return Emulated(build())


@pytest.fixture(scope="module")
def small(emulated) -> dict:
    """The small set, run once; with the kernels that it has run."""
    total = cases.run(cases.small_cases(), emulated)
    return total | {"kernels": emulated.kernels()}


def test_every_path_agrees(small):
    assert small["differences"] == []
    assert small["cases"] > 100 and small["comparisons"] > 200


def test_every_kernel_has_run(small):
    assert len(small["kernels"]) > 80
    # Positions of more than 2^31 values take 64 bits; such a result does not fit here.
    assert [name for name, ran in small["kernels"].items() if not ran and not name.endswith(", long>")] == []


def test_the_order_of_threads_changes_nothing(emulated):
    assert (
        cases.run((case for case in cases.small_cases() if case.family != "emd"), emulated, seed=11)["differences"]
        == []
    )


@pytest.mark.parametrize(
    "setting", [{"occupancy": 912}, {"occupancy": 1}, {"cluster_launch": 9}, {"largest_cluster": 1}, {"major": 8}]
)
def test_without_clusters_the_other_kernel_serves(emulated, setting):
    """A driver may answer with an error where it means none; the error must not come up at a later check."""
    points = cases.cloud("grid", 1, 9000)
    emulated.set()
    expected = emulated.fps(points, 4, True, "pointnet2")
    emulated.set(**setting)
    emulated.control.emulator_forget_kernels()
    assert torch.equal(emulated.fps(points, 4, True, "pointnet2"), expected)
    assert {name.partition("<")[0] for name, ran in emulated.kernels().items() if ran} == {"fps_strided"}
    assert emulated.control.emulator_last_error() == 0


def test_shared_memory_that_a_device_lacks_is_an_error(emulated):
    emulated.set(shared_limit=16 * 1024)
    with pytest.raises(RuntimeError, match="cudaFuncSetAttribute"):
        emulated.fps(cases.cloud("normal", 1, 4000), 4, False, "lowest")


@pytest.mark.parametrize("op", ["gather", "group", "three_interpolate", "gather_backward", "chamfer_backward"])
def test_an_index_out_of_range_is_caught(emulated, op):
    points, idx = torch.zeros(1, 3, 3), torch.full((1, 3, 3), 3)
    arguments = {
        "gather": (points, idx),
        "group": (points, points, idx),
        "three_interpolate": (points, idx, points),
        "gather_backward": (points, idx[..., 0], 3),
        "chamfer_backward": (points[..., 0], points[..., 0], points, points, idx[..., 0], idx[..., 0]),
    }
    emulated.set()
    with pytest.raises((RuntimeError, IndexError), match="device-side assert"):
        getattr(emulated, op)(*arguments[op])


def test_device_code_that_the_emulator_does_not_know_is_refused():
    with pytest.raises(RewriteError, match="__shfl_down_sync"):
        rewrite("x = __shfl_down_sync(kAllLanes, x, 1);", "some.cu", "m2ae_emulated")
    with pytest.raises(RewriteError, match="__shared__"):
        rewrite("__shared__ volatile int x[2], *y;", "some.cu", "m2ae_emulated")


def check_mutant(mutant) -> None:
    """A change must be noticed, and by what it says."""
    outcome = run_cases(mutant.variant(), "--families", ",".join(mutant.families))
    assert not outcome.clean, f"nobody noticed: {mutant.name}"
    signs = {
        "comparison": "values differ",
        "runtime": "emulator: ",
        "thread": "data race",
        "address": "AddressSanitizer",
    }
    assert any(signs[mutant.by] in line for line in outcome.complaints()), outcome.complaints()


def test_a_changed_order_of_ties_is_noticed():
    needs("plain")
    check_mutant(next(mutant for mutant in MUTANTS if mutant.name == QUICK))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.name != QUICK], ids=lambda mutant: mutant.name.replace(" ", "-")
)
def test_a_mutant_is_noticed(mutant):
    needs(mutant.variant().name)
    check_mutant(mutant)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "arguments"),
    [
        (Variant("address", 700), ("--device", "major=7")),
        (Variant("address"), ()),
        (Variant("thread"), ()),
        (Variant("sites"), ()),
    ],
    ids=["address-before-sm80", "address", "thread", "call-sites"],
)
def test_sanitizers_find_nothing(variant, arguments):
    """Bounds, alignment and overflow; races; and that lanes meet at the same call."""
    needs(variant.name)
    outcome = run_cases(variant, *arguments)
    assert outcome.clean, outcome.complaints()
    assert outcome.totals["cases"] > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "families", ["fps", "knn", "three_nn,ball_query", "chamfer", "gather,group,interpolate,rows", "emd"]
)
def test_many_sizes_agree(families):
    needs("plain")
    outcome = run_cases(Variant("plain"), "--large", "--families", families)
    assert outcome.clean, outcome.complaints()
