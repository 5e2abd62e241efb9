"""The kernels of the mini-PointNet against their plain forms: in Triton's interpreter without a GPU, compiled with one."""

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from extensions.m2ae_ops.private.fused import check, compose, launch
from extensions.m2ae_ops.private.fused.check import fused_ready
from extensions.m2ae_ops.private.mini_pointnet import mini_pointnet
from extensions.m2ae_ops.reference import embedding as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POINTS = pytest.mark.parametrize("points", [True, False], ids=["points", "tokens"])
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6} if DEVICE == "cpu" else check.BOUNDS
TINY = (16, 24, 20, 18)


def agree(sizes, *, points, dtype=torch.float32, bound=None):
    bound = bound or BOUNDS[dtype]
    found = check.differences(launch, reference, sizes, points=points, dtype=dtype, device=DEVICE)
    assert {name: error for name, error in found.items() if not error <= bound} == {}
    return found


@POINTS
@pytest.mark.parametrize("k", [1, 7, 16])
def test_steps_agree(points, k):
    """Groups that fill no tile, members that are no power of two, widths that fill no block."""
    found = agree((5, k, *TINY), points=points)
    assert len(found) == (14 if points else 17)


@POINTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_steps_agree_in_half_precision(points, dtype):
    agree((5, 8, *TINY), points=points, dtype=dtype)


def test_programs_of_several_tiles_agree():
    """Sums run over tiles inside a program, then over programs; the last program has fewer tiles, the last tile fewer groups."""
    with launch.programs(2):
        agree((27, 8, *TINY), points=True)
        agree((27, 8, *TINY), points=False)


@pytest.mark.slow
@POINTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(70, 16, 128, 256, 512, 96), (9, 32, 128, 256, 512, 384), (33, 8, 96, 96, 192, 192)])
def test_steps_agree_at_the_widths_of_recipes(points, dtype, sizes):
    """Among so many numbers, a few of bfloat16 fall on the other side of a rounding."""
    bound = None if DEVICE == "cuda" or dtype == torch.float32 else 1e-4
    agree(sizes, points=points, dtype=dtype, bound=bound)


def operands(points, *, groups, k, device=DEVICE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    A, W, C, D = TINY

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    channels = 3 if points else 10
    weights = [draw(*shape) for shape in ((A, channels), (W, A), (C, A), (C, W), (D, C), (2, A), (2, C))]
    return draw(groups * k, channels), weights


def whole(steps, rows, weights, k, dtype=torch.float32):
    """Run forward and backward on one kind of steps."""
    out = compose.forward(steps, rows, *weights, None, None, k, 1e-5, 1e-5, dtype)
    flow = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(4)).to(rows.device)
    return [*out, *compose.backward(steps, flow, rows, *weights, *out[1:], k, 1e-5, 1e-5)]


