"""The single-scale encoder and the masked autoencoder around it that Point-MAE introduced; Inter-MAE and GM3D build on it too.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `V` visible and `M` hidden groups of a sample, `C` channels, `D` of the
decoder.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from extensions import gather
from models.base import MaskedAutoencoder, check_ranges
from models.layers.embed import PatchEmbed, position_embed
from models.layers.group import Pyramid
from models.layers.init import init_truncated_normal
from models.layers.packing import Packing, Rows, pack, rows_of
from models.layers.transformer import Blocks, DecoderBlocks, Stack, drop_path_rates
from models.losses import RECONSTRUCTION_LOSSES
from models.masking import block_mask, random_mask
from utils.device import send

POSITION_HIDDEN = 128


@dataclass
class SingleScaleConfig:
    """Keys of a single-scale encoder, wherever it is; defaults as published."""

    trans_dim: int = 384
    encoder_dims: int = 384  # width of the patch embedding; published files repeat trans_dim here
    depth: int = 12
    drop_path_rate: float = 0.1
    num_heads: int = 6
    embed_widths: list[int] = field(default_factory=lambda: [128, 256, 512])  # hidden, of the patch embedding

    def __post_init__(self):
        if self.encoder_dims != self.trans_dim:
            raise ValueError(
                f"encoder_dims: {self.encoder_dims} must equal trans_dim {self.trans_dim}, patches enter the blocks directly"
            )
        if len(self.embed_widths) != 3:
            raise ValueError(f"embed_widths: {self.embed_widths} must be three widths")
        if self.depth < 1:
            raise ValueError(f"depth: {self.depth} must be at least 1")
        check_ranges(self, counts=("trans_dim", "embed_widths"), depths=("depth",))
        check_heads(self.trans_dim, self.num_heads, "num_heads")


@dataclass
class MaskedTransformerConfig(SingleScaleConfig):
    """Keys of `transformer_config`: encoder, decoder and mask."""

    mask_ratio: float = 0.6
    mask_type: Literal["rand", "block"] = "rand"
    decoder_depth: int = 4
    decoder_num_heads: int = 6

    # The key that says how wide the decoder is.
    decoder_width_key: ClassVar[str] = "trans_dim"

    @property
    def decoder_width(self) -> int:
        """Channels of the decoder's tokens."""
        return getattr(self, self.decoder_width_key)

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth: {self.decoder_depth} must be at least 1")
        check_heads(self.decoder_width, self.decoder_num_heads, "decoder_num_heads", self.decoder_width_key)


@dataclass
class PatchesConfig:
    """Keys of a model that groups points at one scale; as lists of one scale, what models with several have."""

    num_group: int = 64
    group_size: int = 32
    legacy: bool | list[str] = False

    @property
    def num_groups(self) -> list[int]:
        """Groups of each scale."""
        return [self.num_group]

    @property
    def group_sizes(self) -> list[int]:
        """Neighbours of each scale's groups."""
        return [self.group_size]

    def check_patches(self) -> None:
        """Raise a ValueError that names a key with a bad value."""
        for key in ("num_group", "group_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: {getattr(self, key)} must be at least 1")


@dataclass
class SingleScaleMAEConfig(PatchesConfig):
    """Keys of pre-training at one scale; defaults as published."""

    NAME: str = ""
    loss: str = "cdl2"
    transformer_config: MaskedTransformerConfig = field(default_factory=MaskedTransformerConfig)

    def __post_init__(self):
        self.check_patches()
        ratio = self.transformer_config.mask_ratio
        if not 0 <= ratio < 1 or int(ratio * self.num_group) < 1:
            raise ValueError(
                f"model.transformer_config.mask_ratio: {ratio} of {self.num_group} groups must hide at least one and leave one visible"
            )
        if self.loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"model.loss: {self.loss!r} is unknown; choose from {', '.join(RECONSTRUCTION_LOSSES)}")


def check_heads(width: int, heads: int, key: str, of: str = "trans_dim") -> None:
    """Raise a ValueError unless `heads`, the value of `key`, divides the width of the tokens, the value of `of`."""
    if heads < 1 or width % heads:
        raise ValueError(f"{key}: {heads} does not divide {of} {width}; change one of them")


def with_placeholders(visible: Tensor, placeholder: Tensor, count: int) -> Tensor:
    """Append a token (1, 1, C), or (1, C), to visible ones (B, V, C) until there are `count`: (B, count, C)."""
    B, V, C = visible.shape
    return torch.cat([visible, placeholder.to(visible.dtype).expand(B, count - V, C)], dim=1)


