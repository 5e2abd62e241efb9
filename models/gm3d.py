"""GeoMask3D: masks that seek the patches that are hard to rebuild (GM3D, arXiv 2405.12419), around Point-MAE and around Point-M2AE.

A second decoder predicts how hard each patch is. Its running average goes by the complete cloud and chooses what to hide; a frozen,
pre-trained model of the base method gives the features that hidden patches should have. Both belong to the guide
(`tools/guides/gm3d.py`). The variant around Point-M2AE is in the paper, its code is not public: what follows from Point-M2AE's own rules is
taken from there; the choices that are ours are listed in docs/deviations.md.

Shapes: `B` batch, `G` groups, `V` visible and `M` hidden groups of a sample on the guided scale, `K` points per patch, `C` channels, `L`
hidden patches of the batch on the rebuilt scale; scale index 0 = finest.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from extensions import gather
from models.base import MaskedAutoencoder
from models.classifier import SingleScaleClassifier, SingleScaleClassifierConfig
from models.hierarchical import HierarchicalMAEConfig
from models.layers.embed import position_embed
from models.layers.group import Pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.packing import Packing, Rows, plan_packing
from models.layers.transformer import DecoderBlocks
from models.losses import MeanLoss, RankingLoss, feature_distance, rank_correlation, regression_loss
from models.masking import curriculum, guided_mask
from models.point_m2ae import PointM2AE
from models.registry import MODELS
from models.single_scale import (
    POSITION_HIDDEN,
    MaskedTransformerConfig,
    SingleScaleEncoder,
    SingleScaleMAE,
    SingleScaleMAEConfig,
    with_placeholders,
)
from models.teachers import Complete, FrozenTeacher, Spread

METHOD = "gm3d"
# What the branch that predicts complexity is called in a checkpoint.
COMPLEXITY_KEYS = ("mask_token_loss_pred", "MAE_decoder_loss_pred.", "increase_dim_2.")
# What a user who draws what a checkpoint of feature mode rebuilds should know.
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
    teacher: str | None = None  # feature mode: checkpoint of the base method, or a name of weights
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
        """Part of the hidden patches that is guided at the end of the curriculum."""
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
        """Check that there are patches to hide, to leave visible and to guide among the groups of the scale that is guided.

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
    """What a guide gives to a step, apart from the mask.

    Attributes:
        weights: of the feature and the point loss.
        guided: how many of the hidden groups of a sample were chosen by score.
        scores: (B, G) what the averaged teacher expected of each patch.
        teacher, complete: feature mode: the frozen teacher, and what it makes of the complete cloud.
        spread: of the features of the averaged teacher, for the log.
    """

    weights: tuple[float, float]
    guided: int
    scores: Tensor
    teacher: FrozenTeacher | None = None
    complete: Complete | None = None
    spread: Spread | None = None


def base_keys(config: Any, name: str) -> Any:
    """Return the keys that the base method called `name` has, as its dataclass."""
    kind = MODELS.entry(name).config
    return kind(**{entry.name: getattr(config, entry.name) for entry in fields(kind)} | {"NAME": name})


