"""Names and call forms of LIDARLearn, OpenPoints, ChamferDistancePytorch and of the family's own EMD. Argument: cpu or cuda."""

import sys

import chamfer_3D
import chamfer_dist
import emd_cuda
import pointnet2_batch_cuda as batch
import pointnet2_ops
import pointnet2_ops._version
import torch
from chamfer3D.dist_chamfer_3D import chamfer_3DDist
from pointnet2_ops import _ext
from pointnet2_ops.pointnet2_modules import PointnetSAModuleMSG, _PointnetSAModuleBase
from pointnet2_ops.pointnet2_utils import GroupAll, QueryAndGroup, knn_query

import extensions.emd
from extensions.emd import emd
from extensions.emd import emd_module as auction
from extensions.emd.emd import earth_mover_distance

device = sys.argv[1]
torch.manual_seed(0)
xyz, new = torch.rand(2, 40, 3, device=device), torch.rand(2, 6, 3, device=device)
features = torch.rand(2, 5, 40, device=device, requires_grad=True)
assert pointnet2_ops.__version__ == pointnet2_ops._version.__version__ == "3.0.0"

# LIDARLearn: kNN under the name of balls.
nearest = torch.cdist(new, xyz).topk(4, largest=False).indices
assert torch.equal(knn_query(4, xyz, new).long(), nearest) and knn_query(4, xyz).shape == (2, 40, 4)
grouped = QueryAndGroup(nsample=4)(xyz, new, features)
assert grouped.shape == (2, 8, 6, 4) and QueryAndGroup(radius=None, nsample=4)(xyz).shape == (2, 3, 40, 4)
assert torch.equal(QueryAndGroup(0.3, 4)(xyz, new, features, idx=nearest.int()), grouped)
assert chamfer_dist.ChamferDistanceL2()(xyz, xyz).item() == 0
assert torch.equal(GroupAll(use_xyz=False)(xyz, None), xyz.transpose(1, 2).unsqueeze(2))


class OneScale(_PointnetSAModuleBase):
    def __init__(self):
        super().__init__()
        whole = PointnetSAModuleMSG(npoint=6, radii=[0.5], nsamples=[4], mlps=[[5, 8]])
        self.npoint, self.groupers, self.mlps = whole.npoint, whole.groupers, whole.mlps


assert OneScale().to(device)(xyz, features)[1].shape == (2, 8, 6)


def ints(*shape):
    return torch.zeros(shape, dtype=torch.int32, device=device)


# OpenPoints: every call fills tensors of the caller.
chosen, temporary = ints(2, 6), torch.full((2, 40), 1e10, device=device)
batch.furthest_point_sampling_wrapper(2, 40, 6, xyz, temporary, chosen)
assert torch.equal(chosen, _ext.furthest_point_sampling(xyz, 6)) and len(set(chosen[0].tolist())) == 6
zero = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0.1, 0, 0]]], device=device)  # no near-origin rule
two = ints(1, 2)
batch.farthest_point_sampling_wrapper(1, 3, 2, zero, temporary, two)
assert two.tolist() == [[0, 1]]
ball, picked, out = ints(2, 6, 4), torch.zeros(2, 5, 6, device=device), torch.zeros(2, 5, 6, 4, device=device)
batch.ball_query_wrapper(2, 40, 6, 0.3, 4, new, xyz, ball)
assert torch.equal(ball, _ext.ball_query(new, xyz, 0.3, 4))
batch.group_points_wrapper(2, 5, 40, 6, 4, features, ball, out)
assert torch.equal(out, _ext.group_points(features, ball))
batch.gather_points_wrapper(2, 5, 40, 6, features, chosen, picked)
assert torch.equal(picked, _ext.gather_points(features, chosen))
gradient = torch.zeros(2, 5, 40, device=device)
batch.group_points_grad_wrapper(2, 5, 40, 6, 4, torch.ones_like(out), ball, gradient)
assert gradient.sum().item() == out.numel()
batch.gather_points_grad_wrapper(2, 5, 40, 6, torch.ones_like(picked), chosen, gradient)
assert gradient.sum().item() == picked.numel()
dist2, three = torch.zeros(2, 6, 3, device=device), ints(2, 6, 3)
batch.three_nn_wrapper(2, 6, 40, new, xyz, dist2, three)
assert torch.equal(dist2, _ext.three_nn(new, xyz)[0]) and torch.equal(three, _ext.three_nn(new, xyz)[1])
batch.three_interpolate_wrapper(2, 5, 40, 6, features, three, dist2, picked)
assert torch.equal(picked, _ext.three_interpolate(features, three, dist2))
batch.three_interpolate_grad_wrapper(2, 5, 6, 40, torch.ones_like(picked), three, dist2, gradient)
assert torch.allclose(gradient.sum(), 5 * dist2.sum())

