"""The multi-scale encoder and the masked autoencoder around it that Point-M2AE introduced; I2P-MAE and GM3D build on it too.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `V` visible tokens, `C` channels; scale index 0 = finest.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from extensions import gather, near_first
from models.base import MaskedAutoencoder, check_ranges
from models.layers.embed import PatchEmbed, position_embed
from models.layers.group import Pyramid
from models.layers.init import init_truncated_normal, init_xavier
from models.layers.packing import Packing, Rows, pack, plan_packing, rows_of, unpack
from models.layers.propagate import TokenPropagation
from models.layers.transformer import Blocks, Stack, drop_path_rates
from models.losses import RECONSTRUCTION_LOSSES
from models.masking import random_mask
from utils.device import send


@dataclass
class HierarchyConfig:
    """Keys that every model with the hierarchical encoder has; defaults as published for pre-training."""

    NAME: str = ""
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
        keys = ("num_groups", "group_sizes", "encoder_dims", "encoder_depths", "local_radius")
        scales = {key: len(getattr(self, key)) for key in keys}
        if len(set(scales.values())) != 1:
            raise ValueError(f"model: {scales} must all have one entry a scale; make the lists equally long")
        if len(self.embed_widths) != 3:
            raise ValueError(f"model.embed_widths: {self.embed_widths} must be three widths")
        counts = ("num_groups", "group_sizes", "encoder_dims", "embed_widths", "num_heads")
        check_ranges(self, counts=counts, depths=("encoder_depths",), where="model.")
        for width in self.encoder_dims:
            if width % self.num_heads:
                raise ValueError(
                    f"model.encoder_dims: {width} does not divide by num_heads {self.num_heads}; change one of them"
                )


@dataclass
class HierarchicalMAEConfig(HierarchyConfig):
    """Keys of pre-training with the hierarchy; defaults as published."""

    mask_ratio: float = 0.8
    decoder_dims: list[int] = field(default_factory=lambda: [384, 192])
    decoder_depths: list[int] = field(default_factory=lambda: [1, 1])
    decoder_up_blocks: list[int] = field(default_factory=lambda: [1, 1])
    loss: str = "cdl2"
    # As published; the other values are for ablations.
    skip_connections: bool = True  # tokens of the encoder join the decoder at each finer scale
    multi_scale_mask: bool = (
        True  # what is hidden follows from the coarsest scale; else each scale hides groups of its own
    )
    local_attention: bool = False  # visible tokens attend within `local_radius` while pre-training too

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
        check_ranges(self, counts=(), depths=("decoder_depths", "decoder_up_blocks"), where="model.")
        if self.local_attention and not any(radius > 0 for radius in self.local_radius):
            raise ValueError(f"model.local_attention: needs a radius above 0, local_radius is {self.local_radius}")
        if self.loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"model.loss: {self.loss!r} is unknown; choose from {', '.join(RECONSTRUCTION_LOSSES)}")


class HierarchicalEncoder(nn.Module):
    """Encode a pyramid from fine to coarse; each scale embeds the tokens of the one below (Zhang et al. 2022, Sec. 3.2).

    Args:
        config: keys of the encoder.
        with_norms: keep the layer norms that pre-training and part segmentation apply to each scale's output.
        local_visible: let visible tokens attend within the local radius of their scale only.
        near_padding: let visible tokens attend to padding nearer than the radius, as the published code does. The output of a
            sample then depends on the other samples of its batch. One name of `legacy`.
    """

    def __init__(
        self,
        config: HierarchyConfig,
        *,
        with_norms: bool = True,
        near_padding: bool = False,
        local_visible: bool = False,
    ):
        super().__init__()
        self.local_radius = tuple(config.local_radius)
        self.near_padding, self.local_visible = near_padding, local_visible
        dims, depths = config.encoder_dims, config.encoder_depths
        rates = iter(drop_path_rates(config.drop_path_rate, sum(depths)))

        self.token_embed = nn.ModuleList()
        self.encoder_pos_embeds = nn.ModuleList()
        self.encoder_blocks = nn.ModuleList()
        self.encoder_norms = nn.ModuleList() if with_norms else None
        for scale, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            if scale == 0:
                self.token_embed.append(PatchEmbed(3, width, widths=tuple(config.embed_widths)))
            else:
                below = dims[scale - 1]
                self.token_embed.append(PatchEmbed(below, width, widths=(below, below, width)))
            self.encoder_pos_embeds.append(position_embed(width))
            self.encoder_blocks.append(Blocks(width, config.num_heads, drop_paths=[next(rates) for _ in range(depth)]))
            if depth == 0:
                self.encoder_pos_embeds[-1].requires_grad_(False)  # no block adds it
            if with_norms:
                self.encoder_norms.append(nn.LayerNorm(width))
        self.apply(init_truncated_normal)

    def forward(self, pyramid: Pyramid, masks: list[Packing] | None = None) -> list[Tensor]:
        """Encode the visible groups of each scale as packed tokens (B, V_s, C_s), finest first, not yet normed.

        Args:
            masks: what is visible at each scale: visible tokens attend to each other wherever they are. None: all groups are visible,
                and attention reaches only as far as the local radius of the scale.
        """
        encoded: list[Tensor] = []
        tokens = pyramid.neighborhoods[0]
        for scale, centers in enumerate(pyramid.centers):
            members = pyramid.neighborhoods[0] if scale == 0 else gather(tokens, pyramid.idx[scale])
            tokens = self.token_embed[scale](members)  # (B, G, C), hidden groups included
            if masks is None:
                tokens = self._attend_locally(scale, tokens, centers)
                encoded.append(tokens)
            else:
                encoded.append(self._attend_visible(scale, tokens, centers, masks[scale]))
                tokens = unpack(encoded[-1], masks[scale], background=tokens)
        return encoded

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks of each scale."""
        return [Stack(*parts) for parts in zip(self.encoder_blocks, self.encoder_pos_embeds, strict=True)]

    def _attend_locally(self, scale: int, tokens: Tensor, centers: Tensor) -> Tensor:
        """Run the blocks of a scale on all tokens, in an order in which near ones stand together: attention is quicker then."""
        radius, embed = self.local_radius[scale], self.encoder_pos_embeds[scale]
        if radius <= 0:
            return self.encoder_blocks[scale](tokens, embed(centers))
        order = near_first(centers)
        tokens, centers = gather(tokens, order), gather(centers, order)
        tokens = self.encoder_blocks[scale](tokens, embed(centers), attend=within(centers, radius))
        return gather(tokens, order.argsort(1))

    def _attend_visible(self, scale: int, tokens: Tensor, centers: Tensor, packing: Packing) -> Tensor:
        tokens, centers = pack(tokens, packing), pack(centers, packing)  # (B, V, C), (B, V, 3)
        position, valid = self.encoder_pos_embeds[scale](centers), packing.valid
        if self.local_visible and self.local_radius[scale] > 0:
            near = within(centers, self.local_radius[scale]) & valid.unsqueeze(1)
            itself = torch.eye(
                near.shape[1], dtype=torch.bool, device=near.device
            )  # padding has nothing else to attend to
            return self.encoder_blocks[scale](tokens, position, attend=near | itself)
        if not self.near_padding or self.local_radius[scale] <= 0:
            return self.encoder_blocks[scale](tokens, position, valid)
        # Padding is at the origin, so the published code hides it from distant tokens only.
        both = valid.unsqueeze(2) & valid.unsqueeze(1)
        return self.encoder_blocks[scale](tokens, position, attend=both | within(centers, self.local_radius[scale]))