class GuidedMAE(MaskedAutoencoder):
    """A masked autoencoder that learns which of its patches are hard; parameters carry the released names.

    A method says what `guided_token` and `guided_position` are, and passes `losses` what it has rebuilt.
    """

    taught = True

    def __init__(self, config: Any):
        super().__init__(config)
        guidance = config.guidance
        self.picture_hint = UNTRAINED_HEAD if guidance.mode == "feature" else None
        self.mean = MeanLoss()
        self.ranking = RankingLoss()

    def build_complexity(self, width: int, num_heads: int, drop_path_rate: float) -> nn.Sequential:
        """Create the branch that predicts complexity: `mask_token_loss_pred`, and `MAE_decoder_loss_pred` with its `norm`.

        Returns its head, which the model keeps as `increase_dim_2` after its other parts.
        """
        guidance = self.config.guidance
        self.mask_token_loss_pred = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token_loss_pred.requires_grad_(not guidance.shared_mask_token)
        depth = DEPTHS[guidance.mode] if guidance.depth is None else guidance.depth
        self.MAE_decoder_loss_pred = DecoderBlocks(width, depth, num_heads, drop_path_rate, attention_first=True)
        return nn.Sequential(
            PointwiseConv(width, guidance.width, before_norm=True),
            BatchNorm(guidance.width),
            nn.LeakyReLU(0.2),
            PointwiseConv(guidance.width, width),
        )

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the groups of the coarsest scale to hide uniformly, without a guide: (B, G) bool, True = hidden."""
        centers = pyramid.centers[-1]
        return guided_mask(centers.new_zeros(centers.shape[:2]), self.masked_count, 0, generator=generator)

    @property
    def guided_token(self) -> Tensor:
        """The mask token of the decoder that rebuilds, (1, C) or (1, 1, C)."""
        raise NotImplementedError(f"{type(self).__name__}.guided_token")

    def guided_position(self, centers: Tensor) -> Tensor:
        """Return the positions (B, T, C) that the decoder of the guided scale adds to tokens at centers (B, T, 3)."""
        raise NotImplementedError(f"{type(self).__name__}.guided_position")

    def predict_complexity(self, tokens: Tensor, centers: Tensor) -> Tensor:
        """Predict how hard each group is to rebuild: (B, T), any scale, only the order matters.

        Args:
            tokens: (B, V, C) encoded, of the visible groups.
            centers: (B, T, 3), T = V + M, of the visible groups and then of the hidden ones.
        """
        own = self.guided_token if self.config.guidance.shared_mask_token else self.mask_token_loss_pred
        tokens = with_placeholders(tokens, own, centers.shape[1])
        tokens = self.MAE_decoder_loss_pred(tokens, self.guided_position(centers))
        rows = self.MAE_decoder_loss_pred.norm(tokens).flatten(0, 1)
        return self.increase_dim_2(rows).mean(-1).view(tokens.shape[:2])  # the head's outputs are averaged

    def complexity(self, pyramid: Pyramid) -> Tensor:
        """Predict how hard each group is to rebuild, (B, G), with nothing hidden."""
        return self.predict_complexity(self.patch_tokens(None, pyramid), pyramid.centers[-1])

    def hidden_complexity(self, pyramid: Pyramid, visible: Tensor, mask: Packing, hidden: Packing) -> Tensor:
        """Predict how hard each hidden group of the coarsest scale is to rebuild, (B, M), from visible tokens (B, V, C)."""
        centers = gather(pyramid.centers[-1], torch.cat([mask.order, hidden.order], dim=1))
        return self.predict_complexity(visible, centers)[:, visible.shape[1] :]

    def distil(
        self, targets: Targets, features: Tensor, complete: Complete, centers: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare features of hidden patches, and the points that the teacher decodes from them, with the complete cloud's.

        Args:
            features: (L, C), or (B, M, C) where the teacher decodes the patches of a sample together.
            complete: what it made of the same patches, features of the same shape and points (..., K, 3).
            centers: (..., 3).

        Returns:
            the decoded points (..., K, 3), and the two losses of each patch.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.guidance.detach_chamfer):
            rebuilt = targets.teacher.rebuild(features, centers)
        flat = (points.flatten(0, -3) for points in (rebuilt, complete.patches))
        return rebuilt, {
            "loss_feature": feature_distance(features, complete.features).flatten(),
            "loss_chamfer": self.criterion.each(*flat),
        }

    def losses(
        self,
        parts: dict[str, Tensor],
        real: Tensor,
        prediction: Tensor,
        difficulty: Tensor,
        hidden: Packing,
        targets: Targets | None,
    ) -> dict[str, Tensor]:
        """Add up the losses of a step; returns scalars by name, "loss" and those to log, and "complexity" (B, M).

        Args:
            parts: "loss_feature" and "loss_chamfer", or the latter alone: (L,), one value a rebuilt patch.
            real: (L,) bool, which of them are of hidden patches.
            prediction: (B, M) predicted complexity of the hidden groups.
            difficulty: (B, G) what it should have been, up to its order; without gradient.
            hidden: the hidden groups; `valid` says of which the difficulty is known.
        """
        difficulty, valid = difficulty.gather(1, hidden.order), hidden.valid
        out = {name: self.mean(values, real) for name, values in parts.items()}
        learn = self.ranking if self.config.guidance.relative else regression_loss
        out["loss_ranking"] = learn(prediction, difficulty, valid)
        weights = dict(zip(("loss_feature", "loss_chamfer"), targets.weights if targets else (1.0, 1.0), strict=True))
        with torch.no_grad():
            logged = {"log_rank_correlation": rank_correlation(prediction, difficulty, valid)}
            if targets is not None:
                expected = targets.scores.gather(1, hidden.order)
                logged["log_guide_rank_correlation"] = rank_correlation(expected, difficulty, valid)
                logged["log_guided_fraction"] = difficulty.new_full((), targets.guided / self.masked_count)
                if targets.spread is not None:
                    logged |= {"log_target_std": targets.spread.deviation, "log_target_rank": targets.spread.rank}
        total = sum((weights.get(name, 1.0) * value for name, value in out.items()), start=difficulty.new_zeros(()))
        return {"loss": total, **out, **logged, "complexity": prediction}


def freeze(*parts: nn.Module) -> None:
    """Keep parts that get no gradient in the optimizer's groups, without one."""
    for part in parts:
        part.requires_grad_(False)


