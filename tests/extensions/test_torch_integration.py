"""The ops as citizens of PyTorch: opcheck, gradcheck, torch.compile, meta tensors, two copies of the package."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import extensions
from extensions import chamfer_distance, chamfer_loss, fps, gather, group, knn, three_interpolate, three_nn

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def leaf(*shape: int, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    """Return a random double tensor that requires a gradient."""
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.to(device).requires_grad_()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("root", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_opcheck_of_losses(device, root):
    ops = torch.ops.m2ae
    points, centers = torch.randn(2, 20, 3, device=device), torch.randn(2, 6, 3, device=device)
    a, b = points.clone().requires_grad_(), centers.clone().requires_grad_()
    opcheck(ops.chamfer_loss, (a, b, root, True, True))
    opcheck(ops.chamfer_loss, (a, centers, root, True, False))
    opcheck(ops.chamfer_chosen, (a, b, root))
    opcheck(ops.chamfer_chosen, (a, centers, root))
    losses, *chosen = ops.chamfer_chosen(points, centers, root)
    opcheck(ops.chamfer_chosen_backward, (losses, points, centers, *chosen, root, True, False))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    ops = torch.ops.m2ae
    points, centers = torch.randn(2, 20, 3, device=device), torch.randn(2, 6, 3, device=device)
    idx, grad = torch.randint(0, 20, (2, 6, 3), device=device), torch.randn(2, 6, 3, 3, device=device)
    d1, d2, i1, i2 = ops.chamfer(points, centers)
    a, b = points.clone().requires_grad_(), centers.clone().requires_grad_()
    opcheck(ops.fps, (points, 5, True, "pointnet2"))
    opcheck(ops.knn, (b, a, 4))
    opcheck(ops.three_nn, (b, a))
    opcheck(ops.ball_query, (centers, points, 0.7, 4))
    opcheck(ops.gather, (a, idx))
    opcheck(ops.gather_backward, (grad.clone().requires_grad_(), idx, 20))
    opcheck(ops.group, (a, b, idx))
    opcheck(ops.three_interpolate, (a, idx, torch.rand(2, 6, 3, device=device).requires_grad_()))
    opcheck(ops.three_interpolate_backward, (grad[:, :, 0], points, idx, grad[:, :, 1]))
    opcheck(ops.chamfer, (a, b))
    opcheck(ops.chamfer_backward, (d1, d2, points, centers, i1, i2))
    opcheck(ops.chamfer_backward, (d1.clone().requires_grad_(), d2, a, b, i1, i2))
    _, to_a, to_b = ops.chamfer_loss(points, centers, False, True, False)
    opcheck(ops.chamfer_loss_backward, (d1[:, 0], to_a, to_b))


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    a, b = leaf(2, 9, 3, device=device), leaf(2, 5, 3, device=device, seed=1)
    idx = torch.randint(0, 9, (2, 5, 3), generator=torch.Generator().manual_seed(2)).to(device)
    weight = leaf(2, 5, 3, device=device, seed=3)
    assert gradcheck(lambda x, y: chamfer_distance(x, y)[:2], (a, b))
    assert gradcheck(chamfer_loss, (a, b))
    assert gradcheck(lambda x, y: chamfer_loss(x, y, "cdl1"), (a, b))
    assert gradcheck(lambda x, y: knn(x, y, 4)[0], (b, a))
    assert gradcheck(lambda x, y: three_nn(x, y)[0], (b, a))
    assert gradcheck(lambda x: gather(x, idx), (a,))
    assert gradcheck(lambda x, y: group(x, y, idx), (a, b))
    assert gradcheck(lambda x, w: three_interpolate(x, idx, w), (a, weight))
    assert gradgradcheck(lambda x: gather(x, idx), (a,))
    assert gradgradcheck(lambda x, y: group(x, y, idx), (a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives(device):
    a, b = leaf(2, 5, 3, device=device), leaf(2, 4, 3, device=device, seed=1)
    assert gradgradcheck(lambda x, y: chamfer_distance(x, y)[:2], (a, b))
    assert gradgradcheck(lambda x, y: chamfer_loss(x, y, "cdl2"), (a, b))
    assert gradgradcheck(lambda x, y: chamfer_loss(x, y, "cdl1"), (a, b))
    assert gradgradcheck(lambda x, y: knn(x, y, 3)[0], (b, a))
    assert gradgradcheck(lambda x, y: three_nn(x, y)[0], (b, a))


@pytest.mark.parametrize("device", DEVICES)
def test_compile_gives_the_same(device):
    def step(points):
        centers = gather(points, fps(points.detach(), 8, skip_near_origin=True))
        _, idx = knn(centers, points, 5)
        patches = group(points, centers, idx).flatten(0, 1)
        d1, d2, _, _ = chamfer_distance(patches, patches[:, :3] * 1.1)
        fused = chamfer_loss(patches, patches[:, :4] * 0.9, "cdl1").mean()
        return d1.mean() + d2.mean() + fused, idx

    eager, compiled = (torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)).to(device) for _ in range(2))
    eager.requires_grad_(), compiled.requires_grad_()
    loss, idx = step(eager)
    loss.backward()
    compiled_loss, compiled_idx = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    compiled_loss.backward()
    assert torch.equal(idx, compiled_idx)
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_shapes_without_data():
    points = torch.empty(2, 30, 3, device="meta")
    assert fps(points, 7).shape == (2, 7)
    sqdist, idx = knn(points[:, :4], points, 5)
    assert sqdist.shape == idx.shape == (2, 4, 5) and idx.dtype == torch.int64
    assert group(points, points[:, :4], idx).shape == (2, 4, 5, 3)


def test_half_gradients_keep_their_dtype():
    a, b = (torch.randn(2, 8, 3).bfloat16().requires_grad_() for _ in range(2))
    d1, d2, _, _ = chamfer_distance(a, b)
    (d1.mean() + d2.mean() + knn(a, b, 2)[0].mean() + chamfer_loss(a, b).mean()).backward()
    assert a.grad.dtype == b.grad.dtype == torch.bfloat16


def test_a_second_copy_of_the_package_shares_the_ops():
    folder = Path(extensions.__file__).parent / "m2ae_ops"
    spec = importlib.util.spec_from_file_location(
        "m2ae_ops_copy", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    copy = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copy
    try:
        spec.loader.exec_module(copy)
        points = torch.randn(1, 20, 3)
        assert copy.fps is not fps and torch.equal(copy.fps(points, 5), fps(points, 5))
        with pytest.raises(ImportError, match="declared by another version"):
            sys.modules["m2ae_ops_copy.private.registration"].register(
                "fps", "(Tensor x) -> Tensor", reference=None, fake=None
            )
    finally:
        for name in [name for name in sys.modules if name.startswith("m2ae_ops_copy")]:
            del sys.modules[name]
