"""torch_scatter's reductions in plain PyTorch. What no value is scattered to is 0, or keeps what `out` holds."""

import torch

__all__ = ["scatter", "scatter_add", "scatter_max", "scatter_mean", "scatter_min", "scatter_mul", "scatter_sum"]
REDUCTIONS = {
    "sum": "sum", "add": "sum", "mean": "mean", "mul": "prod", "prod": "prod", "max": "amax", "min": "amin",
}  # fmt: skip


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce the values of `src` that have the same `index` along `dim`, one of REDUCTIONS.

    Args:
        index: int64, of the shape of src, or one that expands to it: a vector counts along `dim`.
        out: tensor to reduce into, with what it holds.
        dim_size: length of the result along `dim`; None: as far as the index goes.

    Raises:
        ValueError: the reduction has another name.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"torch_scatter: reduce={reduce!r} is none of {', '.join(REDUCTIONS)}")
    dim = dim % src.dim()
    index = _spread(index, src, dim)
    kind, given = REDUCTIONS[reduce], out is not None
    if not given:
        shape = _result_shape(src, index, dim, dim_size)
        out = src.new_ones(shape) if kind == "prod" else src.new_zeros(shape)
    if kind != "mean":
        return out.scatter_reduce_(dim, index, src, kind, include_self=given or kind == "prod")
    counts = torch.zeros_like(out).scatter_add_(dim, index, torch.ones_like(src)).clamp(min=1)
    sums = out.scatter_add_(dim, index, src)
    return sums.div_(counts) if src.is_floating_point() else sums.div_(counts, rounding_mode="floor")


def scatter_sum(src, index, dim=-1, out=None, dim_size=None):
    """Return the sums; see `scatter`."""
    return scatter(src, index, dim, out, dim_size, "sum")


scatter_add = scatter_sum


def scatter_mul(src, index, dim=-1, out=None, dim_size=None):
    """Return the products; see `scatter`."""
    return scatter(src, index, dim, out, dim_size, "mul")


def scatter_mean(src, index, dim=-1, out=None, dim_size=None):
    """Return the means; see `scatter`."""
    return scatter(src, index, dim, out, dim_size, "mean")


def scatter_max(src, index, dim=-1, out=None, dim_size=None):
    """Return the largest values and where in `src` they stand; the length of `src` where there is none."""
    values = scatter(src, index, dim, out, dim_size, "max")
    return values, _places(values, src, index, dim)


def scatter_min(src, index, dim=-1, out=None, dim_size=None):
    """Return the smallest values and where in `src` they stand; the length of `src` where there is none."""
    values = scatter(src, index, dim, out, dim_size, "min")
    return values, _places(values, src, index, dim)


def _spread(index: torch.Tensor, src: torch.Tensor, dim: int) -> torch.Tensor:
    if index.dim() == 1:
        index = index.view([-1 if axis == dim else 1 for axis in range(src.dim())])
    while index.dim() < src.dim():
        index = index.unsqueeze(-1)
    return index.expand_as(src)


def _result_shape(src: torch.Tensor, index: torch.Tensor, dim: int, dim_size: int | None) -> list[int]:
    shape = list(src.shape)
    shape[dim] = dim_size if dim_size is not None else int(index.max()) + 1 if index.numel() else 0
    return shape


@torch.no_grad()
def _places(values: torch.Tensor, src: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    dim = dim % src.dim()
    index, count = _spread(index, src, dim), src.shape[dim]
    place = torch.arange(count, device=src.device).view([-1 if axis == dim else 1 for axis in range(src.dim())])
    place = torch.where(values.gather(dim, index) == src, place, count)
    none = torch.full_like(values, count, dtype=torch.int64)
    return none.scatter_reduce(dim, index, place, "amin")