class SingleScaleParts(nn.Module):
    """A module with the encoder's parts, under their published names: `encoder`, `pos_embed`, `blocks` and a norm.

    Class attributes:
        norm_name: what the final norm is called.
        attention_first: as in `Block`.
    """

    norm_name: ClassVar[str] = "norm"
    attention_first: ClassVar[bool] = False

    def build_encoder(self, config: SingleScaleConfig) -> None:
        """Create the parts, in the published order."""
        width = config.trans_dim
        self.encoder = self.build_patch_embed(config)
        self.pos_embed = self.build_position_embed(width)
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = Blocks(width, config.num_heads, drop_paths=rates, attention_first=self.attention_first)
        setattr(self, self.norm_name, nn.LayerNorm(width))

    def build_patch_embed(self, config: SingleScaleConfig) -> nn.Module:
        """Return what turns the members (B, G, K, 3) of patches into tokens (B, G, C)."""
        return PatchEmbed(3, config.trans_dim, widths=tuple(config.embed_widths))

    def build_position_embed(self, width: int) -> nn.Module:
        """Return what turns centres (B, G, 3) into positions (B, G, C)."""
        return position_embed(width, POSITION_HIDDEN)

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks, one stack."""
        return [Stack(self.blocks, self.pos_embed)]

    def normed(self, tokens: Tensor) -> Tensor:
        """Apply the final norm."""
        return getattr(self, self.norm_name)(tokens)


class SingleScaleEncoder(SingleScaleParts):
    """Embed all patches, run the visible ones through the transformer (Pang et al. 2022, Sec. 3.2).

    Hidden patches are embedded as well, because the published batch statistics include them.

    Class attributes:
        truncated: start from truncated normal weights; else from PyTorch's.
    """

    truncated: ClassVar[bool] = True

    def __init__(self, config: SingleScaleConfig):
        super().__init__()
        self.build_encoder(config)
        if self.truncated:
            self.apply(init_truncated_normal)

    def forward(self, pyramid: Pyramid, mask: Packing | None = None) -> Tensor:
        """Encode a pyramid of one scale as normed tokens: (B, V, C) of the visible groups of a mask, or (B, G, C)."""
        tokens, centers = self.encoder(pyramid.neighborhoods[0]), pyramid.centers[0]  # (B, G, C), (B, G, 3)
        if mask is not None:
            # As many are visible in each sample, so that no row is padding.
            tokens, centers = pack(tokens, mask), pack(centers, mask)  # (B, V, C), (B, V, 3)
        return self.normed(self.blocks(tokens, self.pos_embed(centers)))


class SingleScaleMAE(MaskedAutoencoder):
    """A masked autoencoder of one scale with encoder and decoder under their published names.

    `MAE_encoder`, `mask_token`, `decoder_pos_embed`, `MAE_decoder`, and `decoder_embed` with a decoder of another width. A method adds its
    heads.

    Class attributes:
        encoder_class: of `MAE_encoder`.
        widens: whether the decoder has a width of its own, which `decoder_embed` brings tokens to.
    """

    encoder_class: ClassVar[type[SingleScaleEncoder]] = SingleScaleEncoder
    widens: ClassVar[bool] = False

    def __init__(self, config: SingleScaleMAEConfig):
        super().__init__(config)
        self.masked_count = int(config.transformer_config.mask_ratio * config.num_group)
        self.build_parts(config.transformer_config)

    def build_parts(self, config: MaskedTransformerConfig) -> None:
        """Create encoder and decoder, in the published order."""
        self.MAE_encoder = self.encoder_class(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-2.0, b=2.0)
        self.decoder_pos_embed = position_embed(config.decoder_width, POSITION_HIDDEN)
        if self.widens:
            self.decoder_embed = nn.Linear(config.trans_dim, config.decoder_width)
        self.MAE_decoder = self.build_decoder(config, config.decoder_depth)

    def build_decoder(self, config: MaskedTransformerConfig, depth: int) -> DecoderBlocks:
        """Return a decoder of some blocks."""
        return DecoderBlocks(
            config.decoder_width,
            depth,
            config.decoder_num_heads,
            config.drop_path_rate,
            attention_first=self.encoder_class.attention_first,
        )

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the groups to hide, uniformly or a block of them: (B, G) bool, True = hidden."""
        centers, keys = pyramid.centers[0], self.config.transformer_config
        if keys.mask_type == "block":
            return block_mask(centers, keys.mask_ratio, generator=generator)
        masked = random_mask(*centers.shape[:2], keys.mask_ratio, generator=generator)
        return send(masked, centers.device)

    def encode_visible(self, pyramid: Pyramid, masks: list[Packing]) -> Tensor:
        """Encode the visible groups as normed tokens (B, V, C)."""
        return self.MAE_encoder(pyramid, masks[0])

    def decode(self, pyramid: Pyramid, masks: list[Packing], visible: Tensor, hidden: Rows) -> Tensor:
        """Decode the visible tokens (B, V, C) and then a mask token for each hidden group: (B, V + M, D), without `MAE_decoder.norm`."""
        order = torch.cat([masks[0].order, hidden.by_sample()], dim=1)
        centers = gather(pyramid.centers[0], order)  # (B, V + M, 3)
        tokens = with_placeholders(visible, self.mask_token, order.shape[1])
        tokens = self.decoder_embed(tokens) if self.widens else tokens
        return self.MAE_decoder(tokens, self.decoder_pos_embed(centers))

    def hidden_rows(self, masks: list[Packing]) -> Rows:
        """Return the hidden groups: L = B * M rows, M = `masked_count`."""
        return rows_of(~masks[0].visible, self.masked_count)

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as normed tokens (B, G, C)."""
        return self.MAE_encoder(self.group(points) if pyramid is None else pyramid)
