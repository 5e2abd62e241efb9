"""Part segmenters: the tokens of any encoder, carried over to the points, and a head that names the part of each.

A method adds its segmenter with one `SegmenterPart` (how its encoder is built and what its tokens are), one configuration
dataclass and one registered function; see Point-M2AE's and Point-MAE's at the end.

Shapes: `B` batch, `N` points, `G` groups, `C` channels of a token, `F` of a point, `S` of a cloud, `P` parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import peak_and_mean
from models import classifier_parts
from models.hierarchical import HierarchicalEncoder
from models.inter_mae import GatedEncoderConfig
from models.layers.drop import Dropout
from models.layers.gated import GatedPatchEmbed
from models.layers.group import Pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.propagate import PointPropagation
from models.legacy import legacy_names
from models.point_m2ae import HierarchyConfig
from models.registry import MODELS
from models.single_scale import SingleScaleConfig, build_encoder, check_patches

HEAD_DROPOUT = 0.5
LEAK = 0.2  # slope below zero of the activation of the category
NEIGHBORS = 3  # that a point is interpolated from

Tokens = list[tuple[Tensor, Tensor]]  # centers (B, G, 3) and tokens (B, G, C), one pair a scale


def check_segmenter_keys(config: Any, groups: int) -> None:
    """Check the keys that all segmenters have, and that the fewest groups of a scale are enough to interpolate from.

    Raises:
        ValueError: naming the key, its value and what is possible.
    """
    for key in ("num_parts", "num_categories", "label_width"):
        if getattr(config, key) < 1:
            raise ValueError(f"model.{key}: {getattr(config, key)} must be at least 1")
    for key in ("prop_widths", "head_widths"):
        widths = getattr(config, key)
        if not widths or min(widths) < 1:
            raise ValueError(f"model.{key}: {widths} must be one or more widths of at least 1")
    if groups < NEIGHBORS:
        raise ValueError(
            f"model: {groups} groups are too few; points are interpolated from {NEIGHBORS}, ask for more groups"
        )


@dataclass(frozen=True)
class Joining:
    """How tokens become features of points and a summary of the cloud.

    Args:
        build: (model, widths of the tokens, config) -> (F, S); gives the model its propagation under the published names.
        apply: (model, points (B, N, 3), tokens) -> features (B, N, F) in pieces of the channels, summary (B, S).
        summary_first: the head's first layer takes the summary and the category before the features, else after them.
    """

    build: Callable[[nn.Module, Sequence[int], Any], tuple[int, int]]
    apply: Callable[[nn.Module, Tensor, Tokens], tuple[list[Tensor], Tensor]]
    summary_first: bool


@dataclass(frozen=True)
class SegmenterPart:
    """What a method gives to its part segmenter.

    Args:
        method: its name, as in `--method`.
        build: gives a model the encoder's parts under their published names, at its top level, and returns the widths of
            its token sets.
        group: (model, points (B, N, 3)) -> their pyramid.
        tokens: (model, pyramid) -> centers and normed tokens of each set.
        joining: `BY_SCALE` or `BY_TAPS`.
        ignored: key prefixes that a pre-training checkpoint holds in vain.
        renamed: key prefixes of a pre-training checkpoint and what they are called here.
        methods: further methods whose pre-training checkpoints hold this encoder.
        legacy: names of published faults that the encoder can switch back on.
        missing_with_legacy: key prefixes that a pre-training checkpoint lacks where one of them is on.
    """

    method: str
    build: Callable[[nn.Module, Any], list[int]]
    group: Callable[[nn.Module, Tensor], Pyramid]
    tokens: Callable[[nn.Module, Pyramid], Tokens]
    joining: Joining
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    missing_with_legacy: tuple[str, ...] = ()


class PartSegmenter(nn.Module):
    """Encode, carry the tokens to the points, name the part of each point.

    Args:
        config: dataclass with the keys of the encoder and those that `check_segmenter_keys` checks.
        part: the method's encoder.
    """

    HEAD = ("label_conv.", "propagation", "convs", "bns")
    checkpoint_refused = (("cls_head_finetune.", "a fine-tuned classifier"),)

    def __init__(self, config: Any, part: SegmenterPart):
        super().__init__()
        self.config = config
        self.part = part
        self.method = part.method
        self.checkpoint_ignored = part.ignored
        self.checkpoint_renamed = part.renamed
        self.checkpoint_methods = (part.method, *part.methods)
        faults = legacy_names(config.legacy, part.legacy)
        # A runner that tests wants none missing.
        self.checkpoint_missing = (*self.HEAD, *(part.missing_with_legacy if faults else ()))
        # The order of creation is the order of the published parameter lists.
        widths = part.build(self, config)
        self.label_conv = nn.Sequential(
            PointwiseConv(config.num_categories, config.label_width, bias=False),
            BatchNorm(config.label_width),
            nn.LeakyReLU(LEAK),
        )
        features, summary = part.joining.build(self, widths, config)
        self.constant_width = summary + config.label_width
        self._build_head([features + self.constant_width, *config.head_widths])

    def _build_head(self, widths: Sequence[int]) -> None:
        """Add `convs1`, `convs2`, ... and `bns1`, ...; the last convolution has no normalisation."""
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            setattr(self, f"convs{number}", PointwiseConv(before, after, before_norm=True))
        setattr(self, f"convs{len(widths)}", PointwiseConv(widths[-1], self.config.num_parts))
        for number, width in enumerate(widths[1:], start=1):
            setattr(self, f"bns{number}", BatchNorm(width))
        self.dropout = Dropout(HEAD_DROPOUT)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that pre-training gives."""
        return [p for name, p in self.named_parameters() if not name.startswith(self.HEAD)]

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3); no weight takes part."""
        return self.part.group(self, points)

    def forward(self, points: Tensor, category: Tensor, *, pyramid: Pyramid | None = None) -> Tensor:
        """Segment clouds whose category is known.

        Args:
            points: (B, N, 3).
            category: (B,) int64 below `num_categories`, or one-hot (B, num_categories) or (B, 1, num_categories).
            pyramid: what `group` makes of the points, where it is known already.

        Returns:
            log-probabilities (B, N, P), fp32, over the parts of all categories.

        Raises:
            ValueError: too few points for the groups, or a single cloud in training mode, where the category's batch
                normalisation has no statistics.
        """
        tokens = self.part.tokens(self, self.group(points) if pyramid is None else pyramid)
        features, summary = self.part.joining.apply(self, points, tokens)
        if category.dim() == 1:
            category = F.one_hot(category, self.config.num_categories)
        label = self.label_conv(category.flatten(1).to(summary.dtype))  # (B, label_width)
        return F.log_softmax(self._head(features, torch.cat([summary, label], dim=1)).float(), dim=-1)

    def _head(self, features: Sequence[Tensor], constant: Tensor) -> Tensor:
        """Map features (B, N, F), in pieces, and what is constant over the points of a cloud (B, S') to logits (B, N, P).

        The first layer multiplies the constant channels once a cloud, and each piece by itself, and adds them up.
        """
        B, N, _ = features[0].shape
        weight, bias = self.convs1.weight.squeeze(-1), self.convs1.effective_bias()
        own, shared = self._columns(weight)
        rows = F.linear(constant, shared, bias).unsqueeze(1)
        for piece, columns in zip(features, own.split([piece.shape[-1] for piece in features], dim=1), strict=True):
            rows = F.linear(piece, columns) + rows  # (B, N, head_widths[0])
        rows = self.dropout(self.bns1.relu(rows.flatten(0, 1)))
        layers = len(self.config.head_widths)
        for number in range(2, layers + 1):
            rows = getattr(self, f"bns{number}").relu(getattr(self, f"convs{number}")(rows))
        return getattr(self, f"convs{layers + 1}")(rows).view(B, N, -1)

    def _columns(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split the first layer's weight (out, in) into the columns of the features and those of the constant channels."""
        constant = self.constant_width
        if self.part.joining.summary_first:
            return weight[:, constant:], weight[:, :constant]
        return weight[:, :-constant], weight[:, -constant:]

    def loss(self, log_probs: Tensor, parts: Tensor) -> Tensor:
        """Compare log-probabilities (B, N, P) with part ids (B, N) int64: negative log-likelihood, mean over all points."""
        return F.nll_loss(log_probs.flatten(0, 1), parts.flatten())


def _build_by_scale(model: nn.Module, widths: Sequence[int], config: Any) -> tuple[int, int]:
    model.propagations = nn.ModuleList(PointPropagation(width, config.prop_widths) for width in widths)
    features = len(widths) * config.prop_widths[-1]
    return features, features


def _join_by_scale(model: nn.Module, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
    features = [carry(points, *pair) for carry, pair in zip(model.propagations, tokens, strict=True)]
    return features, torch.cat([peak_and_mean(piece) for piece in features], dim=-1)


def _build_by_taps(model: nn.Module, widths: Sequence[int], config: Any) -> tuple[int, int]:
    model.propagation_0 = PointPropagation(sum(widths), config.prop_widths)
    return config.prop_widths[-1], 2 * sum(widths)


def _join_by_taps(model: nn.Module, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
    joined = torch.cat([taken for _, taken in tokens], dim=-1)  # (B, G, C)
    summary = torch.cat([joined.amax(1), joined.mean(1)], dim=-1)
    return [model.propagation_0(points, tokens[0][0], joined)], summary


# Point-M2AE: every scale has a propagation of its own; the summary is maximum plus mean over the points' features.
BY_SCALE = Joining(_build_by_scale, _join_by_scale, summary_first=True)
# Point-MAE: several depths of one scale are one wide token; the summary is maximum and mean over the tokens.
BY_TAPS = Joining(_build_by_taps, _join_by_taps, summary_first=False)


def build_normed_hierarchy(model: nn.Module, config: HierarchyConfig) -> list[int]:
    """Give a model `h_encoder` with the norms of pre-training; returns the widths of its scales."""
    model.h_encoder = HierarchicalEncoder(
        dims=config.encoder_dims,
        depths=config.encoder_depths,
        num_heads=config.num_heads,
        local_radius=config.local_radius,
        drop_path_rate=config.drop_path_rate,
        embed_widths=config.embed_widths,
    )
    return list(config.encoder_dims)


def encode_all_scales(model: nn.Module, pyramid: Pyramid) -> Tokens:
    """Encode a pyramid with nothing hidden; attention reaches as far as the local radius of each scale."""
    tokens = model.h_encoder(pyramid).tokens
    normed = [norm(taken) for norm, taken in zip(model.h_encoder.encoder_norms, tokens, strict=True)]
    return list(zip(pyramid.centers, normed, strict=True))


HIERARCHICAL = SegmenterPart(
    method="point-m2ae",
    build=build_normed_hierarchy,
    group=classifier_parts.group_scales,
    tokens=encode_all_scales,
    joining=BY_SCALE,
    ignored=(*classifier_parts.HIERARCHICAL.ignored, "rec_head", "clip_model."),  # the latter two are of I2P-MAE
    renamed=classifier_parts.HIERARCHICAL.renamed,
    methods=(*classifier_parts.HIERARCHICAL.methods, "i2p-mae"),
)


@dataclass
class PointM2AESegmenterConfig(HierarchyConfig):
    """Keys of Point-M2AE's part segmenter; defaults as published for ShapeNetPart."""

    NAME: str = "Point_M2AE_SEG"
    num_parts: int = 50  # of all categories together
    num_categories: int = 16
    label_width: int = 64  # channels of the category
    prop_widths: list[int] = field(default_factory=lambda: [1536, 1024])  # of each propagation
    head_widths: list[int] = field(default_factory=lambda: [1024, 512, 256])

    def __post_init__(self):
        super().__post_init__()
        check_segmenter_keys(self, min(self.num_groups))


@MODELS.register("Point_M2AE_SEG", config=PointM2AESegmenterConfig)
def point_m2ae_segmenter(config: PointM2AESegmenterConfig) -> PartSegmenter:
    """Build the part segmenter on Point-M2AE's encoder (Zhang et al. 2022, Sec. 4.2)."""
    return PartSegmenter(config, HIERARCHICAL)


def build_single_scale(model: nn.Module, config: Any) -> list[int]:
    """Give a model the single-scale encoder, without a class token; returns the width of each tap."""
    build_encoder(model, config)
    return [config.trans_dim] * len(config.taps)


def encode_with_taps(model: nn.Module, pyramid: Pyramid) -> Tokens:
    """Encode a pyramid with nothing hidden; the tokens after the blocks `taps`, each through the one norm, as published."""
    centers = pyramid.centers[0]
    tokens, position = model.encoder(pyramid.neighborhoods[0]), model.pos_embed(centers)  # (B, G, C)
    found, first = [], 0
    for tap in model.config.taps:
        tokens = model.blocks(tokens, position, first=first, stop=tap + 1)
        found.append((centers, model.norm(tokens)))
        first = tap + 1
    return found


SINGLE_SCALE = SegmenterPart(
    method="point-mae",
    build=build_single_scale,
    group=classifier_parts.group_patches,
    tokens=encode_with_taps,
    joining=BY_TAPS,
    # As published, GM3D's segmenter is this one: its encoder's norm goes by another name, and it has a second one in vain.
    ignored=(*classifier_parts.SINGLE_SCALE.ignored, *classifier_parts.GUIDED.ignored, "norm_p."),
    renamed=(("MAE_encoder.norm_p.", "norm."), ("MAE_encoder.", "")),
    methods=("gm3d",),
)


def check_taps(config: Any) -> None:
    """Check that `taps` are ascending blocks and end with the last one, so that every block is trained."""
    taps = config.taps
    if not taps or taps[0] < 0 or taps != sorted(set(taps)) or taps[-1] != config.depth - 1:
        raise ValueError(
            f"model.taps: {taps} must be ascending blocks from 0 on that end with the last one, {config.depth - 1}"
        )


@dataclass
class PointMAESegmenterConfig(SingleScaleConfig):
    """Keys of Point-MAE's part segmenter; defaults as published for ShapeNetPart."""

    NAME: str = "Point_MAE_SEG"
    num_group: int = 128
    group_size: int = 32
    taps: list[int] = field(default_factory=lambda: [3, 7, 11])  # blocks, from 0, after which tokens are taken
    num_parts: int = 50  # of all categories together
    num_categories: int = 16
    label_width: int = 64  # channels of the category
    prop_widths: list[int] = field(default_factory=lambda: [1536, 1024])
    head_widths: list[int] = field(default_factory=lambda: [512, 256])
    legacy: bool | list[str] = False

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_taps(self)
        check_segmenter_keys(self, self.num_group)


@MODELS.register("Point_MAE_SEG", config=PointMAESegmenterConfig, aliases=("pt", "get_model"))
def point_mae_segmenter(config: PointMAESegmenterConfig) -> PartSegmenter:
    """Build the part segmenter on Point-MAE's encoder (Pang et al. 2022, Sec. 4.2); `pt` is the name of its published module."""
    return PartSegmenter(config, SINGLE_SCALE)


def build_gated(model: nn.Module, config: Any) -> list[int]:
    """Give a model Inter-MAE's encoder, without a class token; returns the width of each tap.

    Note:
        The published segmenter has Point-MAE's patch embedding instead, which is filled with weights of the other computation as far as
        shapes agree: `old_patch_encoder` in `legacy` (`tests/models/test_part_segmenter.py`).
    """
    if "old_patch_encoder" in legacy_names(config.legacy, GATED.legacy):
        # Without a gate its own checkpoints have the keys of Point-MAE's segmenter.
        model.checkpoint_methods = (*model.checkpoint_methods, "point-mae")
        return build_single_scale(model, config)
    build_encoder(model, config, embed=partial(GatedPatchEmbed, gate=config.gate), timm_order=True)
    return [config.trans_dim] * len(config.taps)


GATED = replace(
    SINGLE_SCALE,
    method="inter-mae",
    build=build_gated,
    # The gate is without a place only where the old patch embedding is.
    ignored=(*classifier_parts.GATED.ignored, "encoder.first_trans."),
    renamed=(("MAE_encoder.", ""),),
    methods=(),
    legacy=("old_patch_encoder",),
    missing_with_legacy=tuple(
        f"encoder.{layer}.bias" for layer in ("first_conv.0", "first_conv.3", "second_conv.0", "second_conv.3")
    ),
)


@dataclass
class InterMAESegmenterConfig(PointMAESegmenterConfig, GatedEncoderConfig):
    """Keys of Inter-MAE's part segmenter: those of Point-MAE's, and the gate."""

    NAME: str = "Inter_MAE_SEG"


@MODELS.register("Inter_MAE_SEG", config=InterMAESegmenterConfig)
def inter_mae_segmenter(config: InterMAESegmenterConfig) -> PartSegmenter:
    """Build the part segmenter on Inter-MAE's encoder (Liu et al. 2023)."""
    return PartSegmenter(config, GATED)
