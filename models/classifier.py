"""Classifiers: the tokens of any encoder, pooled, and a head on top.

A method adds its classifier with one `EncoderPart` (how its encoder is built and what its tokens are), one configuration
dataclass and one registered function; see Point-M2AE's and Point-MAE's at the end.

Shapes: `B` batch, `N` points, `G` groups, `C` channels, `F` channels of the pooled feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.complexity import COMPLEXITY_KEYS
from models.encoder import SingleScaleConfig, build_encoder, check_patches
from models.hierarchy import HierarchicalEncoder
from models.inter_mae import GatedEncoderConfig
from models.layers.gated import GatedPatchEmbed
from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import BatchNorm
from models.legacy import legacy_names
from models.losses import smoothed_cross_entropy
from models.point_m2ae import HierarchyConfig
from models.registry import MODELS

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
        nn.Dropout(HEAD_DROPOUT),
        LinearBeforeNorm(HEAD_WIDTH, HEAD_WIDTH),
        BatchNorm(HEAD_WIDTH),
        nn.ReLU(),
        nn.Dropout(HEAD_DROPOUT),
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


def build_local_encoder(model: nn.Module, config: HierarchyConfig) -> int:
    """Give a model `h_encoder`, without the norms of pre-training, and `norm`; returns the width of its tokens."""
    model.h_encoder = HierarchicalEncoder(
        dims=config.encoder_dims,
        depths=config.encoder_depths,
        num_heads=config.num_heads,
        local_radius=config.local_radius,
        drop_path_rate=config.drop_path_rate,
        embed_widths=config.embed_widths,
        with_norms=False,
    )
    model.norm = nn.LayerNorm(config.encoder_dims[-1])
    return config.encoder_dims[-1]


def group_scales(model: nn.Module, points: Tensor) -> Pyramid:
    """Group points (B, N, 3) as the keys of a hierarchy say."""
    return group_pyramid(points, model.config.num_groups, model.config.group_sizes)


def encode_locally(model: nn.Module, pyramid: Pyramid) -> Tensor:
    """Encode a pyramid with nothing hidden; attention reaches as far as the local radius of each scale."""
    return model.norm(model.h_encoder(pyramid).tokens[-1])  # (B, G, C)


HIERARCHICAL = EncoderPart(
    method="point-m2ae",
    build=build_local_encoder,
    group=group_scales,
    tokens=encode_locally,
    missing=("norm.",),
    ignored=(
        "h_encoder.encoder_norms.",
        "mask_token",
        "h_decoder.",
        "decoder_pos_embeds.",
        "token_prop.",
        "decoder_norm.",
        "rec_head.",
        *COMPLEXITY_KEYS,
    ),
    renamed=(("base.", ""),),
    methods=("gm3d-point-m2ae",),
)


@dataclass
class PointM2AEModelNet40Config(HierarchyConfig):
    """Keys of Point-M2AE's classifier; defaults as published for ModelNet40."""

    NAME: str = "Point_M2AE_ModelNet40"
    cls_dim: int = 40
    smooth: float = 0.3  # share of the target that goes to the wrong classes
    pooling: str = "mean+max"
    head: Literal["mlp3", "linear"] = "mlp3"  # the published three layers, or one

    def __post_init__(self):
        super().__post_init__()
        check_classifier_keys(self)


@dataclass
class PointM2AEScanObjectNNConfig(PointM2AEModelNet40Config):
    """The same keys with the defaults published for ScanObjectNN."""

    NAME: str = "Point_M2AE_ScanObjectNN"
    group_sizes: list[int] = field(default_factory=lambda: [32, 16, 16])
    cls_dim: int = 15
    smooth: float = 0.0
    pooling: str = "mean,max[1:]"


@MODELS.register("Point_M2AE_ModelNet40", config=PointM2AEModelNet40Config)
@MODELS.register("Point_M2AE_ScanObjectNN", config=PointM2AEScanObjectNNConfig)
def point_m2ae_classifier(config: PointM2AEModelNet40Config) -> Classifier:
    """Build the classifier that fine-tunes Point-M2AE's encoder (Zhang et al. 2022, Sec. 4.2)."""
    return Classifier(config, HIERARCHICAL)


I2P = replace(
    HIERARCHICAL,
    method="i2p-mae",
    ignored=(*HIERARCHICAL.ignored, "rec_head_3d.", "rec_head_2d.", "clip_model."),
    renamed=(),
    methods=(),
)


@dataclass
class I2PMAEModelNet40Config(PointM2AEModelNet40Config):
    """Keys of I2P-MAE's classifier, which are Point-M2AE's; defaults as published for ModelNet40."""

    NAME: str = "I2P_MAE_ModelNet40"
    group_sizes: list[int] = field(default_factory=lambda: [48, 24, 24])
    local_radius: list[float] = field(default_factory=lambda: [0.24, 0.48, 0.96])
    smooth: float = 0.2


@dataclass
class I2PMAEScanObjectNNConfig(PointM2AEModelNet40Config):
    """The same keys with the defaults published for ScanObjectNN; the pool takes all tokens."""

    # The published program chooses by the name of the model how clouds are augmented.
    published_augmentation: ClassVar[str] = "batch_rotate"

    NAME: str = "I2P_MAE_ScanObjectNN"
    group_sizes: list[int] = field(default_factory=lambda: [32, 16, 16])
    cls_dim: int = 15
    smooth: float = 0.0
    pooling: str = "mean,max"


