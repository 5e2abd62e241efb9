"""Part segmenters: the tokens of an encoder, carried over to the points, and a head that names the part of each.

A method's own is a subclass next to its autoencoder.

Shapes: `B` batch, `N` points, `G` groups, `C` channels of a token, `F` of a point, `S` of a cloud, `P` parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import peak_and_mean
from models.base import PointModel
from models.hierarchical import HierarchicalEncoder, HierarchyConfig
from models.layers.drop import Dropout
from models.layers.group import Pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.propagate import LinearPartHead, PointPropagation
from models.layers.transformer import Stack
from models.losses import at_least_float
from models.single_scale import PatchesConfig, SingleScaleConfig, SingleScaleParts
from models.tuning.config import TuneConfig

HEAD_DROPOUT = 0.5
LEAK = 0.2  # slope below zero of the activation of the category
NEIGHBORS = 3  # that a point is interpolated from
LINEAR = "linear_head."  # begins the keys of a head of one layer

Tokens = list[tuple[Tensor, Tensor]]  # centers (B, G, 3) and tokens (B, G, C), one pair a scale or depth


def restricted_argmax(log_probs: Tensor, owned: Tensor) -> Tensor:
    """Choose the most likely part among those of the true category: (B, N, P) and (B, P) bool -> (B, N) int64, lowest id on ties."""
    return log_probs.masked_fill(~owned[:, None, :], -torch.inf).argmax(-1)


@dataclass
class SegmenterKeys:
    """Keys that all part segmenters have."""

    num_parts: int = 50  # of all categories together
    num_categories: int = 16
    label_width: int = 64  # channels of the category
    prop_widths: list[int] = field(default_factory=lambda: [1536, 1024])  # of each propagation
    head_widths: list[int] = field(default_factory=lambda: [512, 256])
    head: Literal["mlp3", "linear"] = "mlp3"  # the published layers, or one on tokens interpolated to the points
    tune: TuneConfig = field(default_factory=TuneConfig)  # what trains; kind linear has the head linear

    def check_segmenter(self, groups: int) -> None:
        """Raise a ValueError that names a key with a bad value, or if `groups`, the fewest of a scale, are too few to interpolate from."""
        self.head = self.tune.check_head(self.head)
        for key in ("num_parts", "num_categories", "label_width"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: {getattr(self, key)} must be at least 1")
        for key in ("prop_widths", "head_widths"):
            widths = getattr(self, key)
            if not widths or min(widths) < 1:
                raise ValueError(f"model.{key}: {widths} must be one or more widths of at least 1")
        if groups < NEIGHBORS:
            raise ValueError(
                f"model: {groups} groups are too few; points are interpolated from {NEIGHBORS}, ask for more groups"
            )


class PartSegmenter(PointModel):
    """Encode, carry the tokens to the points, name the part of each point.

    A subclass builds an encoder and the propagation, and says what its tokens are and how they become features of points and a
    summary of the cloud.

    Args:
        config: dataclass with the keys of the encoder and `SegmenterKeys`.

    Class attributes:
        summary_first: the head's first layer takes the summary and the category before the features, else after them.
    """

    HEAD = ("label_conv.", "propagation", "convs", "bns", LINEAR)
    missing_keys = HEAD
    refused_keys = (("cls_head_finetune.", "a fine-tuned classifier"),)
    summary_first: ClassVar[bool]

    def __init__(self, config: Any):
        super().__init__(config)
        # The order of creation is the order of the published parameter lists.
        widths = self.build_encoder_parts(config)
        if config.head == "linear":
            self.linear_head = LinearPartHead(widths, config.num_categories, config.num_parts)
            return
        self.build_label(config.num_categories, config.label_width)
        features, summary = self.build_propagation(widths)
        self.constant_width = summary + config.label_width
        self.build_head([features + self.constant_width, *config.head_widths])

    def build_encoder_parts(self, config: Any) -> list[int]:
        """Create the encoder's parts under their published names and return the widths of its token sets."""
        raise NotImplementedError(f"{type(self).__name__}.build_encoder_parts")

    def build_label(self, categories: int, width: int) -> None:
        """Create what embeds a category, under its published name."""
        linear = PointwiseConv(categories, width, bias=False)
        self.label_conv = nn.Sequential(linear, BatchNorm(width), nn.LeakyReLU(LEAK))

    def embed_label(self, category: Tensor) -> Tensor:
        """Embed one-hot categories (B, num_categories) as (B, label_width)."""
        return self.label_conv(category)

    def build_propagation(self, widths: Sequence[int]) -> tuple[int, int]:
        """Create what carries token sets of these widths to the points, under its published names; return F and S."""
        raise NotImplementedError(f"{type(self).__name__}.build_propagation")

    def tokens(self, pyramid: Pyramid) -> Tokens:
        """Encode a pyramid with nothing hidden: centers and normed tokens of each set."""
        raise NotImplementedError(f"{type(self).__name__}.tokens")

    def carry(self, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Return features (B, N, F) of points (B, N, 3), as a list of slices of the channels, and the summary (B, S)."""
        raise NotImplementedError(f"{type(self).__name__}.carry")

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, as normed tokens (B, G, C) of the last set: the coarsest scale, the deepest blocks."""
        return self.tokens(self.group(points) if pyramid is None else pyramid)[-1][1]

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3), transformed as in evaluation, as the summary (B, S) that the head receives of each cloud."""
        return self._carried(points)[1]

    def point_features(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3), transformed as in evaluation, as the features (B, N, F) that the head receives of each point."""
        return torch.cat(self._carried(points)[0], dim=-1)

    def _carried(self, points: Tensor) -> tuple[list[Tensor], Tensor]:
        points = self.transform(points)
        return self.carry(points.to(self.dtype), self.tokens(self.group(points)))

    def build_head(self, widths: Sequence[int]) -> None:
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

    def forward(self, points: Tensor, category: Tensor, *, pyramid: Pyramid | None = None) -> Tensor:
        """Segment clouds whose category is known.

        Args:
            points: (B, N, 3).
            category: (B,) int64 below `num_categories`, or one-hot (B, num_categories) or (B, 1, num_categories).
            pyramid: what `group` makes of the points, if it is known.

        Returns:
            log-probabilities (B, N, P), fp32 at least, over the parts of all categories.

        Raises:
            ValueError: too few points for the groups, or a single cloud in training mode, where the category's batch
                normalisation has no statistics.
        """
        tokens = self.tokens(self.group(points) if pyramid is None else pyramid)
        points = points.to(self.dtype)
        if category.dim() == 1:
            category = F.one_hot(category, self.config.num_categories)
        if self.config.head == "linear":
            return F.log_softmax(at_least_float(self.linear_head(points, tokens, category.flatten(1))), dim=-1)
        features, summary = self.carry(points, tokens)
        label = self.embed_label(category.flatten(1).to(summary.dtype))  # (B, label_width)
        logits = self.classify(features, torch.cat([summary, label], dim=1))
        return F.log_softmax(at_least_float(logits), dim=-1)

    def predict(self, points: Tensor, category: Tensor, owned: Tensor | None = None) -> Tensor:
        """Name the part of each point (B, N, 3), transformed as in evaluation: part ids (B, N) int64.

        Args:
            category: as in `forward`.
            owned: (num_categories, P) bool, the parts that each category has; None: all parts of all categories may be named.
        """
        log_probs = self(self.transform(points), category)
        if owned is None:
            return log_probs.argmax(-1)
        label = category if category.dim() == 1 else category.flatten(1).argmax(1)
        return restricted_argmax(log_probs, owned[label])

    def classify(self, features: Sequence[Tensor], constant: Tensor) -> Tensor:
        """Map features (B, N, F), in slices, and what is constant over the points of a cloud (B, S') to logits (B, N, P).

        The first layer multiplies the constant channels once a cloud, and each slice by itself, and adds them up.
        """
        B, N, _ = features[0].shape
        weight, bias = self.convs1.weight.squeeze(-1), self.convs1.effective_bias()
        own, shared = self._columns(weight)
        rows = F.linear(constant, shared, bias).unsqueeze(1)
        for part, columns in zip(features, own.split([part.shape[-1] for part in features], dim=1), strict=True):
            rows = F.linear(part, columns) + rows  # (B, N, head_widths[0])
        rows = self.dropout(self.bns1.relu(rows.flatten(0, 1)))
        layers = len(self.config.head_widths)
        for number in range(2, layers + 1):
            rows = getattr(self, f"bns{number}").relu(getattr(self, f"convs{number}")(rows))
        return getattr(self, f"convs{layers + 1}")(rows).view(B, N, -1)

    def _columns(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split the first layer's weight (out, in) into the columns of the features and those of the constant channels."""
        constant = self.constant_width
        if self.summary_first:
            return weight[:, constant:], weight[:, :constant]
        return weight[:, :-constant], weight[:, -constant:]

    def loss(self, log_probs: Tensor, parts: Tensor) -> Tensor:
        """Compare log-probabilities (B, N, P) with part ids (B, N) int64: negative log-likelihood, mean over all points."""
        return F.nll_loss(log_probs.flatten(0, 1), parts.flatten())


@dataclass
class HierarchicalSegmenterConfig(HierarchyConfig, SegmenterKeys):
    """Keys of a part segmenter with the hierarchical encoder; defaults as published for ShapeNetPart."""

    head_widths: list[int] = field(default_factory=lambda: [1024, 512, 256])

    def __post_init__(self):
        super().__post_init__()
        self.check_segmenter(min(self.num_groups))


class HierarchicalSegmenter(PartSegmenter):
    """Every scale has a propagation of its own; the summary is maximum plus mean over the points' features."""

    summary_first = True
    ignored_keys = ("mask_token", "h_decoder.", "decoder_pos_embeds.", "token_prop.", "decoder_norm.")

    def build_encoder_parts(self, config: HierarchyConfig) -> list[int]:
        """Create `h_encoder` with the norms of pre-training; return the widths of its scales."""
        self.h_encoder = HierarchicalEncoder(config)
        return list(config.encoder_dims)

    def build_propagation(self, widths: Sequence[int]) -> tuple[int, int]:
        """Create `propagations`."""
        self.propagations = nn.ModuleList(PointPropagation(width, self.config.prop_widths) for width in widths)
        features = len(widths) * self.config.prop_widths[-1]
        return features, features

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks of each scale."""
        return self.h_encoder.stacks()

    def tokens(self, pyramid: Pyramid) -> Tokens:
        """Encode a pyramid with nothing hidden; attention reaches as far as the local radius of each scale."""
        encoded = zip(self.h_encoder.encoder_norms, self.h_encoder(pyramid), strict=True)
        return list(zip(pyramid.centers, (norm(tokens) for norm, tokens in encoded), strict=True))

    def carry(self, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Carry each scale by itself."""
        features = [propagate(points, *pair) for propagate, pair in zip(self.propagations, tokens, strict=True)]
        return features, torch.cat([peak_and_mean(part) for part in features], dim=-1)


@dataclass
class SingleScaleSegmenterConfig(SingleScaleConfig, PatchesConfig, SegmenterKeys):
    """Keys of a part segmenter with the single-scale encoder; defaults as published for ShapeNetPart."""

    NAME: str = ""
    num_group: int = 128
    taps: list[int] = field(default_factory=lambda: [3, 7, 11])  # blocks, from 0, after which tokens are taken

    def __post_init__(self):
        super().__post_init__()
        self.check_patches()
        taps = self.taps
        if not taps or taps[0] < 0 or taps != sorted(set(taps)) or taps[-1] != self.depth - 1:
            raise ValueError(
                f"model.taps: {taps} must be ascending blocks from 0 on that end with the last one, {self.depth - 1}"
            )
        self.check_segmenter(self.num_group)


class SingleScaleSegmenter(SingleScaleParts, PartSegmenter):
    """Tokens of several depths are one wide token; the summary is their maximum and mean. There is no class token."""

    summary_first = False
    renamed_keys = (("MAE_encoder.", ""),)

    def build_encoder_parts(self, config: SingleScaleConfig) -> list[int]:
        """Create the encoder's parts; return the width of each tap."""
        self.build_encoder(config)
        return [config.trans_dim] * len(config.taps)

    def build_propagation(self, widths: Sequence[int]) -> tuple[int, int]:
        """Create `propagation_0`."""
        self.propagation_0 = PointPropagation(sum(widths), self.config.prop_widths)
        return self.config.prop_widths[-1], 2 * sum(widths)

    def tokens(self, pyramid: Pyramid) -> Tokens:
        """Encode a pyramid with nothing hidden; the tokens after the blocks `taps`, each through the one norm, as published."""
        centers = pyramid.centers[0]
        tokens, position = self.encoder(pyramid.neighborhoods[0]), self.pos_embed(centers)  # (B, G, C)
        taken, first = [], 0
        for tap in self.config.taps:
            tokens = self.blocks(tokens, position, first=first, stop=tap + 1)
            taken.append((centers, self.normed(tokens)))
            first = tap + 1
        return taken

    def carry(self, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Carry all depths together."""
        joined = torch.cat([taken for _, taken in tokens], dim=-1)  # (B, G, C)
        summary = torch.cat([joined.amax(1), joined.mean(1)], dim=-1)
        return [self.propagation_0(points, tokens[0][0], joined)], summary
