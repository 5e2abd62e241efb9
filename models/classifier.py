"""Classifiers: the tokens of an encoder, pooled, and a head on top. A method's own is a subclass next to its autoencoder.

Shapes: `B` batch, `N` points, `G` groups, `C` channels, `F` channels of the pooled feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import PointModel
from models.hierarchical import HierarchicalEncoder, HierarchyConfig
from models.layers.drop import Dropout
from models.layers.group import Pyramid
from models.layers.norm import BatchNorm
from models.layers.transformer import Stack
from models.losses import smoothed_cross_entropy
from models.single_scale import PatchesConfig, SingleScaleConfig, SingleScaleParts
from models.tuning.config import TuneConfig

HEAD_WIDTH = 256
HEAD_DROPOUT = 0.5


class Pooling(NamedTuple):
    """How tokens (B, G, C) become one feature (B, widths * C)."""

    pool: Callable[[Tensor], Tensor]
    widths: int = 1


POOLINGS = {
    "mean": Pooling(lambda tokens: tokens.mean(1)),
    "max": Pooling(lambda tokens: tokens.amax(1)),
    "mean+max": Pooling(lambda tokens: tokens.mean(1) + tokens.amax(1)),
    "mean,max": Pooling(lambda tokens: torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1), widths=2),
    # Published for ScanObjectNN: the maximum leaves out the first patch, whose place a class token had in the program that this code
    # is from. Published weights need it.
    "mean,max[1:]": Pooling(lambda tokens: torch.cat([tokens.mean(1), tokens[:, 1:].amax(1)], dim=-1), widths=2),
    # For encoders whose tokens begin with a class token.
    "class,max": Pooling(lambda tokens: torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1), widths=2),
}


@dataclass
class ClassifierKeys:
    """Keys that all classifiers have."""

    cls_dim: int = 40
    smooth: float = 0.0  # share of the target that goes to the wrong classes
    pooling: str = "mean+max"
    head: Literal["mlp3", "linear"] = "mlp3"  # the published three layers, or one
    tune: TuneConfig = field(default_factory=TuneConfig)  # what trains; kind linear has the head linear

    def check_classifier(self) -> None:
        """Raise a ValueError that names a key with a bad value, and what is possible."""
        if self.cls_dim < 2:
            raise ValueError(f"model.cls_dim: {self.cls_dim} must be at least 2; give the number of classes")
        if not 0 <= self.smooth < 1:
            raise ValueError(f"model.smooth: {self.smooth} must be at least 0 and below 1")
        self.head = self.tune.check_head(self.head)
        if self.pooling not in POOLINGS:
            raise ValueError(f"model.pooling: {self.pooling!r} is unknown; choose from {', '.join(POOLINGS)}")


class Classifier(PointModel):
    """Encode, pool, classify.

    A subclass builds an encoder and says what its tokens are.

    Args:
        config: dataclass with the keys of the encoder and `ClassifierKeys`.

    Class attributes:
        published_rounds: rounds of voting that the method's published program runs, of which it reports the best.
        head_name: what the head is called.
        votes_by_groups: whether passes of voting differ in where grouping begins, and in nothing else; else in points and augmentation.
    """

    HEAD = ("cls_head_finetune.",)
    published_rounds: ClassVar[int] = 1
    head_name: ClassVar[str] = "cls_head_finetune"
    votes_by_groups: ClassVar[bool] = False

    def __init__(self, config: Any):
        super().__init__(config)
        features = POOLINGS[config.pooling].widths * self.build_encoder_parts(config)
        build_head = {"mlp3": self.build_head, "linear": nn.Linear}[config.head]
        setattr(self, self.head_name, build_head(features, config.cls_dim))

    @property
    def head(self) -> nn.Module:
        """What maps features (B, F) to logits."""
        return getattr(self, self.head_name)

    def build_head(self, width: int, classes: int) -> nn.Sequential:
        """Return the published head of three layers."""
        return classification_head(width, classes)

    def build_encoder_parts(self, config: Any) -> int:
        """Create the encoder's parts under their published names and return C."""
        raise NotImplementedError(f"{type(self).__name__}.build_encoder_parts")

    def tokens(self, pyramid: Pyramid) -> Tensor:
        """Encode a pyramid with nothing hidden as normed tokens (B, G, C) of the coarsest scale; a class token comes first."""
        raise NotImplementedError(f"{type(self).__name__}.tokens")

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, as normed tokens (B, G, C) of the coarsest scale; a class token comes first."""
        return self.tokens(self.group(points) if pyramid is None else pyramid)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that pre-training gives: not the head, nor a class token or norm that begin with it."""
        return [p for name, p in self.named_parameters() if not name.startswith(self.missing_keys)]

    def pool(self, tokens: Tensor) -> Tensor:
        """Sum tokens (B, G, C) of a cloud up as what the head receives, (B, F)."""
        return POOLINGS[self.config.pooling].pool(tokens)

    def features(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, as what the head receives, (B, F)."""
        return self.pool(self.patch_tokens(points, pyramid))

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3), transformed as in evaluation, as what the head receives, (B, F)."""
        return self.features(self.transform(points))

    def forward(self, points: Tensor, *, pyramid: Pyramid | None = None) -> Tensor:
        """Classify points (B, N, 3), whose pyramid may be known already: logits (B, cls_dim).

        Raises:
            ValueError: too few points for the groups, or a single cloud in training mode, where the head's batch
                normalisation has no statistics.
        """
        return self.head(self.features(points, pyramid))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (B, cls_dim) with labels (B,) int64 below `cls_dim`: a scalar."""
        return smoothed_cross_entropy(logits, labels, self.config.smooth)


@dataclass
class HierarchicalClassifierConfig(HierarchyConfig, ClassifierKeys):
    """Keys of a classifier with the hierarchical encoder."""

    def __post_init__(self):
        super().__post_init__()
        self.check_classifier()


@dataclass
class HierarchicalScanObjectNNConfig(HierarchicalClassifierConfig):
    """The same keys with what is published for ScanObjectNN, whose pool is a method's own."""

    group_sizes: list[int] = field(default_factory=lambda: [32, 16, 16])
    cls_dim: int = 15


class HierarchicalClassifier(Classifier):
    """A classifier with the hierarchical encoder, whose attention is local and whose one norm, `norm`, is new."""

    missing_keys = (*Classifier.HEAD, "norm.")
    ignored_keys = (
        "h_encoder.encoder_norms.",
        "mask_token",
        "h_decoder.",
        "decoder_pos_embeds.",
        "token_prop.",
        "decoder_norm.",
    )

    def build_encoder_parts(self, config: HierarchyConfig) -> int:
        """Create `h_encoder` and `norm`; return the width of the coarsest scale."""
        self.h_encoder = HierarchicalEncoder(config, with_norms=False)
        self.norm = nn.LayerNorm(config.encoder_dims[-1])
        return config.encoder_dims[-1]

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks of each scale."""
        return self.h_encoder.stacks()

    def tokens(self, pyramid: Pyramid) -> Tensor:
        """Encode a pyramid as normed tokens (B, G, C) of the coarsest scale."""
        return self.norm(self.h_encoder(pyramid)[-1])


@dataclass
class SingleScaleClassifierConfig(SingleScaleConfig, PatchesConfig, ClassifierKeys):
    """Keys of a classifier with the single-scale encoder; defaults as published for ModelNet40."""

    NAME: str = ""
    pooling: str = "class,max"

    def __post_init__(self):
        super().__post_init__()
        self.check_patches()
        self.check_classifier()


class SingleScaleClassifier(SingleScaleParts, Classifier):
    """A classifier with the single-scale encoder, and a class token with a learned position.

    The encoder keeps PyTorch's initialisation, which the published program trains from scratch with.
    """

    missing_keys = (*Classifier.HEAD, "cls_token", "cls_pos")
    renamed_keys = (("MAE_encoder.", ""),)

    def build_encoder_parts(self, config: SingleScaleConfig) -> int:
        """Create class token, its position, and the encoder's parts; return the width of the tokens."""
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
        for parameter in (self.cls_token, self.cls_pos):
            nn.init.trunc_normal_(parameter, std=0.02, a=-2.0, b=2.0)
        self.build_encoder(config)
        return config.trans_dim

    def tokens(self, pyramid: Pyramid) -> Tensor:
        """Encode a pyramid as normed tokens (B, 1 + G, C), the class token first."""
        tokens = self.encoder(pyramid.neighborhoods[0])  # (B, G, C)
        position = self.pos_embed(pyramid.centers[0])  # (B, G, C)
        token, place = (part.expand(tokens.shape[0], -1, -1).to(tokens.dtype) for part in (self.cls_token, self.cls_pos))
        tokens, position = torch.cat([token, tokens], dim=1), torch.cat([place, position], dim=1)  # (B, 1 + G, C)
        return self.normed(self.blocks(tokens, position))


def classification_head(width: int, classes: int) -> nn.Sequential:
    """Build the published three-layer head from features (B, width) to logits (B, classes), with PyTorch's initialisation."""
    return nn.Sequential(
        LinearBeforeNorm(width, HEAD_WIDTH),
        BatchNorm(HEAD_WIDTH),
        nn.ReLU(),
        Dropout(HEAD_DROPOUT),
        LinearBeforeNorm(HEAD_WIDTH, HEAD_WIDTH),
        BatchNorm(HEAD_WIDTH),
        nn.ReLU(),
        Dropout(HEAD_DROPOUT),
        nn.Linear(HEAD_WIDTH, classes),
    )


class LinearBeforeNorm(nn.Linear):
    """A linear layer that batch normalisation follows.

    That takes any constant away, so the gradient of the bias is zero and is returned as zero while training, as
    `PointwiseConv(before_norm=True)` does: Adam would turn what fp32 leaves of it into steps of full size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in) to (B, C_out)."""
        bias = self.bias.detach() + 0.0 * self.bias if self.training else self.bias
        return F.linear(x, self.weight, bias)