@MODELS.register("I2P_MAE_ModelNet40", config=I2PMAEModelNet40Config)
@MODELS.register("I2P_MAE_ScanObjectNN", config=I2PMAEScanObjectNNConfig)
def i2p_mae_classifier(config: I2PMAEModelNet40Config) -> Classifier:
    """Build the classifier that fine-tunes I2P-MAE's encoder (Zhang et al. 2023, Sec. 4.2)."""
    return Classifier(config, I2P)


def build_with_class_token(model: nn.Module, config: SingleScaleConfig, **parts: Any) -> int:
    """Give a model a single-scale encoder and a class token with a learned position; returns the width of the tokens.

    `parts` go to `build_encoder`.

    The encoder keeps PyTorch's initialisation, which the published program trains from scratch with.
    """
    model.cls_token = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
    model.cls_pos = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
    for parameter in (model.cls_token, model.cls_pos):
        nn.init.trunc_normal_(parameter, std=0.02, a=-2.0, b=2.0)
    build_encoder(model, config, **parts)
    return config.trans_dim


def group_patches(model: nn.Module, points: Tensor) -> Pyramid:
    """Group points (B, N, 3) as the keys of a model of one scale say."""
    return group_pyramid(points, [model.config.num_group], [model.config.group_size])


def encode_with_class_token(model: nn.Module, pyramid: Pyramid, *, norm: str = "norm") -> Tensor:
    """Encode a pyramid with nothing hidden as tokens (B, 1 + G, C), the class token first, normed by the model's `norm`."""
    tokens = model.encoder(pyramid.neighborhoods[0])  # (B, G, C)
    position = model.pos_embed(pyramid.centers[0])  # (B, G, C)
    token, place = (part.expand(len(tokens), -1, -1).to(tokens.dtype) for part in (model.cls_token, model.cls_pos))
    tokens, position = torch.cat([token, tokens], dim=1), torch.cat([place, position], dim=1)  # (B, 1 + G, C)
    return getattr(model, norm)(model.blocks(tokens, position))


SINGLE_SCALE = EncoderPart(
    method="point-mae",
    build=build_with_class_token,
    group=group_patches,
    tokens=encode_with_class_token,
    missing=("cls_token", "cls_pos"),
    ignored=("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim."),
    renamed=(("MAE_encoder.", ""),),
)


@dataclass
class PointTransformerConfig(SingleScaleConfig):
    """Keys of Point-MAE's classifier; defaults as published for ModelNet40."""

    NAME: str = "PointTransformer"
    num_group: int = 64
    group_size: int = 32
    cls_dim: int = 40
    smooth: float = 0.0  # share of the target that goes to the wrong classes
    pooling: str = "class,max"
    head: Literal["mlp3", "linear"] = "mlp3"  # the published three layers, or one
    legacy: bool | list[str] = False

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_classifier_keys(self)


@MODELS.register("PointTransformer", config=PointTransformerConfig)
def point_mae_classifier(config: PointTransformerConfig) -> Classifier:
    """Build the classifier that fine-tunes Point-MAE's encoder (Pang et al. 2022, Sec. 4.2)."""
    return Classifier(config, SINGLE_SCALE)


def build_gated(model: nn.Module, config: GatedEncoderConfig) -> int:
    """Give a model Inter-MAE's encoder and a class token; returns the width of the tokens."""
    return build_with_class_token(model, config, embed=partial(GatedPatchEmbed, gate=config.gate), timm_order=True)


GATED = replace(
    SINGLE_SCALE,
    method="inter-mae",
    build=build_gated,
    ignored=(
        "mask_token",
        "decoder_pos_embed.",
        "decoder_embed.",
        "MAE_decoder.",
        "pro_head.",
        "pre_head.",
        "image_branch.",
    ),
)


@dataclass
class InterMAEClassifierConfig(PointTransformerConfig, GatedEncoderConfig):
    """Keys of Inter-MAE's classifier: those of Point-MAE's, and the gate."""

    NAME: str = "Inter_MAE_Classifier"


@MODELS.register("Inter_MAE_Classifier", config=InterMAEClassifierConfig)
def inter_mae_classifier(config: InterMAEClassifierConfig) -> Classifier:
    """Build the classifier that fine-tunes Inter-MAE's encoder (Liu et al. 2023)."""
    return Classifier(config, GATED)


GUIDED = replace(
    SINGLE_SCALE,
    method="gm3d",
    build=partial(build_with_class_token, norm="norm_p"),
    tokens=partial(encode_with_class_token, norm="norm_p"),
    ignored=(
        "mask_token",
        "decoder_pos_embed.",
        "MAE_decoder.",
        "increase_dim_just_network_without_feature.",
        *COMPLEXITY_KEYS,
    ),
    legacy=("norm_overwrite",),
)


@dataclass
class GM3DClassifierConfig(PointTransformerConfig):
    """Keys of GM3D's classifier: those of Point-MAE's."""

    NAME: str = "GM3D_PointTransformer"


@MODELS.register("GM3D_PointTransformer", config=GM3DClassifierConfig)
def gm3d_classifier(config: GM3DClassifierConfig) -> Classifier:
    """Build the classifier that fine-tunes GM3D's encoder; its final norm is called `norm_p`.

    Note:
        A checkpoint holds two norms for it, the encoder's and one that was never trained. The encoder's is taken; with `norm_overwrite` in
        `legacy` the other one, as released (`tests/parity/test_gm3d.py`).
    """
    return Classifier(config, GUIDED)