@torch.no_grad()
def within(centers: Tensor, radius: float) -> Tensor:
    """Return which pairs of (B, G, 3) are nearer to each other than a radius, (B, G, G) bool."""
    difference = centers.unsqueeze(2) - centers.unsqueeze(1)
    return difference.square().sum(-1).sqrt() < radius


class HierarchicalMAE(MaskedAutoencoder):
    """A masked autoencoder with the hierarchical encoder and a decoder from coarse to fine, under their published names.

    `h_encoder`, `mask_token`; `h_decoder` and `decoder_pos_embeds`, one a stage, coarse to fine; `token_prop`, one between two stages;
    `decoder_norm`. A method adds its heads.
    """

    LEGACY = ("flat_token", "near_padding")

    def __init__(self, config: HierarchicalMAEConfig):
        super().__init__(config)
        self.masked_count = int(config.mask_ratio * config.num_groups[-1])
        self.decoded_scale = len(config.num_groups) - len(config.decoder_dims)
        # The order of creation decides the random weights.
        self.mask_token = nn.Parameter(torch.zeros(1, config.encoder_dims[-1]))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-2.0, b=2.0)
        self.h_encoder = HierarchicalEncoder(
            config, near_padding=self.near_padding, local_visible=config.local_attention
        )
        self._build_decoder(config)
        # Scales whose tokens the decoder never takes have a norm that gets no gradient here; it stays in the optimizer's groups.
        taken = self.decoded_scale if config.skip_connections else -1
        for norm in self.h_encoder.encoder_norms[:taken]:
            norm.requires_grad_(False)

    def _build_decoder(self, config: HierarchicalMAEConfig) -> None:
        dims, depths = config.decoder_dims, config.decoder_depths
        rates = iter(drop_path_rates(config.drop_path_rate, sum(depths)))
        self.h_decoder = nn.ModuleList()
        self.decoder_pos_embeds = nn.ModuleList()
        self.token_prop = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            self.h_decoder.append(Blocks(width, config.num_heads, drop_paths=[next(rates) for _ in range(depth)]))
            self.decoder_pos_embeds.append(position_embed(width))
            if stage > 0:
                blocks, joined = config.decoder_up_blocks[stage - 1], width if config.skip_connections else 0
                self.token_prop.append(TokenPropagation(dims[stage - 1] + joined, width, blocks=blocks))
        self.decoder_norm = nn.LayerNorm(dims[-1])
        self.h_decoder.apply(init_xavier)

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the groups of the coarsest scale to hide uniformly: (B, G) bool, True = hidden."""
        B, G, _ = pyramid.centers[-1].shape
        masked = random_mask(B, G, self.config.mask_ratio, generator=generator)
        return send(masked, pyramid.centers[-1].device)

    def _plan(self, pyramid: Pyramid, masked: Tensor, shown: int) -> list[Packing]:
        """Plan what is visible at each scale; without `multi_scale_mask` each finer scale draws a mask of its own, of the same ratio.

        Those are drawn from torch's generator, which a step of training seeds, and are not replayed with `masked`.
        """
        if self.config.multi_scale_mask:
            return super()._plan(pyramid, masked, shown)
        ratio = self.config.mask_ratio if shown < masked.shape[1] else 0.0
        plans = []
        for centers in pyramid.centers[:-1]:
            B, G, _ = centers.shape
            hidden = torch.rand(B, G, device=centers.device).argsort(1).argsort(1) < int(ratio * G)
            plans.append(plan_packing(~hidden, G - int(ratio * G), tight=self.near_padding))
        return [*plans, plan_packing(~masked, shown, tight=self.near_padding)]

    def encode_visible(self, pyramid: Pyramid, masks: list[Packing]) -> list[Tensor]:
        """Encode what is visible; returns normed tokens (B, V_s, C_s) of the scales that are decoded, the coarsest last."""
        first = self.decoded_scale
        tokens, norms = self.h_encoder(pyramid, masks)[first:], self.h_encoder.encoder_norms[first:]
        return [norm(encoded) for norm, encoded in zip(norms, tokens, strict=True)]

    def decode(self, pyramid: Pyramid, masks: list[Packing], visible: list[Tensor]) -> Tensor:
        """Decode from coarse to fine (Zhang et al. 2022, Sec. 3.3): normed tokens (B, G, C) of the decoded scale.

        Hidden groups of the coarsest scale start from the mask token; finer scales from what is propagated down, joined with the
        encoder's tokens at the visible groups and zeros elsewhere.

        Args:
            visible: what `encode_visible` returns.
        """
        last = len(pyramid.centers) - 1
        tokens = unpack(visible[-1], masks[-1], self.mask_token)  # (B, G, C)
        tokens = self.h_decoder[0](tokens, self.decoder_pos_embeds[0](pyramid.centers[last]))
        for stage in range(1, len(self.h_decoder)):
            scale = last - stage
            finer, encoded = pyramid.centers[scale], visible[-1 - stage]
            skip = unpack(encoded, masks[scale], encoded.new_zeros(())) if self.config.skip_connections else None
            tokens = self.token_prop[stage - 1](finer, pyramid.centers[scale + 1], skip, tokens)
            tokens = self.h_decoder[stage](tokens, self.decoder_pos_embeds[stage](finer))
        return self.decoder_norm(tokens)

    def hidden_rows(self, masks: list[Packing]) -> Rows:
        """Return the hidden groups of the decoded scale."""
        return rows_of(~masks[self.decoded_scale].visible, tight=self.near_padding)

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as normed tokens (B, G, C) of the coarsest scale.

        Finer groups that belong to no neighbourhood of the scale above are left out of attention, as published.
        """
        pyramid = self.group(points) if pyramid is None else pyramid
        tokens = self.h_encoder(pyramid, self.mask_nothing(pyramid))
        return self.h_encoder.encoder_norms[-1](tokens[-1])
