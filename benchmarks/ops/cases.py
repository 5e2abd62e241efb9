"""The rows of the tables: what is computed, on which shapes, against whom, and what is to be reached.

Shapes: `B` clouds, `N` points, `L` patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.ops import agree, peers, torch_forms
from benchmarks.ops.case import Case, Side, Target
from benchmarks.ops.clouds import Clouds, clear_origin
from extensions import ball_query, chamfer_distance, emd, fps, gather, knn, three_interpolate, three_nn
from models.layers.group import group_pyramid
from models.losses import ReconstructionLoss

TREE = "scipy cKDTree"
CDIST = "torch.cdist"
TORCH = "PyTorch"
RADIUS = 0.2
EMD_ITERS = 3000


@dataclass(frozen=True)
class Sizes:
    """Shapes of all rows; scale 0 first in the pyramid."""

    clouds: int = 32
    points: int = 2048
    groups: tuple[int, ...] = (512, 256, 64)
    neighbors: tuple[int, ...] = (16, 8, 8)
    large_clouds: int = 8
    large_points: int = 8192
    large_samples: int = 2048
    patches: int = 2048
    patch_points: int = 32
    ball_neighbors: int = 32
    tokens: tuple[int, int] = (512, 96)  # rows and channels that are gathered from
    gathered: tuple[int, int] = (256, 8)
    interpolated_clouds: int = 8
    interpolated_channels: int = 384
    matched_clouds: int = 8
    matched_points: int = 1024


CPU_SIZES = Sizes()
GPU_SIZES = Sizes(clouds=128, large_clouds=32, patches=16384, interpolated_clouds=32, matched_clouds=32)
TINY_SIZES = Sizes(
    clouds=2,
    points=96,
    groups=(24, 12, 6),
    neighbors=(6, 4, 4),
    large_clouds=2,
    large_points=128,
    large_samples=32,
    patches=6,
    patch_points=32,
    ball_neighbors=5,
    tokens=(24, 5),
    gathered=(12, 4),
    interpolated_clouds=2,
    interpolated_channels=6,
    matched_clouds=2,
    matched_points=24,
)
"""Small enough for tests, large enough that no two coordinates coincide and torch.cdist takes its usual path."""


def build_cases(sizes: Sizes, clouds: Clouds) -> list[Case]:
    """Return all rows for shapes and a source of inputs."""
    return [
        _fps("fps-2048", sizes.clouds, sizes.points, sizes.groups[0], clouds, must=8, aim=12),
        _fps("fps-8192", sizes.large_clouds, sizes.large_points, sizes.large_samples, clouds, must=5, aim=10),
        _knn(sizes, clouds),
        _chamfer_patches(sizes, clouds),
        _chamfer_clouds(sizes, clouds),
        _grouping(sizes, clouds),
        _three_nn(sizes, clouds),
        _ball_query(sizes, clouds),
        _gather_backward(sizes, clouds),
        _interpolation(sizes, clouds),
        _emd("emd", sizes, clouds, eps=0.005, share=None),
        _emd("emd-tight", sizes, clouds, eps=1e-4, share=0.01),
    ]


def _fps(key: str, B: int, N: int, samples: int, clouds: Clouds, *, must: float, aim: float) -> Case:
    def side(name: str, call: Callable, package: str, **settings) -> Side:
        canon = settings.pop("canon", _alone)
        return Side(name, call, package, lambda points: (points, samples), canon, **settings)

    targets = [Target("torch-quickfps", "torch-quickfps", must, aim)]
    if key == "fps-2048":
        targets.append(Target("time on the device", "", 150, 80, device="cuda", unit="us"))
    heights = peers.heights(N)
    return Case(
        key,
        f"FPS, {B} x {N} -> {samples}",
        lambda: (clouds.points(B, N),),
        side("ours", fps, "torch"),
        (
            side("torch-quickfps", peers.quickfps, "torch_quickfps", options=heights),
            side(
                "fpsample", peers.fpsample_line, "fpsample", options=heights, device="cpu", canon=peers.stacked_indices
            ),
            side("torch-fps", peers.torch_fps, "torch_fps"),
            side(f"{TORCH}: loop over samples", torch_forms.fps_loop, "torch"),
            side("torch-cluster", peers.torch_cluster_fps, "torch_cluster"),
            side("pytorch3d", peers.pytorch3d_fps, "pytorch3d"),
            side("pointnet2_ops", peers.pointnet2_fps, "pointnet2_ops", device="cuda"),
        ),
        agree.same_samples,
        tuple(targets),
    )


def _knn(sizes: Sizes, clouds: Clouds) -> Case:
    B, N, Q, k = sizes.clouds, sizes.points, sizes.groups[0], sizes.neighbors[0]

    def draw() -> tuple[Tensor, Tensor]:
        points = clouds.points(B, N)
        return points[:, :Q].contiguous(), points

    def side(name: str, call: Callable, package: str = "torch", **settings) -> Side:
        return Side(name, call, package, lambda query, support: (query, support, k), **settings)

    def host(name: str, call: Callable, package: str, **settings) -> Side:
        return side(name, call, package, device="cpu", **settings)

    return Case(
        "knn",
        f"kNN, {B} x {Q} in {N}, k = {k}",
        draw,
        side("ours", knn),
        (
            host(TREE, peers.ckdtree, "scipy", canon=_roots, options=peers.TREE_OPTIONS),
            side(f"{CDIST} + topk", torch_forms.cdist_topk, canon=_squared),
            side(f"{CDIST} without matmul + topk", _exact_cdist_topk, canon=_squared),
            host("faiss IndexFlatL2", peers.faiss_flat, "faiss", canon=peers.stacked),
            host("scikit-learn", peers.sklearn_knn, "sklearn", canon=_roots, options=_SKLEARN),
            side("torch-cluster", peers.torch_cluster_knn, "torch_cluster", canon=_alone),
            side("pytorch3d", peers.pytorch3d_knn, "pytorch3d"),
        ),
        _neighbors_or_indices,
        (
            Target("scipy cKDTree", TREE, 8, 12),
            Target("torch.cdist + topk", CDIST, 35, 60),
            Target("torch.cdist + topk", CDIST, 5, 15, device="cuda"),
            Target("pytorch3d", "pytorch3d", 3, 6, device="cuda"),
        ),
    )


def _chamfer_patches(sizes: Sizes, clouds: Clouds) -> Case:
    L, K = sizes.patches, sizes.patch_points

    def side(name: str, loss: Callable, **settings) -> Side:
        return Side(name, lambda a, b: _with_gradients(loss, a, b), prepare=_leaves, **settings)

    loose = [side(f"{TORCH}: {name}", loss) for name, loss in torch_forms.chamfer_losses().items()]
    fused = [
        side(f"{TORCH}, compiled: {name}", loss, compiled=True) for name, loss in torch_forms.compiled_losses().items()
    ]
    return Case(
        "chamfer-patches",
        f"Chamfer loss, {L} patches of {K} points, forward + backward",
        lambda: clouds.patches(L, K),
        side("ours", ReconstructionLoss()),
        (*loose, *fused),
        agree.same_values,
        (Target("best PyTorch form", TORCH, 20, 40),),
    )


def _chamfer_clouds(sizes: Sizes, clouds: Clouds) -> Case:
    B, N = sizes.clouds, sizes.points
    return Case(
        "chamfer-clouds",
        f"Chamfer distance, {B} x ({N} x {N}), forward",
        lambda: clouds.pair(B, N),
        Side("ours", chamfer_distance, canon=lambda found: tuple(values.sqrt() for values in found[:2])),
        (
            Side(f"{CDIST} + amin", torch_forms.chamfer_amin),
            Side(f"{CDIST} + min with indices", torch_forms.chamfer_min, canon=lambda found: found[:2]),
            Side(
                TREE,
                peers.chamfer_ckdtree,
                "scipy",
                canon=lambda found: tuple(peers.stacked(way)[0] for way in found),
                options=peers.TREE_OPTIONS,
                device="cpu",
            ),
        ),
        agree.same_values,
        (Target("torch.cdist", CDIST, 150, 300), Target("scipy cKDTree", TREE, 10, 20)),
    )


def _grouping(sizes: Sizes, clouds: Clouds) -> Case:
    B, N, groups, neighbors = sizes.clouds, sizes.points, sizes.groups, sizes.neighbors

    def form(sample: Callable) -> Callable:
        return lambda points, **option: torch_forms.group_pyramid(
            lambda members, count: sample(members, count, **option), points, groups, neighbors
        )

    name = "torch-quickfps + cdist + topk"
    return Case(
        "grouping",
        f"all grouping of Point-M2AE, {B} x {N} -> {' -> '.join(map(str, groups))}",
        lambda: (clear_origin(clouds.points(B, N)),),
        Side("ours", lambda points: group_pyramid(points, groups, neighbors), canon=_levels),
        (
            Side(name, form(peers.quickfps), "torch_quickfps", options=peers.heights(groups[-2])),
            Side("torch-fps + cdist + topk", form(peers.torch_fps), "torch_fps"),
            Side(f"{TORCH}: loop over samples + cdist + topk", form(torch_forms.fps_loop)),
        ),
        agree.same_groups,
        (Target(name, name, 20, 40),),
    )


def _three_nn(sizes: Sizes, clouds: Clouds) -> Case:
    B, N, M = sizes.clouds, sizes.points, sizes.groups[0]

    def draw() -> tuple[Tensor, Tensor]:
        points = clouds.points(B, N)
        return points, points[:, :M].contiguous()

    def side(name: str, call: Callable, **settings) -> Side:
        return Side(name, call, prepare=lambda query, support: (query, support, 3), **settings)

    return Case(
        "three-nn",
        f"three-NN, {B} x {N} in {M}",
        draw,
        Side("ours", three_nn),
        (
            side(f"{TORCH}: cdist + topk", torch_forms.cdist_topk, canon=_squared),
            side(f"{TORCH}: cdist without matmul + topk", _exact_cdist_topk, canon=_squared),
        ),
        agree.same_neighbors,
        (Target("best PyTorch form", TORCH, 30, 50),),
    )


def _ball_query(sizes: Sizes, clouds: Clouds) -> Case:
    B, N, Q, k = sizes.clouds, sizes.points, sizes.groups[0], sizes.ball_neighbors

    def draw() -> tuple[Tensor, Tensor]:
        points = clouds.points(B, N)
        return points[:, :Q].contiguous(), points

    def side(name: str, call: Callable) -> Side:
        return Side(name, call, prepare=lambda query, support: (query, support, RADIUS, k), canon=_alone)

    return Case(
        "ball-query",
        f"ball query, {B} x {Q} in {N}, radius {RADIUS}, k = {k}",
        draw,
        side("ours", ball_query),
        (
            side(f"{TORCH}: cdist + topk", torch_forms.ball_query_topk),
            side(f"{TORCH}: cdist + sort", torch_forms.ball_query_sorted),
        ),
        agree.same_indices,
        (Target("best PyTorch form", TORCH, 80, 200),),
    )


def _gather_backward(sizes: Sizes, clouds: Clouds) -> Case:
    B, (M, C), (G, K) = sizes.clouds, sizes.tokens, sizes.gathered

    def side(name: str, rows: Callable) -> Side:
        def prepare(values: Tensor, idx: Tensor, grad: Tensor) -> tuple:
            values = values.detach().requires_grad_()
            return rows(values, idx), values, grad

        return Side(name, _backward, prepare=prepare)

    return Case(
        "gather-backward",
        f"backward of gathering, {B} x {G} x {K} of {M} rows, {C} channels",
        lambda: (clouds.values(B, M, C), clouds.indices(M, B, G, K), clouds.values(B, G, K, C)),
        side("ours", gather),
        tuple(side(f"{TORCH}: {name}", rows) for name, rows in torch_forms.ROWS.items()),
        agree.same_values,
        (Target("best PyTorch form", TORCH, 2, 8),),
    )


def _interpolation(sizes: Sizes, clouds: Clouds) -> Case:
    B, N, M, C = sizes.interpolated_clouds, sizes.points, sizes.groups[0], sizes.interpolated_channels

    def side(name: str, call: Callable) -> Side:
        def run(values: Tensor, weight: Tensor, idx: Tensor, grad: Tensor) -> tuple:
            out = call(values, idx, weight)
            return out, *torch.autograd.grad(out, (values, weight), grad)

        return Side(name, run, prepare=lambda values, weight, *rest: (*_leaves(values, weight), *rest))

    def form(rows: Callable) -> Callable:
        return lambda values, idx, weight: torch_forms.interpolate(rows, values, idx, weight)

    return Case(
        "three-interpolate",
        f"three-point interpolation, {B} x {N} from {M}, {C} channels, forward + backward",
        lambda: (
            clouds.values(B, M, C),
            clouds.values(B, N, 3).abs(),
            clouds.indices(M, B, N, 3),
            clouds.values(B, N, C),
        ),
        side("ours", three_interpolate),
        tuple(side(f"{TORCH}: {name}", form(rows)) for name, rows in torch_forms.ROWS.items()),
        agree.same_values,
    )


def _emd(key: str, sizes: Sizes, clouds: Clouds, *, eps: float, share: float | None) -> Case:
    B, N = sizes.matched_clouds, sizes.matched_points
    quality = "approximate" if share is None else f"within {100 * share:g} % of the optimum"
    return Case(
        key,
        f"earth mover's matching, {B} x {N}, eps = {eps}, {quality}",
        lambda: clouds.pair(B, N),
        Side("ours", lambda a, b: emd(a, b, eps=eps, iters=EMD_ITERS, bijective=True)),
        (Side("scipy linear_sum_assignment (exact)", peers.assignment, "scipy", device="cpu"),),
        agree.near_optimum(eps, share),
    )


_SKLEARN = tuple((name, {"algorithm": name}) for name in ("kd_tree", "brute"))


def _exact_cdist_topk(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch_forms.cdist_topk(query, support, k, "donot_use_mm_for_euclid_dist")


def _neighbors_or_indices(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare by index alone where a peer gives no distances."""
    return (
        agree.same_neighbors(inputs, ours, theirs) if len(theirs) == 2 else agree.same_indices(inputs, ours[1:], theirs)
    )


def _with_gradients(loss: Callable, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = loss(a, b)
    return value.detach(), *torch.autograd.grad(value, (a, b))


def _backward(out: Tensor, values: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Run the backward pass alone; the graph is kept, so that it can be repeated."""
    return torch.autograd.grad(out, values, grad, retain_graph=True)


def _leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(values.detach().requires_grad_() for values in tensors)


def _alone(idx: Tensor) -> tuple[Tensor]:
    return (idx,)


def _squared(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return found[0].square(), found[1]


def _roots(pairs: list) -> tuple[Tensor, Tensor]:
    """Return squared distances (float32) and indices of the packages that give distances."""
    distance, idx = peers.stacked(pairs)
    return distance.square().float(), idx


def _levels(pyramid) -> list[Tensor]:
    return [level for pair in zip(pyramid.centers, pyramid.neighborhoods, strict=True) for level in pair]