@dataclass
class GM3DConfig(SingleScaleMAEConfig):
    """Keys of GM3D around Point-MAE: those of Point-MAE, and `guidance`."""

    NAME: str = "GM3D"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def __post_init__(self):
        self.guidance.check(self.num_group, self.transformer_config.mask_ratio)
        super().__post_init__()
        if self.transformer_config.mask_type != "rand":
            raise ValueError("model.transformer_config.mask_type: GM3D chooses patches one by one; set it to rand")

    def base(self) -> SingleScaleMAEConfig:
        """Return the keys of the base method alone."""
        return base_keys(self, "Point_MAE")


class GM3DEncoder(SingleScaleEncoder):
    """Point-MAE's encoder as GM3D names and initialises it: PyTorch's own way."""

    norm_name = "norm_p"
    attention_first = True
    truncated = False


@MODELS.register("GM3D", config=GM3DConfig)
class GM3D(GuidedMAE, SingleScaleMAE):
    """GeoMask3D around Point-MAE.

    Without targets, or without a teacher in them, hidden patches are rebuilt by the model's own head.
    """

    method = METHOD
    own_keys = ("MAE_encoder.norm_p.", "norm_p.")
    encoder_class = GM3DEncoder

    def __init__(self, config: GM3DConfig):
        super().__init__(config)
        inner, guidance = config.transformer_config, config.guidance
        self.masked_count = guidance.masked_count(config.num_group, inner.mask_ratio)

    def build_parts(self, config: MaskedTransformerConfig) -> None:
        """Create all parts, in the released order."""
        width = config.trans_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.MAE_encoder = self.encoder_class(config)
        self.MAE_decoder = self.build_decoder(config, config.decoder_depth)
        head = self.build_complexity(width, config.decoder_num_heads, config.drop_path_rate)
        self.norm_p = nn.LayerNorm(width)  # released, never used
        self.decoder_pos_embed = position_embed(width, POSITION_HIDDEN)
        self.increase_dim_2 = head
        self.increase_dim_just_network_without_feature = nn.Sequential(PointwiseConv(width, 3 * self.config.group_size))
        freeze(self.norm_p)
        if self.config.guidance.mode == "feature":
            freeze(self.increase_dim_just_network_without_feature)  # the teacher's head rebuilds the points

    @property
    def guided_token(self) -> Tensor:
        """The mask token of the decoder that rebuilds, (1, 1, C)."""
        return self.mask_token

    def guided_position(self, centers: Tensor) -> Tensor:
        """Return the positions (B, T, C) that the decoder adds to tokens at centers (B, T, 3)."""
        return self.decoder_pos_embed(centers)

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Targets | None = None) -> dict[str, Tensor]:
        """Encode what is visible, decode features and complexity, compare.

        Returns what Point-MAE returns, the single losses, and "complexity" (B, M): predicted for the hidden groups, in index order.
        """
        rows, hidden = self.hidden_rows(masks), plan_packing(~masks[0].visible, self.masked_count)
        visible = self.encode_visible(pyramid, masks)  # (B, V, C)
        tokens = self.decode(pyramid, masks, visible, rows)[:, visible.shape[1] :]
        features = self.MAE_decoder.norm(tokens)  # (B, M, C)
        complexity = self.hidden_complexity(pyramid, visible, masks[0], hidden)  # (B, M)

        if targets is None or targets.teacher is None:
            rebuilt = self.increase_dim_just_network_without_feature(features)  # (B, M, 3 * K)
            out = self.pair(rebuilt.flatten(0, 1), pyramid, masks, rows)
            parts = {"loss_chamfer": self.criterion.each(out["rebuilt"], out["target"])}
        else:
            complete = Complete(*(rows.take(part).unflatten(0, hidden.order.shape) for part in targets.complete))
            rebuilt, parts = self.distil(targets, features, complete, gather(pyramid.centers[0], hidden.order))
            out = self.pair(rebuilt.flatten(0, 1), pyramid, masks, rows)
        difficulty = rows.spread(sum(parts.values()).detach())
        return {**self.losses(parts, rows.valid, complexity, difficulty, hidden, targets), **out}


