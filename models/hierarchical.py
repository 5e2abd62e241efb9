"""The multi-scale encoder and decoder that Point-M2AE introduced and I2P-MAE and GM3D reuse.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `V` visible tokens, `C` channels; scale index 0 = finest.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from extensions import gather, near_first
from models.layers.embed import PatchEmbed, position_embed
from models.layers.group import Pyramid
from models.layers.init import init_truncated_normal, init_xavier
from models.layers.packing import Packing, Rows, pack, pack_everything, plan_packing, unpack
from models.layers.propagate import TokenPropagation
from models.layers.transformer import Blocks, drop_path_rates
from models.losses import reconstruction_loss
from models.masking import capacities, hide_pyramid


class Encoded(NamedTuple):
    """What the encoder saw, scale by scale: packed tokens (B, V_s, C_s), not yet normed, and where they belong."""

    tokens: list[Tensor]
    packings: list[Packing]
    fixed: bool  # no shape depends on the mask


class HierarchicalEncoder(nn.Module):
    """Encode a pyramid from fine to coarse; each scale embeds the tokens of the one below (Zhang et al. 2022, Sec. 3.2).

    Args:
        dims, depths, local_radius: width, number of blocks and attention radius of each scale.
        embed_widths: hidden widths of the finest patch embedding, as in `PatchEmbed`.
        with_norms: keep the layer norms that pre-training and part segmentation apply to each scale's output.
        near_padding: let visible tokens attend to padding nearer than the radius, as the published code does. The output of a
            sample then depends on the other samples of its batch. One name of `legacy`.

    Attributes:
        fixed_shapes: pack visible tokens into shapes that no mask changes. Results are the same up to rounding. None: everywhere but on the
            CPU, where padding costs more than looking how many are visible, and where waiting for that costs nothing.
    """

    fixed_shapes: bool | None = None

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int,
        local_radius: Sequence[float],
        drop_path_rate: float,
        embed_widths: Sequence[int] = (128, 256, 512),
        with_norms: bool = True,
        near_padding: bool = False,
    ):
        super().__init__()
        self.local_radius = tuple(local_radius)
        self.near_padding = near_padding
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))

        self.token_embed = nn.ModuleList()
        self.encoder_pos_embeds = nn.ModuleList()
        self.encoder_blocks = nn.ModuleList()
        self.encoder_norms = nn.ModuleList() if with_norms else None
        for scale, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            if scale == 0:
                self.token_embed.append(PatchEmbed(3, width, widths=tuple(embed_widths)))
            else:
                below = dims[scale - 1]
                self.token_embed.append(PatchEmbed(below, width, widths=(below, below, width)))
            self.encoder_pos_embeds.append(position_embed(width))
            self.encoder_blocks.append(Blocks(width, num_heads, drop_paths=[next(rates) for _ in range(depth)]))
            if with_norms:
                self.encoder_norms.append(nn.LayerNorm(width))
        self.apply(init_truncated_normal)

    def forward(self, pyramid: Pyramid, masked: Sequence[Tensor] | None = None, *, shown: int | None = None) -> Encoded:
        """Encode the visible groups of each scale.

        Args:
            masked: one (B, G_s) bool a scale, True = hidden: visible tokens attend to each other wherever they are. None: all groups
                are visible, and attention reaches only as far as the local radius of the scale.
            shown: most groups of the coarsest scale that a sample shows, where that is known; fixed shapes are smaller then.
        """
        fixed = self.fixes_shapes(pyramid.centers[0].device)
        groups = [centers.shape[1] for centers in pyramid.centers]
        most = groups if shown is None else capacities(pyramid, shown)
        encoded = Encoded([], [], fixed)
        tokens = None
        for scale, centers in enumerate(pyramid.centers):
            members = pyramid.neighborhoods[0] if scale == 0 else gather(tokens, pyramid.idx[scale])
            tokens = self.token_embed[scale](members)  # (B, G, C), masked groups included
            if masked is None:
                packing = pack_everything(tokens)
            else:
                packing = plan_packing(~masked[scale], capacity=most[scale] if fixed else None)
            seen = self._encode_scale(scale, tokens, centers, packing, local=masked is None)
            encoded.tokens.append(seen)
            encoded.packings.append(packing)
            tokens = seen if masked is None else unpack(seen, packing, background=tokens)
        return encoded

    def fixes_shapes(self, device: torch.device) -> bool:
        """Return whether shapes on a device are those that no mask changes."""
        if any(map(self._sees_padding, range(len(self.local_radius)))):
            return False  # what tokens see depends on how much padding there is
        return device.type != "cpu" if self.fixed_shapes is None else self.fixed_shapes

    def _encode_scale(self, scale: int, tokens: Tensor, centers: Tensor, packing: Packing, *, local: bool) -> Tensor:
        if local and self.local_radius[scale] > 0:
            return self._encode_locally(scale, tokens, centers)
        if local:
            return self.encoder_blocks[scale](tokens, self.encoder_pos_embeds[scale](centers))
        tokens, centers = pack(tokens, packing), pack(centers, packing)  # (B, V, C), (B, V, 3)
        valid, attend = packing.valid, None
        if self._sees_padding(scale):
            # Padding sits at the origin, so the published code hides it from distant tokens only.
            near = pairwise_distance(centers) < self.local_radius[scale]
            valid, attend = None, (valid.unsqueeze(2) & valid.unsqueeze(1)) | near  # (B, V, V)
        return self.encoder_blocks[scale](tokens, self.encoder_pos_embeds[scale](centers), valid, attend)

    def _encode_locally(self, scale: int, tokens: Tensor, centers: Tensor) -> Tensor:
        """Encode with attention as far as the local radius."""
        order = near_first(centers)
        tokens, centers = gather(tokens, order), gather(centers, order)
        attend = pairwise_distance(centers) < self.local_radius[scale]  # (B, G, G)
        tokens = self.encoder_blocks[scale](tokens, self.encoder_pos_embeds[scale](centers), attend=attend)
        return gather(tokens, order.argsort(1))

    def _sees_padding(self, scale: int) -> bool:
        return self.near_padding and self.local_radius[scale] > 0


def pairwise_distance(centers: Tensor) -> Tensor:
    """Return all distances (B, G, G) within (B, G, 3)."""
    difference = centers.float().unsqueeze(2) - centers.float().unsqueeze(1)
    return difference.square().sum(-1).sqrt()


def build_autoencoder(model: nn.Module, config: Any, *, near_padding: bool) -> None:
    """Give a model all that pre-training with the hierarchy needs but heads: `mask_token`, `h_encoder` and the parts of the decoder.

    Args:
        config: has the keys of `models.point_m2ae.PointM2AEConfig`.
        near_padding: as in `HierarchicalEncoder`.
    """
    model.mask_token = nn.Parameter(torch.zeros(1, config.encoder_dims[-1]))
    nn.init.trunc_normal_(model.mask_token, std=0.02, a=-2.0, b=2.0)
    model.h_encoder = HierarchicalEncoder(
        dims=config.encoder_dims,
        depths=config.encoder_depths,
        num_heads=config.num_heads,
        local_radius=config.local_radius,
        drop_path_rate=config.drop_path_rate,
        embed_widths=config.embed_widths,
        near_padding=near_padding,
    )
    build_decoder(
        model,
        dims=config.decoder_dims,
        depths=config.decoder_depths,
        up_blocks=config.decoder_up_blocks,
        num_heads=config.num_heads,
        drop_path_rate=config.drop_path_rate,
    )
    model.h_decoder.apply(init_xavier)
    # Scales that are never decoded have a norm that gets no gradient here; it stays in the optimizer's groups.
    for norm in model.h_encoder.encoder_norms[: -len(config.decoder_dims)]:
        norm.requires_grad_(False)


def build_decoder(model: nn.Module, *, dims, depths, up_blocks, num_heads: int, drop_path_rate: float) -> None:
    """Give a model the parts of the hierarchical decoder, under their published names at its top level.

    `h_decoder`, `decoder_pos_embeds`: one a stage, coarse to fine; `token_prop`: one between two stages; `decoder_norm`.
    """
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    model.h_decoder = nn.ModuleList()
    model.decoder_pos_embeds = nn.ModuleList()
    model.token_prop = nn.ModuleList()
    for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
        model.h_decoder.append(Blocks(width, num_heads, drop_paths=[next(rates) for _ in range(depth)]))
        model.decoder_pos_embeds.append(position_embed(width))
        if stage > 0:
            model.token_prop.append(TokenPropagation(dims[stage - 1] + width, width, blocks=up_blocks[stage - 1]))
    model.decoder_norm = nn.LayerNorm(dims[-1])


def decode(model: nn.Module, pyramid: Pyramid, encoded: Encoded) -> tuple[Tensor, int]:
    """Decode from coarse to fine with a model's decoder (Zhang et al. 2022, Sec. 3.3).

    The coarsest scale receives mask tokens, visible groups first; finer scales receive what is propagated down, joined
    with the encoder's tokens at the visible groups and zeros elsewhere.

    Returns:
        normed tokens (B, G_s, C) of the last decoded scale s in index order, and s.
    """
    norms = model.h_encoder.encoder_norms
    scale = len(pyramid.centers) - 1
    packing = encoded.packings[scale]
    groups = packing.visible.shape[1]

    # Coarsest scale: the order is visible centres, then masked ones.
    everything = plan_packing(packing.visible, groups)
    centers = gather(pyramid.centers[scale], everything.order)  # (B, G, 3)
    seen = norms[scale](encoded.tokens[scale])  # (B, V, C)
    seen = nn.functional.pad(seen, (0, 0, 0, groups - seen.shape[1]))
    tokens = torch.where(everything.valid.unsqueeze(-1), seen, model.mask_token.to(seen.dtype))
    tokens = model.h_decoder[0](tokens, model.decoder_pos_embeds[0](centers))

    for stage in range(1, len(model.h_decoder)):
        scale -= 1
        finer = pyramid.centers[scale]
        seen = norms[scale](encoded.tokens[scale])
        background = seen.new_zeros(*finer.shape[:2], seen.shape[-1])
        skip = unpack(seen, encoded.packings[scale], background)  # (B, G, C)
        tokens = model.token_prop[stage - 1](finer, centers, skip, tokens)
        tokens = model.h_decoder[stage](tokens, model.decoder_pos_embeds[stage](finer))
        centers = finer
    return model.decoder_norm(tokens), scale


def compare_patches(
    rebuilt: Tensor, pyramid: Pyramid, scales: list[Tensor], scale: int, hidden: Rows, loss: str, *, synchronise: bool
) -> dict[str, Tensor]:
    """Compare what a head made of the L hidden groups of a scale with these groups.

    Args:
        rebuilt: (L, 3 * n), n points a group, relative to its centre; sample after sample in index order.
        scales: one (B, G_s) bool a scale, True = hidden.
        scale: the one that was decoded.
        hidden: the rows of its hidden groups.
        loss: one of `RECONSTRUCTION_LOSSES`; `synchronise` as in `reconstruction_loss`.

    Returns:
        dict with the scalar "loss", "masked" (B, G_coarsest) and "masked_finest" (B, G_0), and "rebuilt" (L, n, 3) and "target" (L, K, 3),
        relative to "centers" (L, 3); "samples" (L,) says whose each is. With fixed shapes other groups are among the L rows, and "valid"
        (L,) bool says which ones are hidden.
    """
    out = beside_patches(rebuilt, pyramid, scales, scale, hidden)
    compared = reconstruction_loss(out["rebuilt"], out["target"], loss, valid=out.get("valid"), synchronise=synchronise)
    return {"loss": compared, **out}


def beside_patches(
    rebuilt: Tensor, pyramid: Pyramid, scales: list[Tensor], scale: int, hidden: Rows
) -> dict[str, Tensor]:
    """Put what a head made of the hidden groups beside these groups: what `compare_patches` returns, without the loss."""
    out = {
        "masked": scales[-1],
        "masked_finest": scales[0],
        "rebuilt": rebuilt.view(len(rebuilt), -1, 3),  # (L, n, 3)
        "target": hidden.take(pyramid.neighborhoods[scale]),  # (L, K, 3)
        "centers": hidden.take(pyramid.centers[scale]),
        "samples": hidden.samples(),
    }
    return out if hidden.valid is None else {**out, "valid": hidden.valid}


def encode_visible(model: nn.Module, pyramid: Pyramid, *, flat_token: bool, method: str) -> Tensor:
    """Encode a pyramid with a model's encoder, nothing hidden, as normed tokens (B, G, C) of the coarsest scale.

    Finer groups that belong to no neighbourhood of the scale above are left out of attention, as published.
    """
    B, G, _ = pyramid.centers[-1].shape
    nothing = torch.zeros(B, G, dtype=torch.bool, device=pyramid.centers[-1].device)
    scales, _ = hide_pyramid(pyramid, nothing, ratio=0.0, flat_token=flat_token, method=method)
    encoded = model.h_encoder(pyramid, scales)
    return model.h_encoder.encoder_norms[-1](encoded.tokens[-1])
