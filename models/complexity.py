"""What GeoMask3D adds to a masked autoencoder: a branch that predicts how hard each patch is, and the losses around it.

Shapes: `B` batch, `G` groups, `V` visible and `M` hidden groups of a sample, `K` points per patch, `C` channels, `L` hidden patches of the
batch that are rebuilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.layers.group import Pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.losses import mean_loss, rank_correlation, ranking_loss, regression_loss
from models.masking import KnownMask, curriculum, guided_mask, hide_groups
from models.single_scale import decoder_blocks, with_placeholders
from models.teachers import Complete, FrozenTeacher

# What the branch is called in a checkpoint.
COMPLEXITY_KEYS = ("mask_token_loss_pred", "MAE_decoder_loss_pred.", "increase_dim_2.")
# What a look at a checkpoint of feature mode should know.
UNTRAINED_HEAD = (
    "feature mode does not train the model's own head for points: what is rebuilt here says nothing; "
    "the report of the pre-training run shows what the teacher decodes from the features"
)
# Largest part of the hidden patches that the guide chooses, and blocks of the complexity decoder, as released.
FRACTIONS = {"feature": 0.8, "usual": 0.5}
DEPTHS = {"feature": 12, "usual": 4}


@dataclass
class GuidanceConfig:
    """Keys of the guidance; defaults as released."""

    mode: Literal["feature", "usual"] = "feature"  # distil a pre-trained teacher's features, or rebuild points
    teacher: str | None = None  # feature mode: checkpoint of the base method
    teacher_sha256: str | None = None  # a run fills it in; where it is given, the file must be that one
    fraction: float | None = (
        None  # of the hidden patches, guided at the end of the curriculum; None: 0.8 feature, 0.5 usual
    )
    half: bool = False  # reach it after half of the curriculum
    epochs: int | None = None  # length of the curriculum; None = the run
    masked_patches: int | None = None  # hidden in each cloud; None: G - int(G * (1 - mask_ratio)), as released
    weights: list[float] = field(
        default_factory=lambda: [13.889, 1000.0]
    )  # of features and points, late; 1 and 1 before
    weights_from: int = 15  # first epoch with these weights
    detach_chamfer: bool = True  # feature mode, as released: the point term has no gradient
    relative: bool = True  # learn the order of the patches; else their standardised loss
    ema_decay: list[float] = field(default_factory=lambda: [0.999, 0.9999])  # rises linearly from the one to the other
    ema_epochs: int = 100  # ... over so many epochs
    shared_mask_token: bool = False  # one token for both decoders
    depth: int | None = None  # blocks of the complexity decoder; None: 12 in feature mode, 4 in usual mode
    width: int = 1024  # hidden width of its head
    map_clouds: int = 4  # clouds whose complexity map the report shows

    def __post_init__(self):
        for key in ("fraction", *(("ema_decay",) if len(self.ema_decay) == 2 else ())):
            values = getattr(self, key)
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not 0 <= value <= 1:
                    raise ValueError(f"{key}: {values} must lie between 0 and 1")
        for key in ("weights", "ema_decay"):
            if len(getattr(self, key)) != 2:
                raise ValueError(f"{key}: {getattr(self, key)} must be two numbers")
        lowest = {"epochs": 1, "weights_from": 0, "ema_epochs": 1, "depth": 1, "width": 1, "map_clouds": 0}
        for key, low in lowest.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise ValueError(f"{key}: {value} must be at least {low}")

    @property
    def final_fraction(self) -> float:
        return FRACTIONS[self.mode] if self.fraction is None else self.fraction

    def masked_count(self, groups: int, ratio: float) -> int:
        """Return how many of the groups are hidden in each cloud.

        Note:
            As released the visible ones are truncated: 39 of 64 at a ratio of 0.6, where Point-MAE hides 38. `masked_patches` sets another
            number (`tests/models/test_gm3d.py`).
        """
        return groups - int(groups * (1 - ratio)) if self.masked_patches is None else self.masked_patches

    def guided_count(self, masked: int, epoch: int, epochs: int) -> int:
        """Return how many of the hidden patches the guide chooses in an epoch of a curriculum of `epochs`."""
        return int(masked * curriculum(epoch, epochs, self.final_fraction, half=self.half))

    def decay(self, epoch: int) -> float:
        """Return the decay of the averaged teacher in an epoch."""
        first, last = self.ema_decay
        return last if epoch >= self.ema_epochs else first + epoch / self.ema_epochs * (last - first)

    def loss_weights(self, epoch: int) -> tuple[float, float]:
        """Return the weights of the feature and the point loss in an epoch."""
        return (self.weights[0], self.weights[1]) if epoch >= self.weights_from else (1.0, 1.0)

    def check(self, groups: int, ratio: float) -> None:
        """Check that there are patches to hide, to show and to guide among the groups of the scale that is guided.

        Raises:
            ValueError: naming the key and its value.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"model.mask_ratio: {ratio} must lie between 0 and 1")
        masked = self.masked_count(groups, ratio)
        if not 0 < masked < groups:
            raise ValueError(
                f"model: {masked} of {groups} patches would be hidden on the scale that is guided; hide some and not all: "
                "change mask_ratio, guidance.masked_patches or the number of groups"
            )
        if self.final_fraction > 0 and int(masked * self.final_fraction) < 1:
            raise ValueError(
                f"model.guidance.fraction: {self.final_fraction} of {masked} hidden patches is less than one, so none would be guided; "
                "raise it or the number of groups, or set it to 0 for random masks"
            )


