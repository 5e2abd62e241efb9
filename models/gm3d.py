"""GeoMask3D: masks that seek the patches that are hard to rebuild (GM3D, arXiv 2405.12419), around Point-MAE.

A second decoder predicts how hard each patch is. Its running average looks at the complete cloud and chooses what to hide; a frozen,
pre-trained model of the base method gives the features that hidden patches should have. Both are the guide's (`tools/guides/gm3d.py`).

Shapes: `B` batch, `N` points, `G` groups, `V` visible and `M` hidden groups of a sample, `K` points per patch, `C` channels,
`L` = B * M.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from extensions import gather
from models.complexity import (
    UNTRAINED_HEAD,
    GuidanceConfig,
    Targets,
    base_keys,
    build_complexity,
    choose_hidden,
    freeze,
    guided_losses,
    predict_complexity,
)
from models.layers.embed import position_embed
from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import PointwiseConv
from models.legacy import legacy_names
from models.losses import feature_distance, patch_losses
from models.masking import KnownMask, split_groups
from models.point_mae import PointMAEConfig
from models.registry import MODELS
from models.single_scale import POSITION_HIDDEN, MaskedEncoder, beside_patches, decode, decoder_blocks


@dataclass
class GM3DConfig(PointMAEConfig):
    """Keys of GM3D around Point-MAE: those of Point-MAE, and `guidance`."""

    NAME: str = "GM3D"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def __post_init__(self):
        self.guidance.check(self.num_group, self.transformer_config.mask_ratio)
        super().__post_init__()
        if self.transformer_config.mask_type != "rand":
            raise ValueError("model.transformer_config.mask_type: GM3D chooses patches one by one; set it to rand")

    def base(self) -> PointMAEConfig:
        """Return the keys of the base method alone."""
        return base_keys(self, PointMAEConfig)


@MODELS.register("GM3D", config=GM3DConfig)
class GM3D(nn.Module):
    """Point-MAE that learns which patches are hard; parameters carry the released names."""

    LEGACY = ()
    method = "gm3d"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ()

    def __init__(self, config: GM3DConfig):
        super().__init__()
        self.config = config
        legacy_names(config.legacy, self.LEGACY)
        inner, guidance = config.transformer_config, config.guidance
        width, heads, drop = inner.trans_dim, inner.decoder_num_heads, inner.drop_path_rate
        self.masked_count = guidance.masked_count(config.num_group, inner.mask_ratio)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.MAE_encoder = MaskedEncoder(inner, norm="norm_p", timm_order=True, truncated=False)
        self.MAE_decoder = decoder_blocks(width, inner.decoder_depth, heads, drop, timm_order=True)
        head = build_complexity(self, width=width, num_heads=heads, drop_path_rate=drop, guidance=guidance)
        self.norm_p = nn.LayerNorm(width)  # released, never used
        self.decoder_pos_embed = position_embed(width, POSITION_HIDDEN)
        self.increase_dim_2 = head
        self.increase_dim_just_network_without_feature = nn.Sequential(PointwiseConv(width, 3 * config.group_size))
        freeze([self.norm_p])
        if guidance.mode == "feature":
            freeze([self.increase_dim_just_network_without_feature])  # the teacher's head rebuilds the points
            self.picture_hint = UNTRAINED_HEAD

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3): a pyramid of one scale."""
        return group_pyramid(points, [self.config.num_group], [self.config.group_size])

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the groups to hide uniformly, as `forward` does where none are given."""
        return choose_hidden(self, pyramid, None, None, generator)

    def forward(
        self,
        points: Tensor,
        masked: Tensor | KnownMask | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: Targets | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode, decode features and complexity, compare.

        Args:
            points: (B, N, 3).
            masked: (B, G) bool, True = hidden, as many in each sample; the guide's, or one to replay; random by default.
            pyramid: the groups of these points, where they are there already.
            targets: the guide's. Without them, or without a teacher in them, hidden patches are rebuilt by the model's own head.

        Returns:
            what Point-MAE returns, the single losses, and "complexity" (B, M): predicted for the hidden groups, in index order.
        """
        pyramid = self.group(points) if pyramid is None else pyramid
        masked, count = choose_hidden(self, pyramid, masked, targets, generator)
        seen, hidden = split_groups(masked, count)  # (B, V), (B, M)

        visible = self.MAE_encoder(pyramid, seen)  # (B, V, C)
        features = decode(self, visible, pyramid.centers[0], seen, hidden)  # (B, M, C)
        position = self.decoder_pos_embed(gather(pyramid.centers[0], torch.cat([seen, hidden], dim=1)))  # (B, V + M, C)
        complexity = predict_complexity(self, visible, self._placeholder(), position)[:, visible.shape[1] :]  # (B, M)

        if targets is None or targets.teacher is None:
            rebuilt = self.increase_dim_just_network_without_feature(features)  # (B, M, 3 * K)
            out = beside_patches(rebuilt, pyramid, masked, hidden)
            parts = {"loss_chamfer": patch_losses(out["rebuilt"], out["target"], self.config.loss)}
        else:
            rebuilt, parts = self._distil(targets, features, pyramid, hidden)
            out = beside_patches(rebuilt, pyramid, masked, hidden)
        losses = guided_losses(
            self.config.guidance,
            parts,
            prediction=complexity,
            difficulty=sum(values.view(hidden.shape) for values in parts.values()),
            hidden=hidden,
            targets=targets,
            synchronise=self.training,
        )
        return {**losses, **out, "complexity": complexity}

    def _distil(self, targets: Targets, features: Tensor, pyramid: Pyramid, hidden: Tensor) -> tuple[Tensor, dict]:
        """Compare features (B, M, C) of hidden patches, and the points that the teacher decodes from them, with the complete cloud's.

        Returns the decoded points (B, M, K, 3) and the two losses of each patch.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.guidance.detach_chamfer):
            rebuilt = targets.teacher.rebuild(features, gather(pyramid.centers[0], hidden))
        complete = gather(targets.complete.patches.flatten(2), hidden).view_as(rebuilt)
        return rebuilt, {
            "loss_feature": feature_distance(features, gather(targets.complete.features, hidden)),
            "loss_chamfer": patch_losses(rebuilt.flatten(0, 1), complete.flatten(0, 1), self.config.loss),
        }

    def _placeholder(self) -> Tensor:
        return self.mask_token if self.config.guidance.shared_mask_token else self.mask_token_loss_pred

    def complexity(self, pyramid: Pyramid) -> Tensor:
        """Predict how hard each group is to rebuild, (B, G), with nothing hidden."""
        visible = self.patch_tokens(None, pyramid)
        return predict_complexity(self, visible, self._placeholder(), self.decoder_pos_embed(pyramid.centers[0]))

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or the groups of them, with nothing hidden as normed tokens (B, G, C)."""
        return self.MAE_encoder(self.group(points) if pyramid is None else pyramid)

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: mean plus maximum over the tokens."""
        tokens = self.patch_tokens(points)
        return tokens.mean(1) + tokens.amax(1)
