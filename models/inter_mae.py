"""Inter-MAE: masked autoencoding of clouds, contrasted with pictures of the same objects (Liu et al. 2023).

Shapes: `B` batch, `G` groups, `K` neighbours per group, `V` visible and `M` hidden groups of a sample, `C` channels of the encoder, `D` of
the decoder, `F` of the space where clouds and images are compared.
"""

import logging
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.classifier import SingleScaleClassifier, SingleScaleClassifierConfig
from models.images.branch import ImageBranchConfig
from models.layers.embed import PatchEmbed
from models.layers.gated import GatedPatchEmbed
from models.layers.group import Pyramid
from models.layers.heads import projection_head
from models.layers.norm import PointwiseConv
from models.layers.packing import Packing
from models.losses import NTXent
from models.registry import MODELS
from models.segmenter import SingleScaleSegmenter, SingleScaleSegmenterConfig
from models.single_scale import (
    MaskedTransformerConfig,
    SingleScaleConfig,
    SingleScaleEncoder,
    SingleScaleMAE,
    SingleScaleMAEConfig,
    SingleScaleParts,
)

METHOD = "inter-mae"
FEATURES = 256  # F

# Of a pre-training checkpoint, without a place in what is fine-tuned.
POINT_SIDE_KEYS = (
    "mask_token",
    "decoder_pos_embed.",
    "decoder_embed.",
    "MAE_decoder.",
    "pro_head.",
    "pre_head.",
    "image_branch.",
)
# Of the old patch embedding, which Inter-MAE's has none of.
OLD_BIASES = tuple(
    f"encoder.{layer}.bias" for layer in ("first_conv.0", "first_conv.3", "second_conv.0", "second_conv.3")
)

_LOG = logging.getLogger("m2ae.models")


@dataclass
class GatedEncoderConfig(SingleScaleConfig):
    """Keys of the encoder, wherever it is."""

    # Published, what its code seems to have meant, or none, for ablations.
    gate: Literal["diagonal", "attention", "none"] = "diagonal"


@dataclass
class InterMAETransformerConfig(MaskedTransformerConfig, GatedEncoderConfig):
    """Keys of `transformer_config`: encoder, decoder and mask."""

    decoder_width_key: ClassVar[str] = "decoder_embed_dim"

    embed_dim: int | None = None  # another name of trans_dim, which the published model reads
    decoder_embed_dim: int = 256
    decoder_num_heads: int = 4  # not published: the published 6 does not divide 256

    def __post_init__(self):
        if self.embed_dim is not None:
            self.trans_dim = self.embed_dim
        if (self.decoder_embed_dim, self.decoder_num_heads) == (256, 6):
            self.decoder_num_heads = 4
            _LOG.warning("decoder_num_heads: the published 6 does not divide the published width of 256; 4 are used")
        super().__post_init__()