@dataclass
class GM3DClassifierConfig(SingleScaleClassifierConfig):
    """Keys of GM3D's classifier: those of Point-MAE's."""

    NAME: str = "GM3D_PointTransformer"


@MODELS.register("GM3D_PointTransformer", config=GM3DClassifierConfig)
class GM3DClassifier(SingleScaleClassifier):
    """Fine-tune GM3D's encoder to classify; its final norm is called `norm_p`. The part segmenter is Point-MAE's, as published.

    Note:
        A checkpoint holds two norms for it, the encoder's and one that was never trained. The encoder's is taken; with `norm_overwrite` in
        `legacy` the other one, as released (`tests/parity/test_gm3d.py`).
    """

    method = METHOD
    published_rounds = 299
    LEGACY = ("norm_overwrite",)
    own_keys = ("norm_p.",)
    norm_name = "norm_p"
    ignored_keys = (
        "mask_token",
        "decoder_pos_embed.",
        "MAE_decoder.",
        "increase_dim_just_network_without_feature.",
        *COMPLEXITY_KEYS,
    )

    @property
    def later_key_wins(self) -> bool:
        """Whether the norm that comes later in a checkpoint is taken."""
        return "norm_overwrite" in self.legacy


@dataclass
class GM3DPointM2AEConfig(HierarchicalMAEConfig):
    """Keys of GM3D around Point-M2AE: those of Point-M2AE, and `guidance`."""

    NAME: str = "GM3D_Point_M2AE"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def __post_init__(self):
        self.guidance.check(self.num_groups[-1], self.mask_ratio)
        super().__post_init__()
        if not self.multi_scale_mask:
            raise ValueError("model.multi_scale_mask: false is for Point-M2AE and I2P-MAE; GM3D guides the coarsest scale alone")

    def base(self) -> HierarchicalMAEConfig:
        """Return the keys of the base method alone."""
        return base_keys(self, "Point_M2AE")


