"""Classifiers: the tokens of any encoder, pooled, and a head on top. What each method brings along is in `classifier_parts.py`.

Shapes: `B` batch, `N` points, `G` groups, `C` channels, `F` channels of the pooled feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.drop import Dropout
from models.layers.group import Pyramid
from models.layers.norm import BatchNorm
from models.legacy import legacy_names
from models.losses import smoothed_cross_entropy

HEAD_WIDTH = 256
HEAD_DROPOUT = 0.5


@dataclass(frozen=True)
class Pooling:
    """How tokens (B, G, C) become one feature (B, widths * C)."""

    pool: Callable[[Tensor], Tensor]
    widths: int = 1


POOLINGS = {
    "mean": Pooling(lambda tokens: tokens.mean(1)),
    "max": Pooling(lambda tokens: tokens.amax(1)),
    "mean+max": Pooling(lambda tokens: tokens.mean(1) + tokens.amax(1)),
    "mean,max": Pooling(lambda tokens: torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1), widths=2),
    # Published for ScanObjectNN: the maximum leaves out token 0, where a class token once stood. Published weights need it.
    "mean,max[1:]": Pooling(lambda tokens: torch.cat([tokens.mean(1), tokens[:, 1:].amax(1)], dim=-1), widths=2),
    # For encoders whose token 0 is a class token.
    "class,max": Pooling(lambda tokens: torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1), widths=2),
}


def check_classifier_keys(config: Any) -> None:
    """Check the keys that all classifiers have: `cls_dim`, `smooth`, `pooling`, `head`.

    Raises:
        ValueError: naming the key, its value and what is possible.
    """
    if config.cls_dim < 2:
        raise ValueError(f"model.cls_dim: {config.cls_dim} must be at least 2; give the number of classes")
    if not 0 <= config.smooth < 1:
        raise ValueError(f"model.smooth: {config.smooth} must be at least 0 and below 1")
    if config.pooling not in POOLINGS:
        raise ValueError(f"model.pooling: {config.pooling!r} is unknown; choose from {', '.join(POOLINGS)}")


@dataclass(frozen=True)
class EncoderPart:
    """What a method gives to its classifier.

    Args:
        method: its name, as in `--method`.
        build: gives a model the encoder's parts under their published names, at its top level, and returns C.
        group: (model, points (B, N, 3)) -> their pyramid.
        tokens: (model, pyramid) -> normed tokens (B, G, C) of the coarsest scale; a class token comes first.
        missing: key prefixes that a pre-training checkpoint lacks, beside those of the head.
        ignored: key prefixes that a pre-training checkpoint holds in vain.
        renamed: key prefixes of a pre-training checkpoint and what they are called here.
        legacy: names of published faults that the encoder can switch back on.
        methods: further methods whose pre-training checkpoints hold this encoder.
    """

    method: str
    build: Callable[[nn.Module, Any], int]
    group: Callable[[nn.Module, Tensor], Pyramid]
    tokens: Callable[[nn.Module, Pyramid], Tensor]
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    legacy: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


class Classifier(nn.Module):
    """Encode, pool, classify.

    Args:
        config: dataclass with the keys of the encoder and those that `check_classifier_keys` checks.
        part: the method's encoder.
    """

    def __init__(self, config: Any, part: EncoderPart):
        super().__init__()
        self.config = config
        self.part = part
        self.method = part.method
        self.checkpoint_missing = (*part.missing, "cls_head_finetune.")  # a runner that tests wants none
        self.checkpoint_ignored = part.ignored
        self.checkpoint_renamed = part.renamed
        self.checkpoint_methods = (part.method, *part.methods)
        self.checkpoint_last_wins = "norm_overwrite" in legacy_names(config.legacy, part.legacy)
        width = part.build(self, config)
        features = POOLINGS[config.pooling].widths * width
        build_head = {"mlp3": classification_head, "linear": nn.Linear}[config.head]
        self.cls_head_finetune = build_head(features, config.cls_dim)

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3); no weight takes part."""
        return self.part.group(self, points)

    def patch_tokens(self, points: Tensor, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, as normed tokens (B, G, C) of the coarsest scale."""
        return self.part.tokens(self, self.group(points) if pyramid is None else pyramid)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the head."""
        return [p for name, p in self.named_parameters() if not name.startswith("cls_head_finetune.")]

    def features(self, points: Tensor, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, as what the head receives, (B, F)."""
        return POOLINGS[self.config.pooling].pool(self.patch_tokens(points, pyramid))

    def forward(self, points: Tensor, *, pyramid: Pyramid | None = None) -> Tensor:
        """Classify points (B, N, 3), whose pyramid may be known already: logits (B, cls_dim).

        Raises:
            ValueError: too few points for the groups, or a single cloud in training mode, where the head's batch
                normalisation has no statistics.
        """
        return self.cls_head_finetune(self.features(points, pyramid))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (B, cls_dim) with labels (B,) int64 below `cls_dim`: a scalar."""
        return smoothed_cross_entropy(logits, labels, self.config.smooth)


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
        bias = self.bias.detach() + 0.0 * self.bias if self.training else self.bias
        return F.linear(x, self.weight, bias)
