"""I2P-MAE: pre-training with what a 2D model sees in depth maps of the cloud (Zhang et al. 2023, arXiv 2212.06785).

Everything three-dimensional is Point-M2AE's. A frozen image teacher adds two things: it says which patches stay visible
(2D-guided masking, Sec. 3.2), and what visible tokens should mean (2D-semantic reconstruction, Sec. 3.3).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `C` channels of the teacher, `V` visible and `L` masked patches of the
batch, `W` = 3 views; scale index 0 = finest.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.hierarchical import build_autoencoder, compare_patches, decode, encode_visible
from models.images.projection import VIEWS, Depth, draw_depth, find_pixels, fit_frame, lift, turn_to_views
from models.images.teacher import Seen, TeacherConfig
from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import Rows, packed_rows, rows_of
from models.legacy import legacy_names
from models.losses import mean_loss
from models.masking import KnownMask, hide_groups, hide_pyramid, image_guided_mask
from models.point_m2ae import PointM2AEConfig
from models.registry import MODELS

# Published names of image encoders -> timm's.
VISUAL_ENCODERS = {
    "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "ViT-B/32": "vit_base_patch32_clip_quickgelu_224",
    "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
    "ViT-L/14@336px": "vit_large_patch14_clip_quickgelu_336",
}


@dataclass
class ClipConfig:
    """The published keys of the image teacher."""

    visual_encoder: str = "ViT-B/16"
    feat_dim: int = 512  # channels of the teacher's features; the published head of the 2D targets has this width


@dataclass
class I2PMAEConfig(PointM2AEConfig):
    """Keys of I2P-MAE pre-training; defaults as published."""

    NAME: str = "I2P_MAE"
    local_radius: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    clip_config: ClipConfig = field(default_factory=ClipConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mask_temperature: float = 1.0  # of the softmax over saliency; as published 1, which is nearly uniform

    def __post_init__(self):
        super().__post_init__()
        if self.teacher.name is None:
            encoder = self.clip_config.visual_encoder
            if encoder not in VISUAL_ENCODERS:
                raise ValueError(
                    f"clip_config.visual_encoder: {encoder!r} is unknown; choose from {', '.join(VISUAL_ENCODERS)}, "
                    "or set teacher.name to a Vision Transformer of timm"
                )
            self.teacher.name = VISUAL_ENCODERS[encoder]
        if self.clip_config.feat_dim < 1:
            raise ValueError(f"clip_config.feat_dim: {self.clip_config.feat_dim} must be at least 1")
        if self.mask_temperature <= 0:
            raise ValueError(f"mask_temperature: {self.mask_temperature} must be above 0")


class Guidance(NamedTuple):
    """What the teacher has to say of a batch."""

    saliency: Tensor  # (B, G_coarsest)
    targets: Tensor  # (B, G, W * C), image features of what tokens of the decoded scale are merged from


@MODELS.register("I2P_MAE", config=I2PMAEConfig)
class I2PMAE(nn.Module):
    """Keep the salient patches, encode them from fine to coarse, rebuild the masked ones in 3D and the visible ones in 2D semantics."""

    LEGACY = ("flat_token", "near_padding")
    method = "i2p-mae"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ("clip_model.",)

    def __init__(self, config: I2PMAEConfig):
        super().__init__()
        self.config = config
        legacy = legacy_names(config.legacy, self.LEGACY)
        self.flat_token = "flat_token" in legacy
        build_autoencoder(self, config, near_padding="near_padding" in legacy)
        # Of what each token of the decoded scale was merged from: the coordinates, and the features in all views.
        self.decoded_scale = len(config.group_sizes) - len(config.decoder_dims)
        width, members = config.decoder_dims[-1], config.group_sizes[self.decoded_scale]
        self.rec_head_3d = PointwiseConv(width, 3 * members)
        self.rec_head_2d = PointwiseConv(width, len(VIEWS) * config.clip_config.feat_dim * members)

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3) at every scale."""
        return group_pyramid(points, self.config.num_groups, self.config.group_sizes)

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the coarsest groups to hide uniformly, as `forward` does where none are given; `mask` draws by saliency."""
        return hide_groups(pyramid.centers[-1], ratio=self.config.mask_ratio, generator=generator, method="I2P-MAE")

    def forward(
        self,
        points: Tensor,
        masked: Tensor | KnownMask | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode, decode, compare in 3D what was hidden and in 2D what was seen.

        Args:
            points: (B, N, 3).
            masked: (B, G_coarsest) bool, True = hidden; `mask` draws it from the teacher's saliency. Default: drawn uniformly.
            pyramid: the groups of these points, where they are there already.
            targets: (B, G, W * C), `Guidance.targets`. Without them the loss has its 3D part only.

        Returns:
            what `compare_patches` returns of the L masked patches of the decoded scale; "loss" is the sum of "loss_3d" and, with targets,
            "loss_2d".
        """
        pyramid = self.group(points) if pyramid is None else pyramid
        scales, shown = hide_pyramid(
            pyramid,
            masked,
            ratio=self.config.mask_ratio,
            generator=generator,
            flat_token=self.flat_token,
            method="I2P-MAE",
        )
        encoded = self.h_encoder(pyramid, scales, shown=shown)
        tokens, scale = decode(self, pyramid, encoded)

        hidden = rows_of(scales[scale], fixed=encoded.fixed)
        rebuilt = self.rec_head_3d(hidden.take(tokens))  # (L, 3 * K)
        out = compare_patches(rebuilt, pyramid, scales, scale, hidden, self.config.loss, synchronise=self.training)
        out["loss_3d"] = out["loss"]
        if targets is not None:
            visible = packed_rows(encoded.packings[scale], fixed=encoded.fixed)
            meant = self.rec_head_2d(visible.take(tokens))  # (V, K * W * C)
            out["loss_2d"] = self._compare_semantics(meant, pyramid.idx[scale], visible, targets)
            out["loss"] = out["loss_3d"] + out["loss_2d"]
        return out

    def _compare_semantics(self, meant: Tensor, members: Tensor, visible: Rows, targets: Tensor) -> Tensor:
        """Return the mean squared difference of predicted features (V, K * W * C) and those of the members (B, G, K) of visible groups."""
        B, _, K = members.shape
        if targets.dim() != 3 or len(targets) != B or targets.shape[-1] * K != meant.shape[-1]:
            width = len(VIEWS) * self.config.clip_config.feat_dim
            raise ValueError(
                f"I2P-MAE: targets must be ({B}, groups below the decoded scale, {width}), got {tuple(targets.shape)}; "
                "model.clip_config.feat_dim must be the width of the teacher's features"
            )
        wanted = targets[visible.samples().unsqueeze(1), visible.take(members)]  # (V, K, W * C)
        squares = (meant.float() - wanted.flatten(1)).square().mean(1)  # (V,)
        return mean_loss(squares, visible.valid, synchronise=self.training)

    def mask(self, saliency: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the coarsest groups to hide, (B, G) bool, from their saliency (B, G): 2D-guided masking."""
        ratio, temperature = self.config.mask_ratio, self.config.mask_temperature
        return image_guided_mask(saliency, ratio, temperature=temperature, generator=generator)

    def patch_tokens(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) with nothing hidden as normed tokens (B, G, C) of the coarsest scale.

        Finer groups that belong to no neighbourhood of the scale above are left out of attention, as published.
        """
        return encode_visible(self, self.group(points), flat_token=self.flat_token, method="I2P-MAE")

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: the maximum over the coarsest tokens."""
        return self.patch_tokens(points).amax(1)


def look(points: Tensor, teacher: nn.Module, *, size: int, depth: Depth) -> Seen:
    """Show depth maps of points (B, N, 3) to a teacher: what it sees in each of the W * B views (Zhang et al. 2023, Sec. 3.2)."""
    frame = fit_frame(turn_to_views(points), size)
    return teacher(draw_depth(points, frame, depth))


def guide(points: Tensor, pyramid: Pyramid, seen: Seen, *, size: int, scale: int) -> Guidance:
    """Carry what a teacher saw in the views of points (B, N, 3) back to their groups.

    Args:
        seen: of the views of these points, drawn `size` pixels large.
        scale: the decoded one.

    Returns:
        The saliency of the coarsest groups, a mean over the views, and the features of what decoded tokens are merged from, the groups of
        the scale below (points below scale 0), view beside view.
    """
    frame = fit_frame(turn_to_views(points), size)
    salient = lift(seen.saliency.unsqueeze(1), find_pixels(pyramid.centers[-1], frame), size)  # (W * B, G, 1)
    members = pyramid.centers[scale - 1] if scale > 0 else points
    features = lift(seen.features, find_pixels(members, frame), size)  # (W * B, G, C)
    saliency = torch.stack(salient.squeeze(-1).chunk(len(VIEWS))).mean(0)
    return Guidance(saliency, torch.cat(features.chunk(len(VIEWS)), dim=-1))