@dataclass
class InterMAEConfig(SingleScaleMAEConfig):
    """Keys of Inter-MAE pre-training; defaults as published but for the image branch."""

    NAME: str = "Inter_MAE"
    contrast_weight: float = 0.0001  # of the contrastive term
    temperature: float = 0.1
    transformer_config: InterMAETransformerConfig = field(default_factory=InterMAETransformerConfig)
    image_branch: ImageBranchConfig = field(default_factory=ImageBranchConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.contrast_weight < 0:
            raise ValueError(f"model.contrast_weight: {self.contrast_weight} must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"model.temperature: {self.temperature} must be above 0")


class GatedParts(SingleScaleParts):
    """The parts of Inter-MAE's encoder: Point-MAE's, with a gate in the patch embedding."""

    attention_first = True

    def build_patch_embed(self, config: GatedEncoderConfig) -> nn.Module:
        """Return the patch embedding with its gate."""
        return GatedPatchEmbed(3, config.trans_dim, widths=tuple(config.embed_widths), gate=config.gate)


class GatedEncoder(GatedParts, SingleScaleEncoder):
    """Inter-MAE's encoder while it pre-trains."""


@MODELS.register("Inter_MAE", config=InterMAEConfig)
class InterMAE(SingleScaleMAE):
    """Hide patches, encode the visible ones, rebuild the hidden ones, and pull the whole cloud towards its picture.

    The model is the point side, as published checkpoints hold it. What trains on the image side is a part of the model only while
    it pre-trains: the guide sets `image_branch` (`tools/guides/inter_mae.py`).

    Targets are what the image branch takes, images (B, n, 3, S, S) or features of them (B, n, W); without an image branch their projected
    features (B, F). None leaves out the contrastive term.
    """

    method = METHOD
    LEGACY = ("fresh_image_branch",)
    taught = True
    own_keys = ("MAE_encoder.encoder.first_trans.", "pro_head.")
    ignored_keys = ("image_branch.",)
    encoder_class = GatedEncoder
    widens = True

    def __init__(self, config: InterMAEConfig):
        super().__init__(config)
        width = config.transformer_config.decoder_width
        self.pro_head = projection_head(2 * width, FEATURES, FEATURES)
        self.pre_head = nn.Sequential(PointwiseConv(width, 3 * config.group_size))
        self.image_branch: nn.Module | None = None
        self.contrast = NTXent(config.temperature)

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Tensor | None = None) -> dict[str, Tensor]:
        """Encode what is visible, rebuild what is hidden, compare with the cloud and with its picture.

        With targets "loss" is "loss_pc" plus "loss_fea", the weighted contrastive term; "features" (B, F) are those of the clouds and
        "image_features" those of the images.
        """
        hidden = self.hidden_rows(masks)
        visible = self.encode_visible(pyramid, masks)  # (B, V, C)
        tokens = self.MAE_decoder.norm(self.decode(pyramid, masks, visible, hidden))  # (B, V + M, D)
        rebuilt = self.pre_head(tokens[:, visible.shape[1] :])  # (B, M, 3 * K)
        out = self.compare(rebuilt.flatten(0, 1), pyramid, masks, hidden)
        return out if targets is None else {**out, **self._contrast(tokens, targets, out["loss"])}

    def _contrast(self, tokens: Tensor, targets: Tensor, loss_pc: Tensor) -> dict[str, Tensor]:
        """Compare the decoded tokens (B, G, D) of whole clouds with images, and add that to the loss."""
        if len(targets) != len(tokens):
            raise ValueError(f"Inter-MAE: {len(tokens)} clouds and {len(targets)} sets of images do not pair up")
        features = self.pro_head(pool_tokens(tokens))  # (B, F)
        image_features = targets if self.image_branch is None else self.image_branch(targets)
        loss_fea = self.config.contrast_weight * self.contrast(features, image_features)
        return {
            "loss": loss_pc + loss_fea,
            "loss_pc": loss_pc,
            "loss_fea": loss_fea,
            "features": features,
            "image_features": image_features,
        }


def pool_tokens(tokens: Tensor) -> Tensor:
    """Pool decoded tokens (B, G, D), visible ones first, as (B, 2 * D): that of the first visible patch, and the maximum of the others.

    Note:
        As published, where the first token of another network was a class token (`tests/parity/test_inter_mae.py`).
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1)


@dataclass
class InterMAEClassifierConfig(SingleScaleClassifierConfig, GatedEncoderConfig):
    """Keys of Inter-MAE's classifier: those of Point-MAE's, and the gate."""

    NAME: str = "Inter_MAE_Classifier"


@MODELS.register("Inter_MAE_Classifier", config=InterMAEClassifierConfig)
class InterMAEClassifier(GatedParts, SingleScaleClassifier):
    """Fine-tune Inter-MAE's encoder to classify (Liu et al. 2023)."""

    method = METHOD
    own_keys = ("encoder.first_trans.",)
    ignored_keys = POINT_SIDE_KEYS


@dataclass
class InterMAESegmenterConfig(SingleScaleSegmenterConfig, GatedEncoderConfig):
    """Keys of Inter-MAE's part segmenter: those of Point-MAE's, and the gate."""

    NAME: str = "Inter_MAE_SEG"


@MODELS.register("Inter_MAE_SEG", config=InterMAESegmenterConfig)
class InterMAESegmenter(GatedParts, SingleScaleSegmenter):
    """Fine-tune Inter-MAE's encoder to segment parts (Liu et al. 2023).

    Note:
        The published segmenter has Point-MAE's patch embedding instead, which is filled with weights of the other computation as far as
        shapes agree: `old_patch_encoder` in `legacy` (`tests/models/test_part_segmenter.py`).
    """

    method = METHOD
    LEGACY = ("old_patch_encoder",)
    own_keys = ("encoder.first_trans.",)
    ignored_keys = (*POINT_SIDE_KEYS, "encoder.first_trans.")  # the gate, if the patch embedding is the old one

    def build_encoder_parts(self, config: InterMAESegmenterConfig) -> list[int]:
        """Create the encoder's parts, with the published bug those of Point-MAE."""
        if "old_patch_encoder" in self.legacy:
            self.attention_first = False
            self.missing_keys = (*self.HEAD, *OLD_BIASES)
        return super().build_encoder_parts(config)

    def build_patch_embed(self, config: InterMAESegmenterConfig) -> nn.Module:
        """Return the patch embedding with its gate, or the old one."""
        if "old_patch_encoder" in self.legacy:
            return PatchEmbed(3, config.trans_dim, widths=tuple(config.embed_widths))
        return super().build_patch_embed(config)
