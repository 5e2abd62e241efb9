"""Earth mover's distance: hand-worked matchings, the reference, the error bound, gradients, degenerate clouds, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from extensions import emd
from extensions.m2ae_ops.reference import emd as reference
from extensions.m2ae_ops.reference.distance import squared_distance
from tests.extensions.test_reference_agreement import KINDS, assert_same, make_cloud

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def line(*positions: float) -> torch.Tensor:
    """Return one cloud (1, N, 3) on the x axis."""
    return torch.tensor([[[p, 0.0, 0.0] for p in positions]])


def is_bijection(assignment: torch.Tensor) -> bool:
    in_order = torch.arange(assignment.shape[1], device=assignment.device).expand_as(assignment)
    return torch.equal(assignment.sort(1).values, in_order)


def best_mean(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean squared distance of the best bijection of two clouds (N, 3), in double precision."""
    cost = squared_distance(a.double()[:, None], b.double()[None]).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


@pytest.mark.parametrize("device", DEVICES)
def test_hand_worked_pair(device):
    # 1 is the nearest to both; in order costs 1 + 4 = 5, crossed costs 9 + 0 = 9.
    cost, assignment = emd(line(0, 1).to(device), line(1, 3).to(device))
    assert assignment.tolist() == [[0, 1]] and cost.tolist() == [[1.0, 4.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_hand_worked_triple(device):
    # On a line the best matching keeps the order: 0 -> 1, 2 -> 3, 7 -> 4.
    cost, assignment = emd(line(7, 0, 2).to(device), line(3, 4, 1).to(device))
    assert assignment.tolist() == [[1, 2, 0]] and cost.tolist() == [[9.0, 1.0, 1.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_bids_that_run_out(device):
    """After 3 bids of 3 people for one object, two of them have no partner."""
    # All ask for index 0; the first of three equal bids wins, and the others take what is nearest.
    a, b = torch.zeros(1, 3, 3, device=device), line(0, 1, 2).to(device)
    assert emd(a, b, iters=1)[1].tolist() == [[0, 0, 0]]
    cost, assignment = emd(a, b, iters=1, bijective=True)
    assert is_bijection(assignment) and sorted(cost[0].tolist()) == [0.0, 1.0, 4.0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 31, 200, 1000])
def test_recovers_a_permutation(device, count):
    generator = torch.Generator().manual_seed(count)
    a = torch.rand(2, count, 3, generator=generator)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(2)])
    b = a.gather(1, order[..., None].expand(-1, -1, 3)) + 1e-4 * torch.randn(2, count, 3, generator=generator)
    cost, assignment = emd(a.to(device), b.to(device), eps=1e-5)
    assert torch.equal(assignment.cpu(), order.argsort(1)) and cost.max() < 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [*KINDS, "collapsed"])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    count=st.sampled_from([1, 2, 3, 7, 16, 33, 64, 130]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.05, 0.005, 1e-4, 1e-12]),
    bids=st.sampled_from([1, 3, 3000, None]),
)
def test_kernels_agree_with_the_reference(device, kind, count, dtype, eps, bids):
    a = make_cloud("random" if kind == "collapsed" else kind, 3, count, count, dtype).to(device)
    b = make_cloud("random" if count % 2 else kind, 3, count, 99, dtype).to(device)
    if kind == "collapsed":
        a = a * 0
    rules = {"eps": eps, "iters": bids or 1, "bijective": bids is None}
    cost, assignment = emd(a, b, **rules)
    assert_same((cost, assignment), reference.emd(a, b, *rules.values()))
    partner = b.gather(1, assignment[..., None].expand(-1, -1, 3))
    assert torch.equal(cost, squared_distance(a, partner).nan_to_num(torch.inf, posinf=torch.inf))
    assert is_bijection(assignment) or bids is not None


@pytest.mark.parametrize("count", [1, 2, 5, 40, 150])
@pytest.mark.parametrize("eps", [0.05, 0.005, 1e-4])
def test_error_bound(count, eps):
    generator = torch.Generator().manual_seed(count)
    uniform = torch.rand(3, count, 3, generator=generator) - 0.5
    sphere = torch.nn.functional.normalize(torch.randn(3, count, 3, generator=generator), dim=-1)
    for a, b in [
        (uniform, sphere),
        (uniform * 1e-3, uniform.flip(0)),
        (sphere, sphere.flip(0) * torch.tensor([1, 1, 0])),
    ]:
        cost, assignment = emd(a, b, eps=eps, bijective=True)
        assert is_bijection(assignment)
        for c in range(3):
            best = best_mean(a[c], b[c])
            assert best - 1e-6 <= cost[c].double().mean() <= best + eps + 1e-6


