"""Point-MAE: masked autoencoders for point clouds (Pang et al. 2022).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `M` masked groups of a sample, `C` channels, `L` = B * M.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import PointwiseConv
from models.legacy import legacy_names
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


@dataclass
class PointMAETransformerConfig(SingleScaleConfig):
    """Keys of `transformer_config`: encoder, decoder and mask."""

    mask_ratio: float = 0.6
    mask_type: Literal["rand", "block"] = "rand"
    decoder_depth: int = 4
    decoder_num_heads: int = 6

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth: {self.decoder_depth} must be at least 1")
        check_heads(self.trans_dim, self.decoder_num_heads, "decoder_num_heads")


@dataclass
class PointMAEConfig:
    """Keys of Point-MAE pre-training; defaults as published."""

    NAME: str = "Point_MAE"
    num_group: int = 64
    group_size: int = 32
    loss: str = "cdl2"
    transformer_config: PointMAETransformerConfig = field(default_factory=PointMAETransformerConfig)
    legacy: bool | list[str] = False

    def __post_init__(self):
        check_patches(self)
        check_rebuilding(self, self.transformer_config.mask_ratio)


@MODELS.register("Point_MAE", config=PointMAEConfig)
class PointMAE(nn.Module):
    """Hide patches, encode the visible ones, rebuild the hidden ones from mask tokens."""

    LEGACY = ()
    method = "point-mae"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ()

    def __init__(self, config: PointMAEConfig):
        super().__init__()
        self.config = config
        legacy_names(config.legacy, self.LEGACY)
        inner = config.transformer_config
        self.MAE_encoder = MaskedEncoder(inner)
        build_decoder(
            self,
            width=inner.trans_dim,
            depth=inner.decoder_depth,
            num_heads=inner.decoder_num_heads,
            drop_path_rate=inner.drop_path_rate,
        )
        self.increase_dim = nn.Sequential(PointwiseConv(inner.trans_dim, 3 * config.group_size))

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3): a pyramid of one scale."""
        return group_pyramid(points, [self.config.num_group], [self.config.group_size])

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the groups to hide, as `forward` does where none are given."""
        return hide(self, pyramid, generator=generator, method="Point-MAE")

    def forward(
        self,
        points: Tensor,
        masked: Tensor | KnownMask | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode, decode, compare.

        Args:
            points: (B, N, 3).
            masked: (B, G) bool, True = hidden, to replay a mask, as many in each sample; drawn from `generator` by default.
            pyramid: the groups of these points, where they are there already.
            targets: methods with a teacher pass its features here; this one has none.

        Returns:
            dict with the scalar "loss", "masked" and "masked_finest" (B, G), the same for one scale, and for the L masked patches
            "rebuilt" (L, K, 3) and "target" (L, K, 3), relative to "centers" (L, 3), sample after sample in index order;
            "samples" (L,) says whose each is.
        """
        if targets is not None:
            raise ValueError("Point-MAE: targets are for methods with a teacher; pass None")
        pyramid = self.group(points) if pyramid is None else pyramid
        masked, count = hide(self, pyramid, masked, generator=generator, method="Point-MAE")
        seen, hidden = split_groups(masked, count)  # (B, V), (B, M)

        visible = self.MAE_encoder(pyramid, seen)  # (B, V, C)
        tokens = decode(self, visible, pyramid.centers[0], seen, hidden)  # (B, M, C)

        rebuilt = self.increase_dim(tokens)  # (B, M, 3 * K)
        return compare_patches(rebuilt, pyramid, masked, hidden, self.config.loss, synchronise=self.training)

    def patch_tokens(self, points: Tensor, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or the groups of them, with nothing hidden as normed tokens (B, G, C)."""
        return self.MAE_encoder(self.group(points) if pyramid is None else pyramid)

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: mean plus maximum over the tokens."""
        tokens = self.patch_tokens(points)
        return tokens.mean(1) + tokens.amax(1)
