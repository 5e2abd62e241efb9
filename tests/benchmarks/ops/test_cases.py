"""Every row on tiny shapes: all peers that are installed give our answer, and what does not is told apart."""

import pytest
import torch

from benchmarks.ops import agree, torch_forms
from benchmarks.ops.agree import Disagreement
from benchmarks.ops.case import OURS, Case, Side, Target, compare_targets, run_case, version
from benchmarks.ops.cases import TINY_SIZES, build_cases
from benchmarks.ops.clouds import Clouds, clear_origin
from benchmarks.ops.cpu import row_keys
from benchmarks.ops.timing import wall_clock


def run(case, device="cpu"):
    return run_case(case, wall_clock, device=device, rounds=1, budget_s=0, compiled=False)


def toy(*peers, targets=()):
    """A row that doubles a number."""
    ours = Side("ours", lambda x: (2 * x,))
    return Case("toy", "doubling", lambda: (torch.arange(3.0) + 1,), ours, peers, agree.same_values, targets)


def tiny(key, device="cpu", kind="uniform"):
    return next(case for case in build_cases(TINY_SIZES, Clouds(kind, device=device)) if case.key == key)


@pytest.mark.parametrize("key", row_keys())
def test_every_installed_peer_agrees(key):
    row = run(tiny(key))
    assert len(row["ours_ms"]) == 1 and row["ours_median_ms"] > 0
    assert [peer for peer in row["peers"] if peer["status"] == "timed"] or key.startswith("fps"), (
        "nothing to compare with"
    )
    for peer in row["peers"]:
        if version(peer["package"]) is None:
            assert peer["status"] == "not installed" and "ms" not in peer
        elif peer["status"] != "left out by --quick":
            assert peer["status"] == "timed" and peer["agreement"], peer


@pytest.mark.gpu
@pytest.mark.parametrize("key", row_keys())
def test_every_installed_peer_agrees_on_a_gpu(key):
    row = run(tiny(key, device="cuda"), device="cuda")
    assert {peer["status"] for peer in row["peers"]} <= {"timed", "not installed", "left out by --quick"}


@pytest.mark.slow
@pytest.mark.parametrize("key", row_keys())
def test_peers_agree_on_surfaces_as_well(key):
    row = run(tiny(key, kind="surface"))
    assert not [peer for peer in row["peers"] if peer["status"] in ("failed", "disagrees")]


def test_a_wrong_missing_or_broken_peer_is_told_apart_and_not_timed():
    def broken(x):
        raise RuntimeError("no such device")

    row = run(
        toy(
            Side("right", lambda x: (x + x,)),
            Side("wrong", lambda x: (3 * x,)),
            Side("broken", broken),
            Side("absent", lambda x: x, package="torch_cluster" if version("torch_cluster") is None else "pytorch3d"),
            Side("elsewhere", lambda x: x, device="cuda"),
        )
    )
    found = {peer["name"]: peer for peer in row["peers"]}
    assert {name: peer["status"] for name, peer in found.items()} == {
        "right": "timed",
        "wrong": "disagrees",
        "broken": "failed",
        "absent": "not installed",
    }
    assert found["broken"]["error"] == "RuntimeError: no such device"
    assert [name for name, peer in found.items() if "ms" in peer] == ["right"]


def test_the_quickest_option_of_a_peer_is_taken():
    def peer(x, detours):
        for _ in range(detours):
            torch.rand(1000, 100).sort()
        return (2 * x,)

    options = (("slow", {"detours": 5}), ("quick", {"detours": 0}))
    row = run(toy(Side("peer", peer, options=options)))
    assert row["peers"][0]["name"] == "peer (quick)" and row["peers"][0]["status"] == "timed"


def test_targets_by_hand():
    targets = (
        Target("a", "a", must=2, aim=4),
        Target("b", "b", must=2, aim=4),
        Target("c", "c", must=2, aim=4),
        Target("none", "z", must=2, aim=4),
        Target("time", "", must=1500, aim=900, unit="us"),
        Target("gpu", "a", must=2, aim=4, device="cuda"),
    )
    medians = {OURS: 1.0, "a: one": 9.0, "a: two": 3.0, "b": 4.0, "c": 1.5}
    found = compare_targets(toy(targets=targets), medians, "cpu")
    assert [(item["peer"], item["value"], item["met"]) for item in found] == [
        ("a: two", 3.0, "must"),
        ("b", 4.0, "aim"),
        ("c", 1.5, "no"),
        (None, None, "not measured"),
        (None, 1000.0, "must"),
    ]


def test_checks_refuse_what_differs():
    points = Clouds("uniform").points(2, 40)
    idx = torch.stack([torch.arange(8)] * 2)
    with pytest.raises(Disagreement, match="samples repeat"):
        agree.same_samples((points,), (idx,), (torch.zeros_like(idx),))
    sqdist = torch.rand(2, 4, 3)
    with pytest.raises(Disagreement, match="squared distances"):
        agree.same_neighbors((), (sqdist, idx[:, :4]), (sqdist + 0.1, idx[:, :4]))
    with pytest.raises(Disagreement, match="of indices"):
        agree.same_indices((), (idx,), (idx + 1,))
    with pytest.raises(Disagreement, match="relative difference"):
        agree.same_values((), (sqdist,), (1.1 * sqdist,))
    with pytest.raises(Disagreement, match="relative difference of nan"):
        agree.same_values((), (sqdist,), (sqdist * torch.nan,))
    with pytest.raises(Disagreement, match="coordinates"):
        agree.same_groups((), (sqdist,), (sqdist + 1,))


def test_a_matching_is_judged_by_its_promise_and_by_its_share_of_the_optimum():
    order = torch.stack([torch.randperm(4), torch.arange(4)])
    best = torch.full((2, 4), 0.02)
    above = (best + 0.001, order)  # 5 % above the optimum
    assert agree.near_optimum(0.002)((), above, (best, None)).startswith("a bijection, mean cost 5 % above the optimum")
    with pytest.raises(Disagreement, match="mean cost 5 %"):
        agree.near_optimum(0.002, share=0.01)((), above, (best, None))
    with pytest.raises(Disagreement, match=r"1\.0e-03 at most in one cloud"):
        agree.near_optimum(0.0005)((), above, (best, None))
    with pytest.raises(Disagreement, match="above the optimum"):  # cheaper than the optimum cannot be a matching
        agree.near_optimum(0.002)((), (best - 0.001, order), (best, None))
    with pytest.raises(Disagreement, match="not a bijection"):
        agree.near_optimum(0.002)((), (best, torch.zeros(2, 4, dtype=torch.int64)), (best, None))


def test_compiled_forms_fit_the_cache_of_the_compiler():
    assert len(torch_forms.compiled_losses()) <= torch._dynamo.config.recompile_limit


def test_clouds_are_fresh_repeatable_and_clear_of_the_origin():
    clouds = Clouds("uniform", seed=3)
    first, second = clouds.points(2, 50), clouds.points(2, 50)
    assert not torch.equal(first, second)
    assert torch.equal(first, Clouds("uniform", seed=3).points(2, 50))
    moved = clear_origin(torch.cat([first, torch.zeros(2, 1, 3)], 1))
    assert (moved.square().sum(-1) > 1e-3).all() and torch.equal(moved[0, -1], torch.full((3,), 0.1))
    with pytest.raises(ValueError, match="'cubes' is unknown; choose from uniform, surface"):
        Clouds("cubes")
