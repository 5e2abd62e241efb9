"""GeoMask3D around Point-M2AE: the coarsest scale is guided, the scale that Point-M2AE rebuilds is distilled.

The paper reports this variant, its code is not public. What follows from Point-M2AE's own rules is taken from there; the choices that
are ours stand in docs/deviations.md.

Shapes: `B` batch, `N` points, `G` groups, `V` visible and `M` hidden groups of the coarsest scale, `K` points per patch, `C` channels,
`L` hidden patches of the batch on the scale that is rebuilt; scale index 0 = finest.
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
from models.hierarchical import beside_patches, decode
from models.layers.group import Pyramid
from models.layers.packing import Rows, rows_of
from models.losses import feature_distance, patch_losses
from models.masking import KnownMask, back_project, split_groups
from models.point_m2ae import PointM2AE, PointM2AEConfig
from models.registry import MODELS


@dataclass
class GM3DPointM2AEConfig(PointM2AEConfig):
    """Keys of GM3D around Point-M2AE: those of Point-M2AE, and `guidance`."""

    NAME: str = "GM3D_Point_M2AE"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    def __post_init__(self):
        self.guidance.check(self.num_groups[-1], self.mask_ratio)
        super().__post_init__()

    def base(self) -> PointM2AEConfig:
        """Return the keys of the base method alone."""
        return base_keys(self, PointM2AEConfig)


@MODELS.register("GM3D_Point_M2AE", config=GM3DPointM2AEConfig)
class GM3DPointM2AE(nn.Module):
    """Point-M2AE, kept as `base`, that learns which of its coarsest patches are hard."""

    LEGACY = PointM2AE.LEGACY
    method = "gm3d-point-m2ae"
    checkpoint_missing: tuple[str, ...] = ()
    checkpoint_ignored: tuple[str, ...] = ()

    def __init__(self, config: GM3DPointM2AEConfig):
        super().__init__()
        self.config = config
        guidance = config.guidance
        self.masked_count = guidance.masked_count(config.num_groups[-1], config.mask_ratio)
        self.base = PointM2AE(config.base())
        self.increase_dim_2 = build_complexity(
            self,
            width=config.encoder_dims[-1],
            num_heads=config.num_heads,
            drop_path_rate=config.drop_path_rate,
            guidance=guidance,
        )
        if guidance.mode == "feature":
            freeze([self.base.rec_head])  # the teacher's head rebuilds the points
            self.picture_hint = UNTRAINED_HEAD

    def group(self, points: Tensor) -> Pyramid:
        """Group points (B, N, 3) at every scale."""
        return self.base.group(points)

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> KnownMask:
        """Draw the coarsest groups to hide uniformly, as `forward` does where none are given."""
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
        """Mask the coarsest scale, carry the mask down, encode, decode features and complexity, compare.

        Args:
            points: (B, N, 3).
            masked: (B, G_coarsest) bool, True = hidden, as many in each sample; the guide's, or one to replay; random by default.
            pyramid: the groups of these points, where they are there already.
            targets: the guide's. Without them, or without a teacher in them, hidden patches are rebuilt by the model's own head.

        Returns:
            what Point-M2AE returns, the single losses, and "complexity" (B, M): predicted for the hidden groups, in index order.
        """
        base = self.base
        pyramid = self.group(points) if pyramid is None else pyramid
        masked, count = choose_hidden(self, pyramid, masked, targets, generator)
        scales = back_project(masked, pyramid.idx, self.config.num_groups, flat_token=base.flat_token)
        seen, hidden = split_groups(masked, count)  # (B, V), (B, M)

        shown = None if base.flat_token else seen.shape[1]
        encoded = base.h_encoder(pyramid, scales, shown=shown)
        tokens, scale = decode(base, pyramid, encoded)
        finer = rows_of(scales[scale], fixed=encoded.fixed)
        features = finer.take(tokens)  # (L, C)
        visible = base.h_encoder.encoder_norms[-1](encoded.tokens[-1][:, : seen.shape[1]])  # (B, V, C)
        position = base.decoder_pos_embeds[0](gather(pyramid.centers[-1], torch.cat([seen, hidden], dim=1)))
        complexity = predict_complexity(self, visible, self._placeholder(), position)[:, visible.shape[1] :]  # (B, M)

        if targets is None or targets.teacher is None:
            out = beside_patches(base.rec_head(features), pyramid, scales, scale, finer)
            parts = {"loss_chamfer": patch_losses(out["rebuilt"], out["target"], self.config.loss)}
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.guidance.detach_chamfer):
                rebuilt = targets.teacher.rebuild(features, finer.take(pyramid.centers[scale]))  # (L, K_0, 3)
            out = beside_patches(rebuilt, pyramid, scales, scale, finer)
            parts = {
                "loss_feature": feature_distance(features, finer.take(targets.complete.features)),
                "loss_chamfer": patch_losses(rebuilt, finer.take(targets.complete.patches), self.config.loss),
            }
        difficulty, known = carry_up(sum(parts.values()).detach(), finer, pyramid.idx[scale + 1 :])
        losses = guided_losses(
            self.config.guidance,
            parts,
            prediction=complexity,
            difficulty=difficulty.gather(1, hidden),
            valid=known.gather(1, hidden),
            real=finer.valid,
            hidden=hidden,
            targets=targets,
            synchronise=self.training,
        )
        return {**losses, **out, "complexity": complexity}

    def _placeholder(self) -> Tensor:
        return self.base.mask_token if self.config.guidance.shared_mask_token else self.mask_token_loss_pred

    def complexity(self, pyramid: Pyramid) -> Tensor:
        """Predict how hard each coarsest group is to rebuild, (B, G), with nothing hidden."""
        visible = self.patch_tokens(None, pyramid)
        return predict_complexity(
            self, visible, self._placeholder(), self.base.decoder_pos_embeds[0](pyramid.centers[-1])
        )

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or the groups of them, with nothing hidden as normed tokens (B, G, C) of the coarsest scale."""
        return self.base.patch_tokens(points, pyramid)

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as features (B, C) for a linear SVM: mean plus maximum over the coarsest tokens."""
        return self.base.encode(points)


def carry_up(values: Tensor, hidden: Rows, member_idx: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Average the losses of hidden patches over the groups that hold them, scale by scale up to the coarsest.

    Args:
        values: (L,) one a row.
        hidden: the rows of the hidden patches.
        member_idx: `Pyramid.idx` of the scales above, (B, G, K) each.

    Returns:
        (B, G_coarsest) means, and bool: True where a group holds a hidden patch at all.
    """
    total, known = hidden.spread(values), hidden.chosen
    for idx in member_idx:
        B, G, K = idx.shape
        members, there = (part.gather(1, idx.reshape(B, -1)).view(B, G, K) for part in (total, known))
        count = there.sum(2)
        # In double precision, where the sum of a few floats does not depend on their order: groups with the same members are as hard as
        # each other, and rounding must not make a pair of them for the ranking loss.
        total = ((members * there).double().sum(2) / count.clamp(min=1)).to(values.dtype)
        known = count > 0
    return total, known