@MODELS.register("GM3D_Point_M2AE", config=GM3DPointM2AEConfig)
class GM3DPointM2AE(GuidedMAE):
    """GeoMask3D around Point-M2AE, which is kept as `base`: the coarsest scale is guided, the scale that Point-M2AE rebuilds distilled.

    Without targets, or without a teacher in them, hidden patches are rebuilt by the model's own head.
    """

    method = "gm3d-point-m2ae"
    LEGACY = PointM2AE.LEGACY
    own_keys = ("base.h_encoder.",)

    def __init__(self, config: GM3DPointM2AEConfig):
        super().__init__(config)
        guidance = config.guidance
        self.masked_count = guidance.masked_count(config.num_groups[-1], config.mask_ratio)
        self.base = PointM2AE(config.base())
        self.decoded_scale = self.base.decoded_scale
        self.increase_dim_2 = self.build_complexity(config.encoder_dims[-1], config.num_heads, config.drop_path_rate)
        if guidance.mode == "feature":
            freeze(self.base.rec_head)  # the teacher's head rebuilds the points

    @property
    def guided_token(self) -> Tensor:
        """The mask token of the decoder that rebuilds, (1, C)."""
        return self.base.mask_token

    def guided_position(self, centers: Tensor) -> Tensor:
        """Return the positions (B, T, C) that the decoder adds to coarsest tokens at centers (B, T, 3)."""
        return self.base.decoder_pos_embeds[0](centers)

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Targets | None = None) -> dict[str, Tensor]:
        """Encode what is visible, decode features and complexity, compare.

        Returns what Point-M2AE returns, the single losses, and "complexity" (B, M): predicted for the hidden coarsest groups, in index
        order.
        """
        base, scale = self.base, self.decoded_scale
        visible = base.encode_visible(pyramid, masks)  # (B, V, C) a scale
        rows = base.hidden_rows(masks)
        features = rows.take(base.decode(pyramid, masks, visible))  # (L, C)
        hidden = plan_packing(~masks[-1].visible, self.masked_count)
        complexity = self.hidden_complexity(pyramid, visible[-1], masks[-1], hidden)  # (B, M)

        if targets is None or targets.teacher is None:
            out = self.pair(base.rec_head(features), pyramid, masks, rows)
            parts = {"loss_chamfer": self.criterion.each(out["rebuilt"], out["target"])}
        else:
            complete = Complete(*(rows.take(part) for part in targets.complete))
            rebuilt, parts = self.distil(targets, features, complete, rows.take(pyramid.centers[scale]))
            out = self.pair(rebuilt, pyramid, masks, rows)
        difficulty, known = carry_up(
            sum(parts.values()).detach(), rows, ~masks[scale].visible, pyramid.idx[scale + 1 :]
        )
        hidden = hidden._replace(valid=hidden.valid & known.gather(1, hidden.order))
        return {**self.losses(parts, rows.valid, complexity, difficulty, hidden, targets), **out}

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as normed tokens (B, G, C) of the coarsest scale."""
        return self.base.patch_tokens(points, pyramid)


def carry_up(values: Tensor, rows: Rows, hidden: Tensor, member_idx: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Average the losses of hidden patches over the groups that hold them, scale by scale up to the coarsest.

    Args:
        values: (L,) one a row.
        rows: the hidden patches.
        hidden: (B, G) bool, which these are.
        member_idx: `Pyramid.idx` of the scales above, (B, G, K) each.

    Returns:
        (B, G_coarsest) means, and bool: True where a group holds a hidden patch at all.
    """
    total, known = rows.spread(values), hidden
    for idx in member_idx:
        B, G, K = idx.shape
        members, there = (part.gather(1, idx.reshape(B, -1)).view(B, G, K) for part in (total, known))
        count = there.sum(2)
        # In double precision, where the sum of a few floats does not depend on their order: groups with the same members are as hard as
        # each other, and rounding must not make a pair of them for the ranking loss.
        total = ((members * there).double().sum(2) / count.clamp(min=1)).to(values.dtype)
        known = count > 0
    return total, known
