"""Inter-MAE: masked autoencoding of clouds, contrasted with pictures of the same objects (Liu et al. 2023).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `V` visible groups, `M` masked groups of a sample, `C` channels
of the encoder, `D` of the decoder, `F` of the space where clouds and images are compared.
"""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.images.branch import ImageBranchConfig
from models.layers.gated import GatedPatchEmbed
from models.layers.group import Pyramid, group_pyramid
from models.layers.heads import projection_head
from models.layers.norm import PointwiseConv
from models.legacy import legacy_names
from models.losses import nt_xent
from models.masking import KnownMask, split_groups
from models.registry import MODELS
from models.single_scale import (
    MaskedEncoder,
    SingleScaleConfig,
    build_decoder,
    check_heads,
    check_patches,
    check_rebuilding,
    compare_patches,
    decode,
    hide,
)

FEATURES = 256  # F

_LOG = logging.getLogger("m2ae.models")


@dataclass
class GatedEncoderConfig(SingleScaleConfig):
    """Keys of the encoder, wherever it stands."""

    gate: Literal["diagonal", "attention"] = "diagonal"  # published, or what its code seems to have meant


@dataclass
class InterMAETransformerConfig(GatedEncoderConfig):
    """Keys of `transformer_config`: encoder, decoder and mask."""

    embed_dim: int | None = None  # another name of trans_dim, which the published model reads
    mask_ratio: float = 0.6
    mask_type: Literal["rand", "block"] = "rand"
    decoder_embed_dim: int = 256
    decoder_depth: int = 4
    decoder_num_heads: int = 4  # not published: the published 6 does not divide 256

    def __post_init__(self):
        if self.embed_dim is not None:
            self.trans_dim = self.embed_dim
        super().__post_init__()
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth: {self.decoder_depth} must be at least 1")
        if (self.decoder_embed_dim, self.decoder_num_heads) == (256, 6):
            self.decoder_num_heads = 4
            _LOG.warning("decoder_num_heads: the published 6 does not divide the published width of 256; 4 are used")
        check_heads(self.decoder_embed_dim, self.decoder_num_heads, "decoder_num_heads", "decoder_embed_dim")


@dataclass
class InterMAEConfig:
    """Keys of Inter-MAE pre-training; defaults as published but for the image branch."""

    NAME: str = "Inter_MAE"
    num_group: int = 64
    group_size: int = 32
    loss: str = "cdl2"
    contrast_weight: float = 0.0001  # of the contrastive term
    temperature: float = 0.1
    transformer_config: InterMAETransformerConfig = field(default_factory=InterMAETransformerConfig)
    image_branch: ImageBranchConfig = field(default_factory=ImageBranchConfig)
    legacy: bool | list[str] = False

    def __post_init__(self):
        check_patches(self)
        check_rebuilding(self, self.transformer_config.mask_ratio)
        if self.contrast_weight < 0:
            raise ValueError(f"model.contrast_weight: {self.contrast_weight} must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"model.temperature: {self.temperature} must be above 0")


@MODELS.register("Inter_MAE", config=InterMAEConfig)
class InterMAE(nn.Module):
    """Hide patches, encode the visible ones, rebuild the hidden ones, and pull the whole cloud towards its picture.

    The model is the point side, as published checkpoints hold it. What trains on the image side is a part of the model only while
    it pre-trains: the guide sets `image_branch` (`tools/guides/inter_mae.py`).
    """

    LEGACY = ("fresh_image_branch",)
    method = "inter-mae"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ("image_branch.",)

    def __init__(self, config: InterMAEConfig):
        super().__init__()
        self.config = config
        legacy_names(config.legacy, self.LEGACY)
        inner = config.transformer_config
        self.MAE_encoder = MaskedEncoder(inner, embed=partial(GatedPatchEmbed, gate=inner.gate), timm_order=True)
        build_decoder(
            self,
            width=inner.decoder_embed_dim,
            depth=inner.decoder_depth,
            num_heads=inner.decoder_num_heads,
            drop_path_rate=inner.drop_path_rate,
            token_width=inner.trans_dim,
            timm_order=True,
        )
        self.pro_head = projection_head(2 * inner.decoder_embed_dim, FEATURES, FEATURES)
        self.pre_head = nn.Sequential(PointwiseConv(inner.decoder_embed_dim, 3 * config.group_size))
        self.image_branch: nn.Module | None = None

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3): a pyramid of one scale."""
        return group_pyramid(points, [self.config.num_group], [self.config.group_size])

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the groups to hide, as `forward` does where none are given."""
        return hide(self, pyramid, generator=generator, method="Inter-MAE")

    def forward(
        self,
        points: Tensor,
        masked: Tensor | KnownMask | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode, decode, compare with the cloud and with its picture.

        Args:
            points: (B, N, 3).
            masked: (B, G) bool, True = hidden, to replay a mask, as many in each sample; drawn from `generator` by default.
            pyramid: the groups of these points, where they are there already.
            targets: what the image branch takes, images (B, n, 3, S, S) or features of them (B, n, W); without an image branch their
                projected features (B, F). None leaves out the contrastive term.

        Returns:
            dict of `compare_patches`; "loss" is "loss_pc" plus "loss_fea", the weighted contrastive term. "features" (B, F) are those
            of the clouds, and "image_features" those of the images, where there are targets.
        """
        pyramid = self.group(points) if pyramid is None else pyramid
        masked, count = hide(self, pyramid, masked, generator=generator, method="Inter-MAE")
        seen, hidden = split_groups(masked, count)  # (B, V), (B, M)

        visible = self.MAE_encoder(pyramid, seen)  # (B, V, C)
        tokens = decode(self, visible, pyramid.centers[0], seen, hidden, keep_visible=True)  # (B, V + M, D)

        rebuilt = self.pre_head(tokens[:, seen.shape[1] :])  # (B, M, 3 * K)
        out = compare_patches(rebuilt, pyramid, masked, hidden, self.config.loss, synchronise=self.training)
        return out if targets is None else {**out, **self._contrast(tokens, targets, out["loss"])}

    def _contrast(self, tokens: Tensor, targets: Tensor, loss_pc: Tensor) -> dict[str, Tensor]:
        """Compare the decoded tokens (B, G, D) of whole clouds with images, and add that to the loss."""
        if len(targets) != len(tokens):
            raise ValueError(f"Inter-MAE: {len(tokens)} clouds and {len(targets)} sets of images do not pair up")
        features = self.pro_head(pool_tokens(tokens))  # (B, F)
        image_features = targets if self.image_branch is None else self.image_branch(targets)
        contrast = nt_xent(features, image_features, self.config.temperature, synchronise=self.training)
        loss_fea = self.config.contrast_weight * contrast
        return {
            "loss": loss_pc + loss_fea,
            "loss_pc": loss_pc,
            "loss_fea": loss_fea,
            "features": features,
            "image_features": image_features,
        }

    def patch_tokens(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) with nothing hidden as normed tokens (B, G, C)."""
        return self.MAE_encoder(self.group(points))

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: mean plus maximum over the tokens."""
        tokens = self.patch_tokens(points)
        return tokens.mean(1) + tokens.amax(1)


def pool_tokens(tokens: Tensor) -> Tensor:
    """Pool decoded tokens (B, G, D) as (B, 2 * D): token 0 beside the maximum of the others.

    Note:
        As published, where token 0 of another network was a class token; here it is the first visible patch
        (`tests/parity/test_inter_mae.py`).
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1)
