"""The image side of a method that contrasts clouds with pictures of them: an encoder, and a head that projects its features.

Shapes: `B` batch, `n` views of a cloud, `S` pixels a side, `W` width of the encoder's features.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.images.weights import file_digest, read_file
from models.layers.heads import projection_head
from utils.errors import UserError, suggest

NO_WEIGHTS, FROM_TIMM = "none", "timm"


@dataclass
class ViTConfig:
    """A vision transformer by its sizes. Defaults are `vit_small_patch16_224` of timm 0.4.5, which later versions call otherwise."""

    width: int = 768
    depth: int = 8
    num_heads: int = 8
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    patch: int = 16  # pixels a side


@dataclass
class ImageBranchConfig:
    """Keys of the image side.

    `frozen`: the encoder stands outside the model, its features are computed once an image, and only the head trains. `trained`:
    encoder and head are part of the model and of its optimizer.
    """

    mode: Literal["frozen", "trained"] = "frozen"
    encoder: str = "vit_small_patch16_224"  # a name of timm, or "vit": by the keys of `vit`
    weights: str = FROM_TIMM  # "timm" = its published ones, downloaded; a file; "none" = random ones
    vit: ViTConfig = field(default_factory=ViTConfig)
    hidden: int = 512  # width inside the head
    size: int = 224  # pixels a side that the encoder sees
    n_imgs: int = 1  # views of a cloud in a step, drawn anew each time
    views: int = 12  # pictures drawn of each cloud of a set that has none of its own
    rendering: Literal["depth", "shaded"] = "depth"  # what these show

    def __post_init__(self):
        for key in ("hidden", "size", "n_imgs", "views"):
            if getattr(self, key) < 1:
                raise ValueError(f"image_branch.{key}: {getattr(self, key)} must be at least 1")
        vit = self.vit
        if self.encoder == "vit" and (self.size % vit.patch or vit.width % vit.num_heads):
            raise ValueError(
                f"image_branch.vit: patch {vit.patch} must divide size {self.size}, and num_heads {vit.num_heads} width {vit.width}"
            )
        if self.encoder == "vit" and self.weights == FROM_TIMM:
            raise ValueError(
                "image_branch.weights: timm has none for an encoder 'vit'; give a file, or 'none' for random ones, "
                "or a timm model as image_branch.encoder"
            )


class ImageBranch(nn.Module):
    """Encode images and project them into the space of the clouds' features.

    Args:
        width: of the encoder's features.
        encoder: None where it stands outside; `forward` then takes its features.
        mean, std: of the three channels, subtracted and divided by before the encoder; published: nothing.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        width: int,
        *,
        hidden: int = 512,
        out: int = 256,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    ):
        super().__init__()
        if encoder is not None:
            self.vit = encoder
        self.inv_head = projection_head(width, hidden, out)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, n, 3, S, S), uint8 or floats from 0 to 1, as features (B, n, W)."""
        if images.dim() != 5 or images.shape[2] != 3:
            raise ValueError(f"image branch: images must be (B, n, 3, S, S), got {tuple(images.shape)}")
        pixels = images.flatten(0, 1)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return self.vit((pixels - self.mean) / self.std).view(*images.shape[:2], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Project images (B, n, 3, S, S), or features (B, n, W) of an encoder outside, as (B, out): the mean over the views."""
        features = self.encode(x) if x.dim() == 5 else x
        B, n, _ = features.shape
        return self.inv_head(features.flatten(0, 1)).view(B, n, -1).mean(1)


def build_image_branch(config: ImageBranchConfig, *, out: int = 256) -> ImageBranch:
    """Build encoder and head as configured, the encoder with its weights.

    Raises:
        UserError: timm does not know the encoder, or its weights cannot be had or do not fit.
    """
    if config.encoder == "vit":
        encoder, cfg = build_vit(config.vit, config.size), {}
    else:
        encoder = _from_timm(config)
        cfg = encoder.pretrained_cfg or {}
    if config.weights not in (NO_WEIGHTS, FROM_TIMM):
        _load_file(encoder, Path(config.weights))
    norm = {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])} if "mean" in cfg else {}
    return ImageBranch(encoder, encoder.num_features, hidden=config.hidden, out=out, **norm)


def build_vit(config: ViTConfig, size: int) -> nn.Module:
    """Build a vision transformer with a class token as its feature, as timm 0.4.5 does."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        num_classes=0,
        norm_layer=nn.LayerNorm,  # its epsilon is 1e-5, that of later versions 1e-6
    )


def _from_timm(config: ImageBranchConfig) -> nn.Module:
    """Build an encoder by its name in timm, with the weights it publishes where they are asked for."""
    import timm

    if not timm.is_model(config.encoder):
        raise UserError(
            f"image_branch.encoder: timm {timm.__version__} has no model {config.encoder!r}; "
            f"{suggest(config.encoder, timm.list_models())} Or take 'vit'"
        )
    resized = {"img_size": config.size} if "vit" in config.encoder else {}
    try:
        return timm.create_model(config.encoder, pretrained=config.weights == FROM_TIMM, num_classes=0, **resized)
    except (OSError, RuntimeError, ValueError) as error:  # no network, no such weights, a size that does not fit
        raise UserError(
            f"image_branch: the encoder {config.encoder} cannot be had with weights {config.weights!r} ({str(error).splitlines()[0]}). "
            "Give a file of its weights with image_branch.weights=FILE, or train an encoder of your own with "
            "image_branch.mode=trained and image_branch.weights=none"
        ) from error


def _load_file(encoder: nn.Module, path: Path) -> None:
    """Load the weights of an encoder; those of a classification head are left out."""
    if not path.is_file():
        raise UserError(f"image_branch.weights: {path} does not exist; give a file of weights, 'timm' or 'none'")
    weights = read_file(path, file_digest(path))
    weights = {key.removeprefix("image_branch.").removeprefix("vit."): value for key, value in weights.items()}
    own = encoder.state_dict()
    lacking = [key for key in own if key not in weights]
    wrong = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if lacking or wrong:
        problem = f"lacks {lacking[0]}" if lacking else f"{wrong[0]} has shape {tuple(weights[wrong[0]].shape)}"
        raise UserError(
            f"{path}: does not fit the image encoder ({len(lacking)} of {len(own)} tensors missing, {len(wrong)} of another shape; "
            f"{problem}); choose image_branch.encoder and its sizes as these weights have them"
        )
    encoder.load_state_dict({key: weights[key] for key in own})
