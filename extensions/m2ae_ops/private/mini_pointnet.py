"""A mini-PointNet as one op, fused for a GPU.

Legend: R = G * k members, the k of group 0 first; P channels of a member, A, W and C of the layers inside, D of a token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import embedding as reference
from .checks import FLOATS, check_float
from .fused import compose
from .fused.limits import KERNEL_DTYPES, LARGEST_GROUP, has_triton
from .registration import register


def mini_pointnet(
    rows: Tensor,
    *,
    weights: Sequence[Tensor],
    affines: tuple[Tensor, Tensor],
    k: int,
    eps: tuple[float, float] = (1e-5, 1e-5),
    stats: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embed groups of k members: two layers, the maximum over the group joined to each member, two layers, the maximum again.

    hidden = relu(norm(rows @ lift.T)); pooled = max over the group of hidden @ widen.T;
    joined = hidden @ from_hidden.T + pooled @ from_group.T; tokens = max over the group of relu(norm(joined)) @ last.T.
    Of equal members the first has won. Biases before a norm belong into `stats`, the last one onto the tokens.

    Args:
        rows: (R, P). Points (P = 3) without gradient have a form of their own, which stores no hidden rows.
        weights: lift (A, P), widen (W, A), from_hidden (C, A), from_group (C, W), last (D, C).
        affines: weight and bias of both norms, (2, A) and (2, C).
        stats: mean and biased variance of both norms, (2, A) and (2, C); None: those of the rows, which is what has a gradient.
        dtype: of products and of what is stored; sums are float32 at least. None: that of the rows.

    Returns:
        tokens (G, D) in `dtype`, and the stats of both norms, in float32 at least, without gradient.

    Raises:
        ValueError: shapes that do not match, a dtype that is not floating.

    Note:
        On a GPU the kernels of `fused/` serve groups of at most 128, in float16, bfloat16 and float32, where Triton is installed; else
        plain PyTorch.
    """
    dtype = dtype or rows.dtype
    _check(rows, weights, affines, stats, k, dtype)
    given = stats or (None, None)
    if rows.shape[1] == 3 and rows.requires_grad and torch.is_grad_enabled():
        # One more coordinate, always 0, makes them rows like others.
        rows, weights = F.pad(rows, (0, 1)), (F.pad(weights[0], (0, 1)), *weights[1:])
    return torch.ops.m2ae.mini_pointnet(rows, *weights, *affines, *given, k, *eps, dtype)[:3]


def _check(rows, weights, affines, stats, k, dtype) -> None:
    check_float("mini_pointnet", "rows", rows)
    if rows.dim() != 2 or k < 1 or len(rows) == 0 or len(rows) % k:
        raise ValueError(f"mini_pointnet: rows must be (G * {k}, P) of at least one group, got {tuple(rows.shape)}")
    if dtype not in FLOATS:
        raise ValueError(f"mini_pointnet: dtype must be floating, got {dtype}")
    A, W, C, D = (len(weight) for weight in (*weights[:3], weights[4]))
    names = ("lift", "widen", "from_hidden", "from_group", "last", "affines[0]", "affines[1]")
    shapes = ((A, rows.shape[1]), (W, A), (C, A), (C, W), (D, C), (2, A), (2, C))
    expected = {name: given for name, *given in zip(names, (*weights, *affines), shapes, strict=True)}
    if stats is not None:
        expected |= {"stats[0]": (stats[0], (2, A)), "stats[1]": (stats[1], (2, C))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"mini_pointnet: {name} must be {shape}, got {tuple(tensor.shape)}")


def _steps(rows: Tensor, k: int, dtype: torch.dtype):
    if dtype in KERNEL_DTYPES and rows.dtype in KERNEL_DTYPES and k <= LARGEST_GROUP and has_triton():
        from .fused import launch  # here, since it imports Triton

        return launch
    return reference


def _forward_cuda(*args):
    with torch.cuda.device(args[0].device), torch.autocast("cuda", enabled=False):
        return compose.forward(_steps(args[0], args[10], args[13]), *args)


def _backward_cuda(*args):
    with torch.cuda.device(args[0].device), torch.autocast("cuda", enabled=False):
        return compose.backward(_steps(args[1], args[17], args[15].dtype), *args)


def _forward_reference(*args):
    with torch.autocast(args[0].device.type, enabled=False):
        return compose.forward(reference, *args)


def _backward_reference(*args):
    with torch.autocast(args[0].device.type, enabled=False):
        return compose.backward(reference, *args)


def _fake(rows, lift, widen, from_hidden, from_group, last, first, second, first_stats, second_stats, k, e1, e2, dtype):
    A, W, C, D, groups = len(lift), len(widen), len(from_hidden), len(last), rows.shape[0] // k
    real = torch.float64 if dtype == torch.float64 else torch.float32
    points, training = lift.shape[1] == 3, first_stats is None

    def empty(*shape, dtype=dtype):
        return rows.new_empty(shape, dtype=dtype)

    return (
        empty(groups, D),
        empty(2, A, dtype=real),
        empty(2, C, dtype=real),
        empty(0, dtype=rows.dtype) if points else empty(rows.shape[0], A),
        empty(*((4, 4) if points and training else (0,)), dtype=torch.float64),
        empty(groups, W),
        empty(groups, W, dtype=torch.uint8),
        empty(rows.shape[0], C),
        empty(groups, D, dtype=torch.uint8),
    )


def _fake_backward(grad, rows, *rest):
    lift, widen, from_hidden, from_group, last, first, second, first_stats, second_stats = rest[:9]
    to_rows = rows.new_empty(0) if lift.shape[1] == 3 else rows.new_empty(rows.shape)
    weights = (w.new_empty(w.shape, dtype=lift.dtype) for w in (lift, widen, from_hidden, from_group, last))
    return to_rows, *weights, first_stats.new_empty(first.shape), second_stats.new_empty(second.shape)


def _setup(ctx, inputs, output):
    *tensors, first_stats, _, k, first_eps, second_eps, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.numbers, ctx.training = (k, first_eps, second_eps), first_stats is None


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 14
    if not ctx.training:
        raise RuntimeError("mini_pointnet: given stats have no gradient; leave them out, or run under torch.no_grad()")
    to_rows, *grads = torch.ops.m2ae.mini_pointnet_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    affines = ctx.saved_tensors[6:8]
    grads[5:] = (t.to(affine.dtype) for t, affine in zip(grads[5:], affines, strict=True))
    return to_rows if len(to_rows) else None, *grads, *(None,) * 6


def _no_second(ctx, *_):
    raise RuntimeError("mini_pointnet: there is no second derivative")


_WEIGHTS = "Tensor rows, Tensor lift, Tensor widen, Tensor from_hidden, Tensor from_group, Tensor last, Tensor first, Tensor second, "
register(
    "mini_pointnet",
    f"({_WEIGHTS}Tensor? first_stats, Tensor? second_stats, int k, float first_eps, float second_eps, ScalarType dtype)"
    f" -> ({', '.join(['Tensor'] * 9)})",
    reference=_forward_reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
    cuda=_forward_cuda,
)
register(
    "mini_pointnet_backward",
    f"(Tensor grad, {_WEIGHTS}Tensor first_stats, Tensor second_stats, Tensor source, Tensor moments, Tensor pooled, Tensor"
    f" pooled_winners, Tensor joined, Tensor winners, int k, float first_eps, float second_eps) -> ({', '.join(['Tensor'] * 8)})",
    reference=_backward_reference,
    fake=_fake_backward,
    backward=_no_second,
    cuda=_backward_cuda,
)