def test_the_default_finds_a_matching_close_to_the_best():
    """At the default eps the mean is far closer to the best one than the bound says."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 512, 3, generator=generator) - 0.5 for _ in range(2))
    cost, assignment = emd(a, b)
    assert is_bijection(assignment)
    for c in range(2):
        assert cost[c].mean() - best_mean(a[c], b[c]) < 0.002


@pytest.mark.parametrize("device", DEVICES)
def test_a_small_eps_never_stalls(device):
    """Prices of this size swallow an eps of 1e-20 when they are added in float32."""
    a, b = make_cloud("random", 2, 70, 1).to(device) * 1e3, make_cloud("line", 2, 70, 2).to(device) * 1e3
    assert is_bijection(emd(a, b, eps=1e-20, bijective=True)[1])


@pytest.mark.parametrize("device", DEVICES)
def test_infinitely_far_points_get_partners_too(device):
    a, b = make_cloud("random", 1, 50, 1), make_cloud("random", 1, 50, 2)
    a[0, 3], a[0, 7, 1], b[0, 11, 2], b[0, 0, 0] = torch.nan, torch.inf, -torch.inf, 1e20
    cost, assignment = emd(a.to(device), b.to(device), bijective=True)
    assert is_bijection(assignment) and not cost.isnan().any()
    assert sorted(assignment[0, [3, 7]].tolist()) == [0, 11]  # a far point for a far point spares the others
    near = [i for i in range(50) if i not in (3, 7)]
    best = best_mean(a[0, near], b[0, [j for j in range(50) if j not in (0, 11)]])
    assert cost[0, near].mean() < best + 0.005 * 50 / 48 + 1e-5
    nothing = torch.full((1, 9, 3), torch.nan, device=device)
    cost, assignment = emd(nothing, nothing)
    assert is_bijection(assignment) and cost.isinf().all()


@pytest.mark.parametrize("device", DEVICES)
def test_other_dtypes_and_layouts(device):
    wide = torch.randn(6, 3, 200, generator=torch.Generator().manual_seed(0)).to(device).transpose(1, 2)
    a, b = wide[::2, ::2], wide[1::2, 1::2]
    assert not a.is_contiguous()
    assert_same(emd(a, b), emd(a.contiguous(), b.contiguous()))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cost, assignment = emd(a.to(dtype), b.to(dtype))
        assert cost.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_same((cost, assignment), reference.emd(a.to(dtype), b.to(dtype), 0.005, 3000, False))


def test_thread_count_changes_nothing():
    a, b = make_cloud("random", 7, 120, 1), make_cloud("random", 7, 120, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = emd(a, b, eps=1e-3)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert_same(emd(a, b, eps=1e-3), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_follow_the_matching(device):
    a, b = line(0, 1).to(device).requires_grad_(), line(1, 3).to(device).requires_grad_()
    cost, assignment = emd(a, b)
    cost.sum().backward()
    assert a.grad[0, :, 0].tolist() == [-2.0, -4.0] and b.grad[0, :, 0].tolist() == [2.0, 4.0]
    assert not assignment.requires_grad
    generator = torch.Generator().manual_seed(3)
    a, b = (
        torch.randn(2, 6, 3, dtype=torch.float64, generator=generator).to(device).requires_grad_() for _ in range(2)
    )
    for iters in (1, 3000):  # with shared partners and without
        assert gradcheck(lambda x, y, rounds=iters: emd(x, y, iters=rounds)[0], (a, b))
        assert gradgradcheck(lambda x, y, rounds=iters: emd(x, y, iters=rounds)[0], (a, b))
    half = torch.randn(1, 6, 3, device=device).bfloat16().requires_grad_()
    emd(half, half.detach() + 1)[0].sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_citizen_of_pytorch(device):
    a, b = (make_cloud("random", 2, 20, seed).to(device).requires_grad_() for seed in (1, 2))
    opcheck(torch.ops.m2ae.emd, (a, b, 0.005, 3000, False))

    def loss(x, y):
        return emd(x, y, bijective=True)[0].mean()

    loss(a, b).backward()
    eager, a.grad = a.grad, None
    torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b).backward()
    torch.testing.assert_close(a.grad, eager)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: emd(a, a[:, :3]), "emd: a has 4 points but b has 3, a matching needs as many; repeat or sample"),
        (lambda a: emd(a, a.expand(2, -1, -1)), "emd: a has batch size 1 but b has 2"),
        (lambda a: emd(a, a.double()), "emd: a is torch.float32 but b is torch.float64; convert one"),
        (lambda a: emd(a[:, :0], a[:, :0]), "emd: a has zero points"),
        (lambda a: emd(a[..., :2], a), r"emd: a must have shape \(B, N, 3\), got \(1, 4, 2\)"),
        (
            lambda a: emd(*[a[:, :1].expand(1, 2**30 + 1, 3)] * 2),
            "emd: a has 1073741825 points, at most 1073741824 can",
        ),
        (lambda a: emd(a, a, eps=0.0), r"emd: eps=0.0 must be above 0 and at most 1e\+30; 0.005 suits"),
        (lambda a: emd(a, a, eps=float("nan")), "emd: eps=nan must be above 0"),
        (lambda a: emd(a, a, iters=0), "emd: iters=0 must be at least 1; 3000 is enough"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 4, 3))
