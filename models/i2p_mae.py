"""I2P-MAE: pre-training with what a 2D model makes of depth maps of the cloud (Zhang et al. 2023, arXiv 2212.06785).

Everything three-dimensional is Point-M2AE's. A frozen image teacher adds two things: it says which patches stay visible
(2D-guided masking, Sec. 3.2), and what visible tokens should mean (2D-semantic reconstruction, Sec. 3.3).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `C` channels of the teacher, `V` visible and `L` hidden patches of the
batch, `W` = 3 views; scale index 0 = finest.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.classifier import HierarchicalClassifier, HierarchicalClassifierConfig, HierarchicalScanObjectNNConfig
from models.hierarchical import HierarchicalMAE, HierarchicalMAEConfig
from models.images.projection import VIEWS, Depth, draw_depth, find_pixels, fit_frame, lift, turn_to_views
from models.images.teacher import ImageFeatures, TeacherConfig
from models.layers.group import Pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import Packing, Rows, rows_of
from models.losses import MeanLoss, at_least_float
from models.masking import image_guided_mask
from models.registry import MODELS

# Published names of image encoders -> timm's.
VISUAL_ENCODERS = {
    "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "ViT-B/32": "vit_base_patch32_clip_quickgelu_224",
    "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
    "ViT-L/14@336px": "vit_large_patch14_clip_quickgelu_336",
}
METHOD = "i2p-mae"


@dataclass
class ClipConfig:
    """The published keys of the image teacher."""

    visual_encoder: str = "ViT-B/16"
    feat_dim: int = 512  # channels of the teacher's features; the published head of the 2D targets has this width


@dataclass
class I2PMAEConfig(HierarchicalMAEConfig):
    """Keys of I2P-MAE pre-training; defaults as published."""

    NAME: str = "I2P_MAE"
    local_radius: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    clip_config: ClipConfig = field(default_factory=ClipConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mask_temperature: float = 1.0  # of the softmax over saliency; as published 1, which is nearly uniform
    # The two schemes of the paper, one by one for ablations.
    guided_mask: bool = True  # salient patches stay visible; else the mask is random
    image_targets: bool = True  # visible patches are rebuilt in 2D semantics as well

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
class I2PMAE(HierarchicalMAE):
    """Keep the salient patches, encode them from fine to coarse, rebuild the hidden ones in 3D and the visible ones in 2D semantics.

    Targets are `Guidance.targets`; without them the loss has its 3D part only.
    """

    method = METHOD
    taught = True
    own_keys = ("rec_head_3d.", "clip_model.")
    ignored_keys = ("clip_model.",)
    svm_C: ClassVar = {"modelnet40": 0.0093, "scan": 0.018}

    def __init__(self, config: I2PMAEConfig):
        super().__init__(config)
        # Of what each token of the decoded scale was merged from: the coordinates, and the features in all views.
        width, members = config.decoder_dims[-1], config.group_sizes[self.decoded_scale]
        self.rec_head_3d = PointwiseConv(width, 3 * members)
        self.rec_head_2d = PointwiseConv(width, len(VIEWS) * config.clip_config.feat_dim * members)
        self.rec_head_2d.requires_grad_(config.image_targets)
        self.semantic_mean = MeanLoss()

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Tensor | None = None) -> dict[str, Tensor]:
        """Encode what is visible, rebuild what is hidden in 3D, compare; compare in 2D what is visible.

        "loss" is the sum of "loss_3d" and, with targets, "loss_2d".
        """
        tokens = self.decode(pyramid, masks, self.encode_visible(pyramid, masks))  # (B, G, C)
        hidden = self.hidden_rows(masks)
        out = self.compare(self.rec_head_3d(hidden.take(tokens)), pyramid, masks, hidden)
        out["loss_3d"] = out["loss"]
        if targets is not None and self.config.image_targets:
            mask = masks[self.decoded_scale]
            visible = rows_of(mask.visible, mask.order.shape[1], tight=self.near_padding)
            meant = self.rec_head_2d(visible.take(tokens))  # (V, K * W * C)
            out["loss_2d"] = self._compare_semantics(meant, pyramid.idx[self.decoded_scale], visible, targets)
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
        merged = members.flatten(0, 1)[visible.index]  # (V, K)
        wanted = targets[visible.samples().unsqueeze(1), merged]  # (V, K, W * C)
        squares = (at_least_float(meant) - wanted.flatten(1)).square().mean(1)  # (V,)
        return self.semantic_mean(squares, visible.valid)

    def mask_by_saliency(self, saliency: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the coarsest groups to hide, (B, G) bool, from their saliency (B, G): 2D-guided masking."""
        ratio, temperature = self.config.mask_ratio, self.config.mask_temperature
        if not self.config.guided_mask:
            saliency = torch.zeros_like(saliency)
        return image_guided_mask(saliency, ratio, temperature=temperature, generator=generator)

    def pool(self, tokens: Tensor) -> Tensor:
        """Sum tokens (B, G, C) of a cloud up as features (B, C) for a linear SVM: their maximum."""
        return tokens.amax(1)


