"""What the served modules give, by hand and against the real ones."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import extensions
from extensions import fps, knn
from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferFunction
from extensions.m2ae_ops.compat import ALIASES
from extensions.m2ae_ops.compat.advice import PAGE
from extensions.m2ae_ops.compat.hook import AliasFinder
from extensions.m2ae_ops.compat.served import knn_cuda, pointnet2_ext, pointnet2_modules, pointnet2_utils
from extensions.m2ae_ops.compat.shims import SHIMS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def test_every_name_has_a_module():
    for module in set(ALIASES.values()):
        importlib.import_module(f"extensions.m2ae_ops.compat.served.{module}")
    assert AliasFinder(ALIASES).find_spec("numpy") is None


def test_the_page_and_the_readme_name_what_is_served():
    root = Path(__file__).parents[3]
    for page in (root / PAGE, root / "extensions" / "m2ae_ops" / "README.md"):
        words = set(re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8")))
        assert {name.split(".")[0] for name in ALIASES} - {"extensions"} <= words | {
            word.split(".")[0] for word in words
        }
    assert set(SHIMS) <= words | set(re.findall(r"`([^`]+)`", (root / PAGE).read_text(encoding="utf-8")))


def test_the_published_paths_lead_to_the_same_classes_in_this_repository():
    assert ChamferFunction is importlib.import_module("extensions.m2ae_ops.compat.served.chamfer_dist").ChamferFunction


def test_extensions_emd_is_op_and_module():
    op = extensions.emd
    module = importlib.import_module("extensions.emd")
    a, b = torch.rand(1, 4, 3), torch.rand(1, 4, 3)
    assert module is extensions.emd and hasattr(module, "emdModule")
    assert all(torch.equal(one, other) for one, other in zip(op(a, b), module(a, b), strict=True))


# By hand: points on a line; index 1 lies at the origin and is never sampled.
LINE = [[1.0, 0, 0], [0, 0, 0], [5, 0, 0], [2, 0, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_pointnet2_by_hand(device):
    xyz = torch.tensor([LINE], device=device)
    assert pointnet2_utils.furthest_point_sample(xyz, 3).tolist() == [[0, 2, 3]]
    dist, idx = pointnet2_utils.three_nn(xyz[:, :1], xyz)
    assert dist.tolist() == [[[0, 1, 1]]] and idx.tolist() == [[[0, 1, 3]]]
    features = torch.tensor([[[10.0, 20, 30, 40]]], device=device, requires_grad=True)
    weight = torch.tensor([[[0.5, 0.25, 0.25]]], device=device)
    out = pointnet2_utils.three_interpolate(features, idx, weight)
    assert out.tolist() == [[[20.0]]]
    out.backward(torch.full_like(out, 4))
    assert features.grad.tolist() == [[[2, 1, 0, 1]]]
    assert pointnet2_utils.ball_query(1.5, 3, xyz, xyz[:, 1:2]).tolist() == [[[0, 1, 0]]]
    assert pointnet2_ext.group_points_grad(torch.ones(1, 2, 1, 3, device=device), idx, 4).tolist() == [
        [[1, 1, 0, 1]] * 2
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_query_and_group_by_hand(device):
    xyz = torch.tensor([LINE], device=device)
    features = torch.tensor([[[10.0, 20, 30, 40]]], device=device)
    grouped = pointnet2_utils.QueryAndGroup(1.5, 2)(xyz, xyz[:, 3:], features)
    assert grouped.tolist() == [[[[-1, 0]], [[0, 0]], [[0, 0]], [[10, 40]]]]
    assert pointnet2_utils.QueryAndGroup(1.5, 2, use_xyz=False)(xyz, xyz[:, 3:], features).tolist() == [[[[10, 40]]]]
    everything = pointnet2_utils.GroupAll()(xyz, None, features)
    assert everything.tolist() == [[[[1, 0, 5, 2]], [[0] * 4], [[0] * 4], [[10, 20, 30, 40]]]]
    with pytest.raises(ValueError, match="QueryAndGroup: without features there is nothing to group"):
        pointnet2_utils.QueryAndGroup(1.5, 2, use_xyz=False)(xyz, xyz)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_the_autograd_classes(device):
    features = torch.rand(2, 3, 6, dtype=torch.float64, device=device, requires_grad=True)
    idx = torch.tensor([[0, 5, 5], [1, 1, 2]], dtype=torch.int32, device=device)
    groups = idx[:, :, None].expand(2, 3, 4)
    weight = torch.rand(2, 3, 3, dtype=torch.float64, device=device)
    check = torch.autograd.gradcheck
    assert check(lambda x: pointnet2_utils.gather_operation(x, idx), (features,))
    assert check(lambda x: pointnet2_utils.grouping_operation(x, groups), (features,))
    assert check(lambda x: pointnet2_utils.three_interpolate(x, idx[:, :, None].expand(2, 3, 3), weight), (features,))


def test_modules_carry_the_published_parameter_names():
    module = pointnet2_modules.PointnetSAModule(mlp=[4, 8, 16], npoint=5, radius=0.5, nsample=4)
    names = [name for name, _ in module.named_parameters()]
    assert names[:3] == ["mlps.0.0.weight", "mlps.0.1.weight", "mlps.0.1.bias"]
    assert module.mlps[0][0].weight.shape == (8, 7, 1, 1)  # three coordinates more
    propagation = pointnet2_modules.PointnetFPModule(mlp=[6, 8], bn=False)
    assert [name for name, _ in propagation.named_parameters()] == ["mlp.0.weight", "mlp.0.bias"]
    everywhere = propagation(torch.rand(2, 7, 3), None, torch.rand(2, 2, 7), torch.rand(2, 4, 1))
    assert everywhere.shape == (2, 8, 7)
    with pytest.raises(ValueError, match="2 radii, 1 nsamples and 1 mlps; each scale needs one of each"):
        pointnet2_modules.PointnetSAModuleMSG(npoint=4, radii=[1, 2], nsamples=[3], mlps=[[1, 2]])


@pytest.mark.parametrize("coordinates", [1, 2, 3, 8])
@pytest.mark.parametrize("device", DEVICES)
def test_knn_takes_any_number_of_coordinates(device, coordinates):
    generator = torch.Generator().manual_seed(coordinates)
    ref = torch.rand(2, 40, coordinates, generator=generator).to(device)
    query = torch.rand(2, 300, coordinates, generator=generator).to(device)
    dist, idx = knn_cuda.KNN(5, transpose_mode=True)(ref, query)
    exact = (query[:, :, None].double() - ref[:, None].double()).square().sum(-1).sqrt()
    expected = exact.topk(5, largest=False)
    torch.testing.assert_close(dist.double(), expected.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(idx, expected.indices)


def test_knn_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"KNN: ref \(1, 3, 9\) and query \(1, 4, 3\) must agree"):
        knn_cuda.KNN(2, transpose_mode=True)(torch.rand(1, 3, 9), torch.rand(1, 4, 3))
    with pytest.raises(ValueError, match="k=10 exceeds the 9"):
        knn_cuda.KNN(10)(torch.rand(1, 3, 9), torch.rand(1, 3, 4))
    with pytest.raises(ValueError, match="k=10 exceeds the 9"):
        knn_cuda.KNN(10)(torch.rand(1, 5, 9), torch.rand(1, 5, 4))


@pytest.mark.parametrize("device", DEVICES)
def test_coinciding_points_have_a_gradient(device):
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], device=device, requires_grad=True)
    b = torch.tensor([[[0.0, 0, 0], [1, 2, 0]]], device=device)
    loss = ChamferDistanceL1()(a, b)
    # a -> b: 0 and 1 (to the origin); b -> a: 0 and 2.
    assert loss.item() == pytest.approx((0.5 + 1.0) / 2)
    loss.backward()
    assert a.grad.tolist() == [[[0, 0, 0], [0.25, -0.25, 0]]]


def test_ignore_zeros_leaves_out_the_origin_only():
    a = torch.tensor([[[0.0, 0, 0], [1, -1, 0]]])
    b = torch.tensor([[[1.0, 0, 0]]])
    assert ChamferDistanceL2(ignore_zeros=True)(a, b).item() == 2  # from (1, -1, 0) alone, both ways
    assert ChamferDistanceL2()(a, b).item() == 2
    assert ChamferDistanceL2(ignore_zeros=True)(a, b * 3).item() == 10
    assert ChamferDistanceL2()(a, b * 3).item() == (9 + 5) / 2 + 5
    both = torch.cat([a, a])  # a batch of two is taken as it is
    assert ChamferDistanceL2(ignore_zeros=True)(both, torch.cat([b, b]) * 3).item() == 12


def restore(monkeypatch) -> None:
    """Let `import pointnet2_ops` mean what is installed."""
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, AliasFinder)])


@pytest.mark.gpu
def test_against_the_real_pointnet2_ops(monkeypatch):
    restore(monkeypatch)
    real = pytest.importorskip("pointnet2_ops.pointnet2_utils")
    xyz, new = torch.rand(4, 1000, 3, device="cuda") - 0.5, torch.rand(4, 100, 3, device="cuda") - 0.5
    features = torch.rand(4, 6, 1000, device="cuda")
    idx = real.furthest_point_sample(xyz, 256)
    assert torch.equal(pointnet2_utils.furthest_point_sample(xyz, 256), idx)
    assert torch.equal(pointnet2_utils.gather_operation(features, idx), real.gather_operation(features, idx))
    ball = real.ball_query(0.2, 16, xyz, new)
    assert torch.equal(pointnet2_utils.grouping_operation(features, ball), real.grouping_operation(features, ball))
    torch.testing.assert_close(pointnet2_utils.three_nn(new, xyz)[0], real.three_nn(new, xyz)[0])
    # The real kernels contract multiply and add, so a point at the very edge of a ball may be judged otherwise.
    assert (pointnet2_utils.ball_query(0.2, 16, xyz, new) == ball).float().mean() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("transpose_mode", [True, False])
def test_against_the_real_knn_cuda(monkeypatch, transpose_mode):
    restore(monkeypatch)
    real = pytest.importorskip("knn_cuda")
    shape = (2, 500, 3) if transpose_mode else (2, 3, 500)
    ref, query = torch.rand(shape, device="cuda"), torch.rand(shape, device="cuda")
    dist, idx = knn_cuda.KNN(8, transpose_mode)(ref, query)
    real_dist, real_idx = real.KNN(8, transpose_mode)(ref, query)
    torch.testing.assert_close(dist, real_dist)
    assert (idx == real_idx).float().mean() > 0.999


def test_the_layers_give_what_the_ops_give():
    points = torch.rand(2, 50, 3)
    assert torch.equal(pointnet2_utils.furthest_point_sample(points, 9), fps(points, 9, skip_near_origin=True).int())
    sqdist, idx = knn(points, points, 4)
    near, order = knn_cuda.KNN(4, transpose_mode=True)(points, points)
    assert torch.equal(near, sqdist.sqrt()) and torch.equal(order, idx)