@dataclass(frozen=True)
class Targets:
    """What a guide gives to a step, beside the mask.

    Attributes:
        weights: of the feature and the point loss.
        masked: hidden groups in each sample.
        guided: how many of them were chosen by score.
        scores: (B, G) what the averaged teacher expected of each patch.
        teacher, complete: feature mode: the frozen teacher, and what it makes of the complete cloud.
    """

    weights: tuple[float, float]
    masked: int
    guided: int
    scores: Tensor
    teacher: FrozenTeacher | None = None
    complete: Complete | None = None


def base_keys(config: Any, kind: type) -> Any:
    """Return the keys of the base method alone, as its dataclass `kind`."""
    return kind(**{entry.name: getattr(config, entry.name) for entry in fields(kind) if entry.name != "NAME"})


def choose_hidden(
    model: nn.Module,
    pyramid: Pyramid,
    masked: Tensor | KnownMask | None,
    targets: Targets | None,
    generator: torch.Generator | None,
) -> KnownMask:
    """Return the groups of the coarsest scale to hide and how many they are in each sample; random ones by default."""
    centers = pyramid.centers[-1]
    if masked is None:
        scores = torch.zeros(centers.shape[:2], device=centers.device)
        return KnownMask(guided_mask(scores, model.masked_count, 0, generator=generator), model.masked_count)
    if targets is not None and not isinstance(masked, KnownMask):
        masked = KnownMask(masked, targets.masked)  # The guide knows how many it hid.
    return hide_groups(centers, masked, ratio=0.0, method="GM3D")


def build_complexity(
    model: nn.Module, *, width: int, num_heads: int, drop_path_rate: float, guidance: GuidanceConfig
) -> nn.Sequential:
    """Give a model the branch that predicts complexity: `mask_token_loss_pred`, and `MAE_decoder_loss_pred` with its `norm`.

    Returns its head, which the model keeps as `increase_dim_2` behind its other parts.
    """
    model.mask_token_loss_pred = nn.Parameter(torch.zeros(1, 1, width))
    model.mask_token_loss_pred.requires_grad_(not guidance.shared_mask_token)
    depth = DEPTHS[guidance.mode] if guidance.depth is None else guidance.depth
    model.MAE_decoder_loss_pred = decoder_blocks(width, depth, num_heads, drop_path_rate, timm_order=True)
    return nn.Sequential(
        PointwiseConv(width, guidance.width, before_norm=True),
        BatchNorm(guidance.width),
        nn.LeakyReLU(0.2),
        PointwiseConv(guidance.width, width),
    )


def predict_complexity(model: nn.Module, visible: Tensor, placeholder: Tensor, position: Tensor) -> Tensor:
    """Predict how hard each group is to rebuild, from the visible ones: (B, T), any scale, only the order matters.

    Args:
        visible: (B, V, C) encoded tokens.
        placeholder: token (1, 1, C) of a hidden group.
        position: (B, T, C), T = V + M, of the visible groups and then of the hidden ones.
    """
    tokens = with_placeholders(visible, placeholder, position.shape[1] - visible.shape[1])
    tokens = model.MAE_decoder_loss_pred.norm(model.MAE_decoder_loss_pred(tokens, position))  # (B, T, C)
    return model.increase_dim_2(tokens.flatten(0, 1)).mean(-1).view(tokens.shape[:2])  # the head's outputs are averaged


def guided_losses(
    guidance: GuidanceConfig,
    parts: dict[str, Tensor],
    *,
    prediction: Tensor,
    difficulty: Tensor,
    hidden: Tensor,
    targets: Targets | None,
    synchronise: bool,
    valid: Tensor | None = None,
    real: Tensor | None = None,
) -> dict[str, Tensor]:
    """Add up the losses of a step; returns scalars by name, "loss" and those to log.

    Args:
        parts: "loss_feature" and "loss_chamfer", or the latter alone: (L,) or (B, M), one value a rebuilt patch.
        prediction: (B, M) predicted complexity of the hidden groups.
        difficulty: (B, M) what it should have been, up to its order; it gets no gradient.
        valid: (B, M) bool, groups whose difficulty is known; None = all.
        hidden: (B, M) int64, the hidden groups.
        synchronise: average over the patches of all processes, as training does.
        real: (L,) bool, which values of the parts are of rebuilt patches; None = all.
    """
    difficulty = difficulty.detach()
    out = {name: mean_loss(values.flatten(), real, synchronise=synchronise) for name, values in parts.items()}
    if guidance.relative:
        out["loss_ranking"] = ranking_loss(prediction, difficulty, valid, synchronise=synchronise)
    else:
        out["loss_ranking"] = regression_loss(prediction, difficulty, valid)
    weights = dict(zip(("loss_feature", "loss_chamfer"), targets.weights if targets else (1.0, 1.0), strict=True))
    with torch.no_grad():
        logged = {"log_rank_correlation": rank_correlation(prediction, difficulty, valid)}
        if targets is not None:
            expected = targets.scores.gather(1, hidden)
            logged["log_guide_rank_correlation"] = rank_correlation(expected, difficulty, valid)
            logged["log_guided_fraction"] = difficulty.new_full((), targets.guided / targets.masked)
    total = sum((weights.get(name, 1.0) * value for name, value in out.items()), start=difficulty.new_zeros(()))
    return {"loss": total, **out, **logged}


def freeze(parts: Sequence[nn.Module]) -> None:
    """Keep parts that get no gradient in the optimizer's groups, without one."""
    for part in parts:
        part.requires_grad_(False)
