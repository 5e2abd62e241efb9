"""Losses: modules, which while training average over the patches of all processes, and the functions that they are made of.

Shapes: `L` patches, `n` and `m` points per patch, `B` batch, `M` hidden groups of a sample.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import chamfer_loss, emd
from utils.dist import all_reduce_sum, gather_rows, rank, world_size

RECONSTRUCTION_LOSSES = ("cdl1", "cdl2", "emd")
EMD_EPS = 1e-4
"""How far the mean cost of a patch may be from the least one; patches have squared sizes of some 0.01 to 0.1."""


class MeanLoss(nn.Module):
    """Average losses (L,), computed in fp32 at least by whoever made them; while training, over those of all processes.

    The mean of the processes' results, and of their gradients, is the mean over all values then: each process divides by its share of the
    all-reduced count. L may differ between processes; all of them must call.
    """

    def forward(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return a scalar; `valid` (L,) bool says which values take part, None = all."""
        shared = self.training and world_size() > 1
        if valid is None and not shared:
            return values.mean()
        count = values.new_full((), len(values)) if valid is None else valid.sum().to(values.dtype)
        total = (values if valid is None else torch.where(valid, values, 0.0)).sum()
        return total * world_size() / all_reduce_sum(count) if shared else total / count


class ReconstructionLoss(MeanLoss):
    """Compare rebuilt patches with their targets.

    `cdl2`: mean squared nearest distance one way plus the other. `cdl1`: the mean of both ways' mean distances. `emd`:
    mean squared distance of the pairs of a one-to-one matching, see `transport_cost`. Distances are computed in fp32 at least.

    Args:
        kind: one of `RECONSTRUCTION_LOSSES`.

    Note:
        The square root of `cdl1` is clamped at 1e-12 squared units, so that points that coincide give no infinite gradient.
    """

    def __init__(self, kind: str = "cdl2"):
        super().__init__()
        self.kind = kind

    def forward(self, rebuilt: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compare patches (L, n, 3) with (L, m, 3): a scalar; `valid` (L,) bool says which take part, None = all."""
        return super().forward(self.each(rebuilt, target), valid)

    def each(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        """Compare patch by patch: (L,)."""
        return patch_losses(rebuilt, target, self.kind)


class RankingLoss(nn.Module):
    """Teach predictions (B, M) the order of targets (B, M) within each sample, in fp32 at least.

    Mean of -log(sigmoid(p_b - p_a) + 1e-6) over all pairs with t_b > t_a, of all processes while training; equal targets make no
    pair (Wang et al. 2023, Eq. 5).
    """

    EPS = 1e-6

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return a scalar; `valid` (B, M) bool says which take part, None = all."""
        difference, harder = _pairs(prediction, target, valid)
        losses = -torch.log(torch.sigmoid(difference) + self.EPS)
        total, pairs = torch.where(harder, losses, 0.0).sum(), harder.sum().to(losses.dtype)
        if self.training and world_size() > 1:
            total, pairs = total * world_size(), all_reduce_sum(pairs)
        return total / pairs.clamp(min=1)


class NTXent(MeanLoss):
    """Pull the pairs (a[i], b[i]) together and all other rows apart (Chen et al. 2020, Sec. 2.1).

    Of the 2B rows, normalised to length 1, each must find its partner among the 2B - 1 others by their cosines over `temperature`: the
    mean cross entropy of the 2B rows, in fp32 at least. While training, rows of all processes are negatives, which must all call with
    the same B: the mean of their results, and of their gradients, is that of one process that has all rows.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare (B, F) with (B, F), row i of both a pair: a scalar.

        Raises:
            ValueError: the two do not pair up, or one pair alone, which has no negatives.
        """
        if a.shape != b.shape or a.dim() != 2:
            raise ValueError(f"nt_xent: {tuple(a.shape)} and {tuple(b.shape)} do not pair up; both must be (B, F)")
        with torch.autocast(a.device.type, enabled=False):
            a, b = F.normalize(at_least_float(a), dim=1), F.normalize(at_least_float(b), dim=1)
            shared = self.training and world_size() > 1
            all_a, all_b = (gather_rows(a), gather_rows(b)) if shared else (a, b)
            B, total = len(a), len(all_a)
            if total < 2:
                raise ValueError(
                    "nt_xent: a batch of one has no negatives to contrast with; raise total_bs to at least 2"
                )
            candidates = torch.cat([all_a, all_b])  # (2 * total, F)
            logits = torch.cat([a, b]) @ candidates.T / self.temperature  # (2B, 2 * total)
            own = torch.arange(B, device=a.device) + (B * rank() if shared else 0)
            itself = torch.cat([own, own + total])  # (2B,)
            logits = logits.scatter(1, itself.unsqueeze(1), float("-inf"))
            per_row = F.cross_entropy(logits, torch.cat([own + total, own]), reduction="none")  # (2B,)
        return super().forward(per_row)


def at_least_float(values: Tensor) -> Tensor:
    """Return values in float32, those in float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def patch_losses(rebuilt: Tensor, target: Tensor, kind: str = "cdl2") -> Tensor:
    """Compare patches (L, n, 3) with (L, m, 3) as `ReconstructionLoss` does, one by one; returns (L,)."""
    target = at_least_float(target)
    if rebuilt.dtype != target.dtype:
        rebuilt = rebuilt.to(target.dtype)
    if kind == "emd":
        return transport_cost(rebuilt, target)
    if kind in RECONSTRUCTION_LOSSES:
        return chamfer_loss(rebuilt, target, kind)
    raise ValueError(f"reconstruction loss {kind!r} is unknown; choose from {', '.join(RECONSTRUCTION_LOSSES)}")


def transport_cost(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Compare patches (L, n, 3) with (L, m, 3) by the earth mover's distance; returns the mean squared distance (L,).

    Every point carries the same share of its patch. Where n and m differ, points are repeated up to their least common
    multiple: with 16 against 8 each of the 8 is met by two. Sizes without a common factor, such as 32 and 31, grow to their
    product (992) and take accordingly long.
    """
    n, m = rebuilt.shape[1], target.shape[1]
    size = math.lcm(n, m)
    rebuilt, target = rebuilt.repeat_interleave(size // n, 1), target.repeat_interleave(size // m, 1)  # (L, size, 3)
    return emd(rebuilt, target, eps=EMD_EPS, bijective=True)[0].mean(1)


def feature_distance(features: Tensor, targets: Tensor) -> Tensor:
    """Compare features (..., C) with targets of the same shape by direction: squared distance of unit vectors, (...), 0 to 4."""
    a, b = (F.normalize(at_least_float(values), dim=-1, eps=1e-12) for values in (features, targets))
    return (a - b).square().sum(-1)


def regression_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compare predictions (B, M) with targets (B, M) standardised within each sample (unbiased variance): mean squared error.

    Args:
        valid: (B, M) bool, True = takes part.
    """
    prediction, target = at_least_float(prediction), at_least_float(target)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    count = valid.sum(1, keepdim=True)
    centered = (target - (target * valid).sum(1, keepdim=True) / count.clamp(min=1)) * valid
    variance = centered.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    errors = (prediction - centered / (variance + 1e-6).sqrt()).square()
    return (errors * valid).sum() / count.sum().clamp(min=1)


def rank_correlation(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return Kendall's tau of predictions (B, M) with targets (B, M) within samples, over all pairs of the batch: a scalar, -1 to 1.

    Pairs with equal targets do not count; a pair with equal predictions counts as half right.

    Args:
        valid: (B, M) bool, True = takes part.
    """
    difference, harder = _pairs(prediction, target, valid)
    return torch.where(harder, difference.sign(), 0.0).sum() / harder.sum().clamp(min=1)


def _pairs(prediction: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return p_b - p_a (B, M, M) in fp32 and where t_b > t_a."""
    prediction, target = at_least_float(prediction), at_least_float(target)
    difference = prediction.unsqueeze(1) - prediction.unsqueeze(2)
    harder = target.unsqueeze(1) > target.unsqueeze(2)
    if valid is not None:
        harder = harder & valid.unsqueeze(1) & valid.unsqueeze(2)
    return difference, harder


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smooth: float = 0.0) -> Tensor:
    """Compare logits (B, classes) with labels (B,) int64; returns the mean over the batch, computed in fp32.

    The target is `1 - smooth` for the true class and `smooth / (classes - 1)` for each of the others. 0 is plain cross entropy.

    Note:
        PyTorch's `label_smoothing` spreads over all classes, the true one included, and gives other numbers
        (`tests/models/test_classifier.py`).
    """
    logits = at_least_float(logits)
    if smooth == 0:
        return F.cross_entropy(logits, labels)
    others = logits.shape[1] - 1
    if others < 1:
        raise ValueError("smoothed_cross_entropy: smooth needs at least 2 classes, logits have 1; set smooth to 0")
    log_p = F.log_softmax(logits, dim=1)  # (B, classes)
    true = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)  # (B,)
    return -((1 - smooth) * true + smooth / others * (log_p.sum(1) - true)).mean()
