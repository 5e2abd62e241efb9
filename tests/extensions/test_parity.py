"""The ops against values of the published methods (tests/parity/data)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extensions import chamfer_distance, fps, knn

DATA = Path(__file__).parents[1] / "parity" / "data"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FPS_CASES = [
    "generic_64", "generic_100", "generic_700", "generic_2048", "core", "ties_grid", "duplicates", "all_dead",
]  # fmt: skip


@pytest.fixture(scope="module")
def m2ae():
    with np.load(DATA / "point-m2ae" / "ops.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def mae():
    with np.load(DATA / "point-mae" / "primitives.npz") as file:
        return dict(file)


def tensor(array: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", FPS_CASES)
def test_fps_point_m2ae(m2ae, case, device):
    expected = m2ae[f"fps_{case}_idx"]
    chosen = fps(tensor(m2ae[f"fps_{case}_points"], device), expected.shape[1], skip_near_origin=True)
    np.testing.assert_array_equal(chosen.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_knn_point_m2ae(m2ae, device):
    support = tensor(m2ae["knn_ref"], device)
    sqdist, idx = knn(support[:, :50], support, 16)
    np.testing.assert_array_equal(idx.cpu(), m2ae["knn_idx"])
    np.testing.assert_allclose(sqdist.sqrt().cpu(), m2ae["knn_dist"], rtol=1e-6, atol=0)
    grid = tensor(m2ae["fps_ties_grid_points"], device)
    np.testing.assert_array_equal(knn(grid[:, :40], grid, 12)[1].cpu(), m2ae["knn_ties_grid_idx"])


@pytest.mark.parametrize("device", DEVICES)
def test_chamfer_point_m2ae(m2ae, device):
    a, b = (tensor(m2ae[f"chamfer_{name}"], device).requires_grad_() for name in "ab")
    d1, d2, _, _ = chamfer_distance(a, b)
    loss = d1.mean() + d2.mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(m2ae["chamfer_l2"]), rel=1e-6)
    assert ((d1.sqrt().mean() + d2.sqrt().mean()) / 2).item() == pytest.approx(float(m2ae["chamfer_l1"]), rel=1e-6)
    np.testing.assert_allclose(a.grad.cpu(), m2ae["chamfer_l2_grad_a"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(b.grad.cpu(), m2ae["chamfer_l2_grad_b"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_fps_point_mae(mae, device):
    points = tensor(mae["pts"], device)
    np.testing.assert_array_equal(fps(points, 64, skip_near_origin=True).cpu(), mae["fps_idx_skip_near_origin"])
    np.testing.assert_array_equal(fps(points, 64).cpu(), mae["fps_idx_plain"])


@pytest.mark.parametrize("device", DEVICES)
def test_knn_point_mae(mae, device):
    sqdist, idx = knn(tensor(mae["knn_query"], device), tensor(mae["pts"], device), 16)
    np.testing.assert_array_equal(idx.cpu(), mae["knn_idx"])
    np.testing.assert_allclose(sqdist.sqrt().cpu(), mae["knn_dist"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["cdl2", "cdl1"])
def test_chamfer_point_mae(mae, form, device):
    a, b = (tensor(mae[f"cd_{name}"], device).requires_grad_() for name in "ab")
    d1, d2, _, _ = chamfer_distance(a, b)
    loss = d1.mean() + d2.mean() if form == "cdl2" else (d1.sqrt().mean() + d2.sqrt().mean()) / 2
    loss.backward()
    assert loss.item() == pytest.approx(float(mae[form]), rel=1e-6)
    np.testing.assert_allclose(a.grad.cpu(), mae[f"{form}_grad_a"], rtol=1e-5, atol=1e-8)
