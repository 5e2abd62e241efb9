"""The single-scale encoder and decoder that Point-MAE introduced and Inter-MAE and GM3D reuse.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `V` visible groups, `C` channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from extensions import gather
from models.layers.embed import PatchEmbed, position_embed
from models.layers.group import Pyramid
from models.layers.init import init_truncated_normal, init_xavier
from models.layers.transformer import Blocks, drop_path_rates
from models.losses import RECONSTRUCTION_LOSSES, reconstruction_loss
from models.masking import KnownMask, hide_groups

POSITION_HIDDEN = 128


@dataclass
class SingleScaleConfig:
    """Keys of a single-scale encoder, wherever it stands; defaults as published."""

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
        check_heads(self.trans_dim, self.num_heads, "num_heads")


def check_heads(width: int, heads: int, key: str, of: str = "trans_dim") -> None:
    """Check that `heads`, the value of `key`, divides the width of the tokens, the value of `of`."""
    if heads < 1 or width % heads:
        raise ValueError(f"{key}: {heads} does not divide {of} {width}; change one of them")


def check_patches(config: Any) -> None:
    """Check the keys of a model that groups points at one scale: `num_group`, `group_size`."""
    for key in ("num_group", "group_size"):
        if getattr(config, key) < 1:
            raise ValueError(f"model.{key}: {getattr(config, key)} must be at least 1")


def check_rebuilding(config: Any, mask_ratio: float) -> None:
    """Check what a model that hides and rebuilds groups of one scale is asked: the share `mask_ratio` and the key `loss`."""
    if not 0 <= mask_ratio < 1 or int(mask_ratio * config.num_group) < 1:
        raise ValueError(
            f"model.transformer_config.mask_ratio: {mask_ratio} of {config.num_group} groups must hide at least one and leave one visible"
        )
    if config.loss not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"model.loss: {config.loss!r} is unknown; choose from {', '.join(RECONSTRUCTION_LOSSES)}")


def build_encoder(
    model: nn.Module,
    config: SingleScaleConfig,
    *,
    embed: Callable[..., nn.Module] = PatchEmbed,
    timm_order: bool = False,
    norm: str = "norm",
) -> None:
    """Give a model the parts of the encoder, under their published names: `encoder`, `pos_embed`, `blocks`, `norm`.

    `embed(3, width, widths=...)` builds the patch embedding; `timm_order` as in `Block`; `norm` is what the last part is called.
    """
    width = config.trans_dim
    model.encoder = embed(3, width, widths=tuple(config.embed_widths))
    model.pos_embed = position_embed(width, POSITION_HIDDEN)
    rates = drop_path_rates(config.drop_path_rate, config.depth)
    model.blocks = Blocks(width, config.num_heads, drop_paths=rates, timm_order=timm_order)
    setattr(model, norm, nn.LayerNorm(width))


class MaskedEncoder(nn.Module):
    """Embed all patches, run the visible ones through the transformer (Pang et al. 2022, Sec. 3.2).

    Masked patches are embedded as well, because the published batch statistics include them.

    Args:
        embed, timm_order, norm: as in `build_encoder`.
        truncated: start from truncated normal weights; else from PyTorch's.
    """

    def __init__(
        self,
        config: SingleScaleConfig,
        *,
        embed: Callable[..., nn.Module] = PatchEmbed,
        timm_order: bool = False,
        norm: str = "norm",
        truncated: bool = True,
    ):
        super().__init__()
        self._norm = norm
        build_encoder(self, config, embed=embed, timm_order=timm_order, norm=norm)
        if truncated:
            self.apply(init_truncated_normal)

    def forward(self, pyramid: Pyramid, seen: Tensor | None = None) -> Tensor:
        """Encode a pyramid of one scale as normed tokens (B, V, C), for the groups `seen` (B, V) int64 or for all of them."""
        tokens, centers = self.encoder(pyramid.neighborhoods[0]), pyramid.centers[0]  # (B, G, C), (B, G, 3)
        if seen is not None:
            tokens, centers = gather(tokens, seen), gather(centers, seen)  # (B, V, C), (B, V, 3)
        return getattr(self, self._norm)(self.blocks(tokens, self.pos_embed(centers)))


def build_decoder(
    model: nn.Module,
    *,
    width: int,
    depth: int,
    num_heads: int,
    drop_path_rate: float,
    token_width: int | None = None,
    timm_order: bool = False,
) -> None:
    """Give a model the parts of the decoder: `mask_token`, `decoder_pos_embed`, `MAE_decoder` with `blocks` and `norm`.

    With a `token_width` the tokens that come from the encoder are that wide, and `decoder_embed` brings them to `width`.
    `timm_order` as in `Block`.
    """
    model.mask_token = nn.Parameter(torch.zeros(1, 1, token_width or width))
    nn.init.trunc_normal_(model.mask_token, std=0.02, a=-2.0, b=2.0)
    model.decoder_pos_embed = position_embed(width, POSITION_HIDDEN)
    if token_width is not None:
        model.decoder_embed = nn.Linear(token_width, width)
    model.MAE_decoder = decoder_blocks(width, depth, num_heads, drop_path_rate, timm_order=timm_order)


def decoder_blocks(
    width: int, depth: int, num_heads: int, drop_path_rate: float, *, timm_order: bool = False
) -> Blocks:
    """Return blocks with a final `norm`, initialised as decoders are; `timm_order` as in `Block`."""
    rates = drop_path_rates(drop_path_rate, depth)
    blocks = Blocks(width, num_heads, drop_paths=rates, timm_order=timm_order)
    blocks.norm = nn.LayerNorm(width)
    return blocks.apply(init_xavier)


def hide(
    model: nn.Module,
    pyramid: Pyramid,
    masked: Tensor | KnownMask | None = None,
    *,
    generator: torch.Generator | None,
    method: str,
) -> KnownMask:
    """Hide groups as the keys `mask_ratio` and `mask_type` of a model say, or take a given mask; see `hide_groups`."""
    keys = model.config.transformer_config
    return hide_groups(
        pyramid.centers[0], masked, ratio=keys.mask_ratio, kind=keys.mask_type, generator=generator, method=method
    )


def decode(
    model: nn.Module, visible: Tensor, centers: Tensor, seen: Tensor, hidden: Tensor, *, keep_visible: bool = False
) -> Tensor:
    """Decode with a model's decoder: visible tokens first, then one mask token for each hidden group.

    Args:
        visible: (B, V, C) encoded tokens of the groups `seen` (B, V) int64.
        centers: (B, G, 3).
        hidden: (B, M) int64, the groups to rebuild.
        keep_visible: return the decoded visible tokens too, before the hidden ones.

    Returns:
        (B, M, C) normed tokens of the hidden groups, or (B, V + M, C) of all.
    """
    M = hidden.shape[1]
    centers = gather(centers, torch.cat([seen, hidden], dim=1))  # (B, V + M, 3)
    tokens = with_placeholders(visible, model.mask_token, M)
    if hasattr(model, "decoder_embed"):
        tokens = model.decoder_embed(tokens)
    tokens = model.MAE_decoder(tokens, model.decoder_pos_embed(centers))
    return model.MAE_decoder.norm(tokens if keep_visible else tokens[:, visible.shape[1] :])


def with_placeholders(visible: Tensor, placeholder: Tensor, count: int) -> Tensor:
    """Append a token (1, 1, C) to visible ones (B, V, C), `count` times: (B, V + count, C)."""
    return torch.cat([visible, placeholder.to(visible.dtype).expand(len(visible), count, -1)], dim=1)


def compare_patches(
    rebuilt: Tensor, pyramid: Pyramid, masked: Tensor, hidden: Tensor, loss: str, *, synchronise: bool
) -> dict[str, Tensor]:
    """Compare what a head made of the hidden groups with these groups.

    Args:
        rebuilt: (B, M, 3 * n), n points for each of the groups `hidden` (B, M) int64, relative to its centre.
        masked: (B, G) bool, True = hidden.
        loss: one of `RECONSTRUCTION_LOSSES`; `synchronise` as in `reconstruction_loss`.

    Returns:
        dict with the scalar "loss", "masked" and "masked_finest" (B, G), the same for one scale, and for the L = B * M hidden patches
        "rebuilt" (L, n, 3) and "target" (L, K, 3), relative to "centers" (L, 3), sample after sample in index order; "samples" (L,)
        says whose each is.
    """
    out = beside_patches(rebuilt, pyramid, masked, hidden)
    return {"loss": reconstruction_loss(out["rebuilt"], out["target"], loss, synchronise=synchronise), **out}


def beside_patches(rebuilt: Tensor, pyramid: Pyramid, masked: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Put what a head made of the hidden groups beside these groups: what `compare_patches` returns, without the loss."""
    B, M = hidden.shape
    rebuilt = rebuilt.reshape(B * M, -1, 3)  # (L, n, 3)
    target = gather(pyramid.neighborhoods[0].flatten(2), hidden).view(B * M, -1, 3)  # (L, K, 3)
    return {
        "masked": masked,
        "masked_finest": masked,
        "rebuilt": rebuilt,
        "target": target,
        "centers": gather(pyramid.centers[0], hidden).flatten(0, 1),
        "samples": torch.arange(B, device=hidden.device).repeat_interleave(M),
    }
