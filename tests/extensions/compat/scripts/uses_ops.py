"""Every import and call form of published code, as the main.py of another repository. Argument: cpu or cuda."""

import sys

import chamfer
import models.net  # of that repository
import pointnet2_ops
import torch
from extensions.own import WHERE  # of that repository
from knn_cuda import KNN
from knn_cuda import knn as knn_function
from pointnet2_ops import _ext, pointnet2_utils
from pointnet2_ops.pointnet2_modules import PointnetFPModule, PointnetSAModule, PointnetSAModuleMSG
from pointnet2_ops.pointnet2_utils import GroupAll, QueryAndGroup

import extensions
from extensions.chamfer_dist import (
    ChamferDistanceL1,
    ChamferDistanceL1_PM,
    ChamferDistanceL2,
    ChamferDistanceL2_split,
    ChamferFunction,
)

assert sys.argv[0] == "main.py" and sys.argv[2:] == ["--flag", "--device", "x"], sys.argv
assert __name__ == "__main__" and WHERE == "their folder" and models.net.WHERE == "their models"
assert not hasattr(extensions, "fps")
device = sys.argv[1]
torch.manual_seed(0)
xyz, new = torch.rand(2, 64, 3, device=device), torch.rand(2, 10, 3, device=device)
features = torch.rand(2, 5, 64, device=device, requires_grad=True)

# FPS, gather: the two lines of every published `fps`.
idx = pointnet2_utils.furthest_point_sample(xyz, 16)
assert idx.dtype == torch.int32 and idx.shape == (2, 16)
centers = pointnet2_utils.gather_operation(xyz.transpose(1, 2).contiguous(), idx).transpose(1, 2).contiguous()
assert torch.equal(centers, torch.stack([xyz[b, idx[b].long()] for b in range(2)]))
assert torch.equal(pointnet2_utils.FurthestPointSampling.apply(xyz, 16), idx)
assert torch.equal(
    pointnet2_ops.pointnet2_utils.GatherOperation.apply(features, idx), _ext.gather_points(features, idx)
)

# Neighbours: roots for three_nn and KNN, channels where each of them wants them.
dist, three = pointnet2_utils.three_nn(new, xyz)
exact = torch.cdist(new, xyz, compute_mode="donot_use_mm_for_euclid_dist")
assert three.dtype == torch.int32 and torch.allclose(dist, exact.topk(3, largest=False).values)
weight = torch.nn.functional.normalize(1 / (dist + 1e-8), p=1, dim=2)
carried = pointnet2_utils.three_interpolate(features, three, weight)
assert carried.shape == (2, 5, 10) and carried.is_contiguous()
near, order = KNN(k=4, transpose_mode=True)(xyz, new)
assert near.shape == order.shape == (2, 10, 4) and order.dtype == torch.int64
assert torch.allclose(near, exact.topk(4, largest=False).values)
near_first, order_first = KNN(4)(xyz.transpose(1, 2), new.transpose(1, 2))
assert torch.equal(near_first, near.transpose(1, 2)) and torch.equal(order_first, order.transpose(1, 2))
assert torch.equal(knn_function(xyz[0].t(), new[0].t(), 4)[1], order_first[0])

# Balls and groups.
ball = pointnet2_utils.ball_query(0.3, 8, xyz, new)
assert ball.dtype == torch.int32 and ball.shape == (2, 10, 8)
grouped = pointnet2_utils.grouping_operation(features, ball)
assert grouped.shape == (2, 5, 10, 8) and grouped.is_contiguous()
assert QueryAndGroup(0.3, 8)(xyz, new, features).shape == (2, 8, 10, 8)
assert GroupAll()(xyz, None, features).shape == (2, 8, 1, 64)
(carried.sum() + grouped.sum()).backward()
assert features.grad.abs().sum() > 0

# Modules.
msg = PointnetSAModuleMSG(npoint=16, radii=[0.2, 0.4], nsamples=[8, 16], mlps=[[5, 8], [5, 8, 12]]).to(device)
centers, wide = msg(xyz, features)
assert centers.shape == (2, 16, 3) and wide.shape == (2, 20, 16)
_, whole = PointnetSAModule(mlp=[20, 32]).to(device)(centers, wide)
assert whole.shape == (2, 32, 1)
back = PointnetFPModule(mlp=[25, 16]).to(device)(xyz, centers, features, wide)
assert back.shape == (2, 16, 64)

# Chamfer: the extension, the function, the losses.
a, b = torch.rand(2, 7, 3, device=device, requires_grad=True), torch.rand(2, 9, 3, device=device)
d1, d2, i1, i2 = chamfer.forward(a, b)
assert i1.dtype == i2.dtype == torch.int32
to_a, _ = chamfer.backward(a, b, i1, i2, torch.ones_like(d1), torch.ones_like(d2))
f1, f2 = ChamferFunction.apply(a, b)
(f1.sum() + f2.sum()).backward()
assert torch.equal(f1, d1) and torch.equal(a.grad, to_a)
assert torch.isclose(ChamferDistanceL2()(a, b), d1.mean() + d2.mean())
assert torch.isclose(ChamferDistanceL1()(a, b), (d1.sqrt().mean() + d2.sqrt().mean()) / 2)
assert torch.isclose(ChamferDistanceL1_PM(ignore_zeros=True)(a, b), d1.sqrt().mean())
assert torch.allclose(torch.stack(ChamferDistanceL2_split()(a, b)), torch.stack([d1.mean(), d2.mean()]))
print("all forms ran on", xyz.device.type)