@POINTS
def test_the_whole_agrees(points):
    rows, weights = operands(points, groups=11, k=7)
    for ours, theirs in zip(whole(launch, rows, weights, 7), whole(reference, rows, weights, 7), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def equal_rows_stay_equal(monkeypatch):
    """Let the interpreter multiply equal rows to equal rows, as a GPU does: NumPy's BLAS may round by the place of a row."""
    if DEVICE == "cpu":
        multiply = lambda a, b, dtype: np.einsum("...ij,...jk->...ik", a, b, dtype=dtype)  # noqa: E731
        monkeypatch.setattr(np, "matmul", multiply)


@POINTS
@pytest.mark.usefixtures("equal_rows_stay_equal")
def test_the_first_of_equal_members_wins(points):
    """All members of a group alike: every winner is member 0, in both maxima, and gradients are those of the plain form."""
    rows, weights = operands(points, groups=6, k=4)
    rows = rows[::4].repeat_interleave(4, 0).contiguous()
    ours, theirs = whole(launch, rows, weights, 4), whole(reference, rows, weights, 4)
    assert not ours[6].any() and not ours[8].any()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("equal_rows_stay_equal")
def test_points_that_are_all_equal():
    """Variance zero: norms return their biases, and nothing is NaN."""
    rows, weights = operands(True, groups=6, k=4)
    rows = torch.full_like(rows, 0.25)
    ours, theirs = whole(launch, rows, weights, 4), whole(reference, rows, weights, 4)
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(one.isfinite().all() for one in ours)


def test_not_a_number_reaches_the_tokens():
    """In evaluation, a broken point breaks its own group alone; a comparison or a ReLU must not hide it."""
    rows, weights = operands(True, groups=6, k=4)
    rows[9, 1] = float("nan")
    stats = [torch.stack([torch.zeros(n), torch.ones(n)]).to(DEVICE) for n in (TINY[0], TINY[2])]
    ours, theirs = (
        compose.forward(steps, rows, *weights, *stats, 4, 1e-5, 1e-5, torch.float32)[0] for steps in (launch, reference)
    )
    assert ours.isnan().any(1).tolist() == theirs.isnan().any(1).tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_statistics_do_not_cancel():
    """A column far from zero keeps its variance."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).mul_(0.01).add_(100.0).to(DEVICE)
    for ours, exact in zip(launch.column_moments(x), reference.column_moments(x), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=0)


def test_groups_that_fill_no_tile_are_refused():
    rows, weights = operands(True, groups=1, k=129)
    with pytest.raises(ValueError, match="groups of k=129; a tile holds groups of 1 to 128 members"):
        whole(launch, rows, weights, 129)


def kind(**changes):
    return {"device": torch.device("cuda"), "dtype": torch.bfloat16, "widths": TINY, "points": True, "k": 8} | changes


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Let the check run here: CPU tensors in place of CUDA ones."""
    run = check.differences
    monkeypatch.setattr(check, "differences", lambda *args, **options: run(*args, **options | {"device": DEVICE}))
    monkeypatch.setattr(check.torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(check.torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(check.torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(check.torch.cuda, "synchronize", lambda device: None)
    monkeypatch.delenv("M2AE_FUSED", raising=False)
    monkeypatch.delenv("M2AE_OPS", raising=False)
    decided = check._reason_against
    decided.cache_clear()
    yield monkeypatch
    decided.cache_clear()


def test_the_setting_decides(as_if_on_a_gpu):
    as_if_on_a_gpu.setattr(check, "_reason_against", lambda *key: None)
    assert fused_ready(**kind()) and not fused_ready(**kind(dtype=torch.float32))
    assert not fused_ready(**kind(device=torch.device("cpu"))) and not fused_ready(**kind(k=129))
    assert not fused_ready(**kind(dtype=torch.float64))
    as_if_on_a_gpu.setenv("M2AE_FUSED", "on")
    assert fused_ready(**kind(dtype=torch.float32))
    as_if_on_a_gpu.setenv("M2AE_OPS", "reference")
    assert not fused_ready(**kind())
    as_if_on_a_gpu.delenv("M2AE_OPS")
    as_if_on_a_gpu.setenv("M2AE_FUSED", "off")
    assert not fused_ready(**kind())
    as_if_on_a_gpu.setenv("M2AE_FUSED", "yes")
    with pytest.raises(ValueError, match="M2AE_FUSED=yes is not one of auto, on, off"):
        fused_ready(**kind())


def test_kernels_that_agree_are_used(as_if_on_a_gpu, caplog):
    assert fused_ready(**kind()) and not caplog.records


@pytest.mark.parametrize("broken", ["differs", "raises"])
def test_kernels_that_do_not_work_are_one_warning(as_if_on_a_gpu, caplog, broken):
    def join_backward(*args):
        if broken == "raises":
            raise RuntimeError("out of resource: shared memory")
        to_weight, to_groups = reference.join_backward(*args)
        return to_weight, to_groups * 1.1

    as_if_on_a_gpu.setattr(launch, "join_backward", join_backward)
    with caplog.at_level(logging.WARNING, "m2ae_ops"):
        assert not fused_ready(**kind()) and not fused_ready(**kind())
    (record,) = caplog.records
    expected = (
        "RuntimeError: out of resource"
        if broken == "raises"
        else r"differ from the plain form in back to the joined[1] by"
    )
    assert "using the plain mini-PointNet on cuda" in record.getMessage() and expected in record.getMessage()


def test_devices_with_too_few_registers_take_the_plain_form(as_if_on_a_gpu):
    as_if_on_a_gpu.setattr(check.torch.cuda, "get_device_capability", lambda device: (7, 5))
    as_if_on_a_gpu.setattr(check, "_reason_against", lambda *key: pytest.fail("nothing is to be compiled"))
    assert not fused_ready(**kind()) and not fused_ready(**kind(dtype=torch.float16))


def test_float32_that_the_compiler_would_round_takes_the_plain_form(as_if_on_a_gpu):
    as_if_on_a_gpu.setenv("M2AE_FUSED", "on")
    as_if_on_a_gpu.setattr(check, "_reason_against", lambda *key: None)
    for capability, exact in {(9, 0): True, (10, 0): False, (10, 3): False, (12, 0): True}.items():
        as_if_on_a_gpu.setattr(check.torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fused_ready(**kind(dtype=torch.float32, k=65)) == exact
        assert fused_ready(**kind(dtype=torch.float32, k=64)) and fused_ready(**kind(k=128))


@pytest.mark.parametrize("k", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 16, 128))])
def test_what_is_compared_has_programs_of_several_tiles(as_if_on_a_gpu, k):
    """As in training: a loop over one tile alone would say nothing of the others."""
    tiles = []
    plan = launch.tiles_of_program
    as_if_on_a_gpu.setattr(launch, "tiles_of_program", lambda *args: tiles.append(plan(*args)) or tiles[-1])
    assert fused_ready(**kind(k=k))
    assert len(tiles) >= 6 and min(tiles) >= 2
    assert launch.PROGRAMS.get() == 1024


def test_a_device_that_a_kernel_has_broken_is_an_error(as_if_on_a_gpu):
    """An illegal access stays: the plain form would fail as well, and every later call with it."""

    def broken(*args):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    as_if_on_a_gpu.setattr(launch, "join_backward", broken)
    as_if_on_a_gpu.setattr(check.torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match=r"left cuda unusable for this process .*start again with M2AE_FUSED=off"):
        fused_ready(**kind())


def test_nothing_is_compared_while_a_graph_is_captured(as_if_on_a_gpu, caplog):
    as_if_on_a_gpu.setattr(check.torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not fused_ready(**kind()) and "before the capture of a graph" in caplog.text
    as_if_on_a_gpu.setattr(check.torch.cuda, "is_current_stream_capturing", lambda: False)
    assert fused_ready(**kind())


def test_the_compiler_sees_a_constant(as_if_on_a_gpu):
    as_if_on_a_gpu.setattr(check, "_reason_against", lambda *key: None)

    def double_if_ready(x):
        return 2 * x if fused_ready(torch.device("cuda"), torch.bfloat16, TINY, True, 8) else x

    compiled = torch.compile(double_if_ready, fullgraph=True, backend="eager")
    assert compiled(torch.ones(1)).item() == 2


COMPILED = [  # each kind compiles for seconds; the first four are those of the embedding's own test
    (torch.bfloat16, True, 16),
    (torch.bfloat16, False, 16),
    (torch.float32, True, 16),
    (torch.float32, False, 16),
    pytest.param(torch.bfloat16, True, 7, marks=pytest.mark.slow),
    pytest.param(torch.float16, True, 32, marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, True, 1, marks=pytest.mark.slow),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "points", "k"), COMPILED, ids=str)
def test_compiled_kernels_agree(dtype, points, k):
    agree((1031, k, 128, 256, 512, 96), points=points, dtype=dtype)


@pytest.mark.gpu
@POINTS
def test_repeated_runs_give_the_same_bits_on_a_gpu(points):
    rows, weights = operands(points, groups=3000, k=16)
    first, again = whole(launch, rows, weights, 16, torch.bfloat16), whole(launch, rows, weights, 16, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_a_graph_replays_with_new_rows():
    rows, weights = operands(True, groups=300, k=16)

    def step():
        leaves = [w.detach().requires_grad_() for w in weights]
        tokens, *_ = mini_pointnet(rows, weights=leaves[:5], affines=tuple(leaves[5:]), k=16, dtype=torch.bfloat16)
        return torch.autograd.grad(tokens.float().square().sum(), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    rows.copy_(rows.flip(0))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
