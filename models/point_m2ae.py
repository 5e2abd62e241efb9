"""Point-M2AE: multi-scale masked autoencoders for hierarchical point cloud pre-training (Zhang et al. 2022).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `C` channels, `L` masked patches of the batch;
scale index 0 = finest.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.hierarchical import build_autoencoder, compare_patches, decode, encode_visible
from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import rows_of
from models.legacy import legacy_names
from models.masking import KnownMask, hide_groups, hide_pyramid
from models.registry import MODELS


@dataclass
class HierarchyConfig:
    """Keys that every model with the hierarchical encoder has; defaults as published for pre-training."""

    NAME: str = "Point_M2AE"
    num_groups: list[int] = field(default_factory=lambda: [512, 256, 64])
    group_sizes: list[int] = field(default_factory=lambda: [16, 8, 8])
    encoder_dims: list[int] = field(default_factory=lambda: [96, 192, 384])
    encoder_depths: list[int] = field(default_factory=lambda: [5, 5, 5])
    local_radius: list[float] = field(default_factory=lambda: [0.32, 0.64, 1.28])
    embed_widths: list[int] = field(default_factory=lambda: [128, 256, 512])  # hidden, of the finest patch embedding
    num_heads: int = 6
    drop_path_rate: float = 0.1
    legacy: bool | list[str] = False

    def __post_init__(self):
        scales = {
            key: len(getattr(self, key)) for key in ("num_groups", "group_sizes", "encoder_dims", "encoder_depths")
        }
        scales["local_radius"] = len(self.local_radius)
        if len(set(scales.values())) != 1:
            raise ValueError(f"model: {scales} must all have one entry a scale; make the lists equally long")
        if len(self.embed_widths) != 3:
            raise ValueError(f"model.embed_widths: {self.embed_widths} must be three widths")
        for width in self.encoder_dims:
            if width % self.num_heads:
                raise ValueError(
                    f"model.encoder_dims: {width} does not divide by num_heads {self.num_heads}; change one of them"
                )


@dataclass
class PointM2AEConfig(HierarchyConfig):
    """Keys of Point-M2AE pre-training."""

    mask_ratio: float = 0.8
    decoder_dims: list[int] = field(default_factory=lambda: [384, 192])
    decoder_depths: list[int] = field(default_factory=lambda: [1, 1])
    decoder_up_blocks: list[int] = field(default_factory=lambda: [1, 1])
    loss: str = "cdl2"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.mask_ratio < 1 or int(self.mask_ratio * self.num_groups[-1]) < 1:
            raise ValueError(
                f"model.mask_ratio: {self.mask_ratio} of {self.num_groups[-1]} groups must hide at least one and leave one visible"
            )
        stages = len(self.decoder_dims)
        expected = list(reversed(self.encoder_dims))[:stages]
        if self.decoder_dims != expected:
            raise ValueError(
                f"model.decoder_dims: {self.decoder_dims} must be the coarsest encoder widths {expected}, coarse to fine"
            )
        if len(self.decoder_depths) != stages:
            raise ValueError(
                f"model.decoder_depths: {self.decoder_depths} must have {stages} entries, as decoder_dims has"
            )


@MODELS.register("Point_M2AE", config=PointM2AEConfig)
class PointM2AE(nn.Module):
    """Hide patches at every scale, encode what is visible from fine to coarse, rebuild what is hidden."""

    LEGACY = ("flat_token", "near_padding")
    method = "point-m2ae"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ()

    def __init__(self, config: PointM2AEConfig):
        super().__init__()
        self.config = config
        legacy = legacy_names(config.legacy, self.LEGACY)
        self.flat_token = "flat_token" in legacy

        build_autoencoder(self, config, near_padding="near_padding" in legacy)
        # As published: 3 * K of the finest scale, though the targets are patches of a coarser one. Chamfer does not mind.
        self.rec_head = PointwiseConv(config.decoder_dims[-1], 3 * config.group_sizes[0])

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3) at every scale."""
        return group_pyramid(points, self.config.num_groups, self.config.group_sizes)

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the coarsest groups to hide, as `forward` does where none are given."""
        return hide_groups(pyramid.centers[-1], ratio=self.config.mask_ratio, generator=generator, method="Point-M2AE")

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
            masked: (B, G_coarsest) bool, True = hidden, to replay a mask; drawn from `generator` by default.
            pyramid: the groups of these points, where they are there already.
            targets: methods with a teacher pass its features here; this one has none.

        Returns:
            what `compare_patches` returns of the L masked patches of the decoded scale, with K_0 rebuilt points each.
        """
        if targets is not None:
            raise ValueError("Point-M2AE: targets are for methods with a teacher; pass None")
        pyramid = self.group(points) if pyramid is None else pyramid
        scales, shown = hide_pyramid(
            pyramid,
            masked,
            ratio=self.config.mask_ratio,
            generator=generator,
            flat_token=self.flat_token,
            method="Point-M2AE",
        )
        encoded = self.h_encoder(pyramid, scales, shown=shown)
        tokens, scale = decode(self, pyramid, encoded)
        hidden = rows_of(scales[scale], fixed=encoded.fixed)
        rebuilt = self.rec_head(hidden.take(tokens))  # (L, 3 * K_0)
        return compare_patches(rebuilt, pyramid, scales, scale, hidden, self.config.loss, synchronise=self.training)

    def patch_tokens(self, points: Tensor, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or the groups of them, with nothing hidden as normed tokens (B, G, C) of the coarsest scale.

        Finer groups that belong to no neighbourhood of the scale above are left out of attention, as published.
        """
        pyramid = self.group(points) if pyramid is None else pyramid
        return encode_visible(self, pyramid, flat_token=self.flat_token, method="Point-M2AE")

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: mean plus maximum over the coarsest tokens."""
        tokens = self.patch_tokens(points)
        return tokens.mean(1) + tokens.amax(1)