def encode_views(points: Tensor, teacher: nn.Module, *, size: int, depth: Depth) -> ImageFeatures:
    """Let a teacher encode depth maps of points (B, N, 3): its features of each of the W * B views (Zhang et al. 2023, Sec. 3.2)."""
    frame = fit_frame(turn_to_views(points), size)
    return teacher(draw_depth(points, frame, depth))


def guide(points: Tensor, pyramid: Pyramid, views: ImageFeatures, *, size: int, scale: int) -> Guidance:
    """Carry what a teacher said of the views of points (B, N, 3) back to their groups.

    Args:
        views: of these points, drawn `size` pixels large.
        scale: the decoded one.

    Returns:
        The saliency of the coarsest groups, a mean over the views, and the features of what decoded tokens are merged from, the groups of
        the scale below (points below scale 0), the views' channels one after the other.
    """
    frame = fit_frame(turn_to_views(points), size)
    salient = lift(views.saliency.unsqueeze(1), find_pixels(pyramid.centers[-1], frame), size)  # (W * B, G, 1)
    members = pyramid.centers[scale - 1] if scale > 0 else points
    features = lift(views.features, find_pixels(members, frame), size)  # (W * B, G, C)
    saliency = torch.stack(salient.squeeze(-1).chunk(len(VIEWS))).mean(0)
    return Guidance(saliency, torch.cat(features.chunk(len(VIEWS)), dim=-1))


@dataclass
class I2PMAEModelNet40Config(HierarchicalClassifierConfig):
    """Keys of I2P-MAE's classifier; defaults as published for ModelNet40."""

    NAME: str = "I2P_MAE_ModelNet40"
    group_sizes: list[int] = field(default_factory=lambda: [48, 24, 24])
    local_radius: list[float] = field(default_factory=lambda: [0.24, 0.48, 0.96])
    smooth: float = 0.2


@dataclass
class I2PMAEScanObjectNNConfig(HierarchicalScanObjectNNConfig):
    """The same keys with the defaults published for ScanObjectNN; the pool takes all tokens."""

    NAME: str = "I2P_MAE_ScanObjectNN"
    pooling: str = "mean,max"

    # The published program chooses by the name of the model how clouds are augmented.
    published_augmentation: ClassVar[str] = "batch_rotate"


@MODELS.register("I2P_MAE_ModelNet40", config=I2PMAEModelNet40Config)
@MODELS.register("I2P_MAE_ScanObjectNN", config=I2PMAEScanObjectNNConfig)
class I2PMAEClassifier(HierarchicalClassifier):
    """Fine-tune I2P-MAE's encoder to classify (Zhang et al. 2023, Sec. 4.2)."""

    method = METHOD
    ignored_keys = (*HierarchicalClassifier.ignored_keys, "rec_head_3d.", "rec_head_2d.", "clip_model.")