# ChamferDistancePytorch.
a, b = torch.rand(2, 7, 3, device=device, requires_grad=True), torch.rand(2, 9, 3, device=device)
dist_a, dist_b, idx_a, idx_b = chamfer_3DDist()(a, b)
exact = torch.cdist(a, b).square()
assert torch.allclose(dist_a, exact.amin(2)) and torch.allclose(dist_b, exact.amin(1)) and idx_a.dtype == torch.int32
(dist_a.sum() + dist_b.sum()).backward()
filled = [torch.zeros(2, 7, device=device), torch.zeros(2, 9, device=device), ints(2, 7), ints(2, 9)]
chamfer_3D.forward(a.detach(), b, *filled)
assert torch.equal(filled[0], dist_a) and torch.equal(filled[3], idx_b)
grads = [torch.zeros(2, 7, 3, device=device), torch.zeros(2, 9, 3, device=device)]
ones = torch.ones_like(filled[0]), torch.ones_like(filled[1])
chamfer_3D.backward(a.detach(), b, *grads, *ones, *filled[2:])
assert torch.equal(grads[0], a.grad)

# EMD: two points that lie near one of the other cloud each, in the other order; the soft matching is that pairing.
x = torch.tensor([[[0.0, 0, 0], [9, 0, 0]]], device=device, requires_grad=True)
y = torch.tensor([[[9.0, 1, 0], [0, 2, 0]]], device=device)
match = emd_cuda.approxmatch_forward(x.detach(), y)
assert torch.allclose(match, torch.tensor([[[0.0, 1], [1, 0]]], device=device), atol=1e-3)
assert torch.allclose(emd_cuda.matchcost_forward(x, y, match), torch.tensor([5.0], device=device), atol=0.1)
cost = emd()(x, y)
assert torch.equal(cost, earth_mover_distance(x, y)) and extensions.emd.emd is emd is earth_mover_distance
assert torch.allclose(earth_mover_distance(x.transpose(1, 2), y.transpose(1, 2), transpose=True), cost)
assert torch.allclose(emd()(x[0], y[0]), cost) and cost.shape == (1,)
cost.sum().backward()
to_x, to_y = emd_cuda.matchcost_backward(torch.ones(1, device=device), x.detach(), y, match)
assert torch.equal(x.grad, to_x) and torch.allclose(to_x.sum(1), -to_y.sum(1), atol=1e-5)
assert torch.allclose(to_x, torch.tensor([[[0.0, -4, 0], [0, -2, 0]]], device=device), atol=0.1)
cost_auction, pairs = auction.emdModule()(x, y, 0.005, 50)
assert pairs.tolist() == [[1, 0]] and cost_auction.tolist() == [[4, 1]]
one_to_two = emd_cuda.approxmatch_forward(x.detach()[:, :1], y)  # unequal sizes: the one point has mass 2
assert torch.allclose(one_to_two.sum(1), torch.full((1, 1), 2.0, device=device), atol=1e-3)


def own_file(xyz1, xyz2):
    """The check of the family's own emd.py."""
    assert xyz1.is_cuda and xyz2.is_cuda, "Only support cuda currently."
    return emd_cuda.matchcost_forward(xyz1, xyz2, emd_cuda.approxmatch_forward(xyz1, xyz2))


assert torch.equal(own_file(x.cuda(), y.cuda()), cost)
print("other names ran on", xyz.device.type)
