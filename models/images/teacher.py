"""A frozen image model of depth maps: patch features and how much attention each patch receives (Zhang et al. 2023, Sec. 3.2).

The teacher is no part of the model that it teaches: it has no gradient, is in no optimizer and in no checkpoint.

Shapes: `I` images, `S` pixels along their edge, `P` patches along it, `T` tokens, `H` heads, `C` channels.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.images.projection import Depth
from models.images.weights import load_tower, read_weights
from utils.device import AUTOCAST_DTYPES, resolve_precision
from utils.errors import UserError, suggest

CLIP_TAG = "openai"  # timm's default of the same architectures is the weights of another group
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RANDOM_SEED = 0  # the random teacher is the same in every run


@dataclass
class TeacherConfig:
    """Keys of the image teacher; defaults as published: CLIP ViT-B/16 on images of 224 pixels."""

    name: str | None = None  # any Vision Transformer of timm; None: what clip_config.visual_encoder says
    weights: str = (
        "hub"  # "hub": downloaded by timm's name, or from the cache; a file; "random": untrained, only to try things
    )
    sha256: str | None = None  # of the file: checked where given, filled in by the run
    arguments: dict[str, Any] = field(default_factory=dict)  # further ones of timm's model, such as depth or embed_dim
    image_size: int = 224  # pixels along the edge of a depth map; a multiple of the patch size
    depth: Depth = "signed_sum"  # what a pixel says; "nearest" is ours, see models/images/projection.py
    statistics: Literal["imagenet", "own"] = (
        "imagenet"  # images are normalised with; as published though CLIP has its own
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto, as published: fp16 on CUDA, fp32 elsewhere
    cache: bool = False  # keep features on disk; needs augmentation: none and fixed points


class ImageFeatures(NamedTuple):
    """What the teacher returns for images."""

    features: Tensor  # (I, C, P, P) fp32
    saliency: Tensor  # (I, P, P) fp32, attention of the class token in the last block, mean over heads


class ImageTeacher(nn.Module):
    """Encode depth maps with a Vision Transformer of timm; always in evaluation mode and without gradient.

    CLIP's features are projected as its class token is; those of others are the normed tokens.

    Args:
        tower: the transformer.
        projects: apply its head to the patches.
        config: keys `statistics` and `precision`.
    """

    def __init__(self, tower: nn.Module, *, projects: bool, config: TeacherConfig):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.projects = projects
        self.precision = config.precision
        own = (tower.pretrained_cfg["mean"], tower.pretrained_cfg["std"])
        mean, std = IMAGENET if config.statistics == "imagenet" else own
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.tower.head.out_features if self.projects else self.tower.embed_dim

    @property
    def patches(self) -> int:
        """Patches along the edge of an image."""
        return self.tower.patch_embed.grid_size[0]

    def train(self, mode: bool = True) -> "ImageTeacher":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, depth_maps: Tensor) -> ImageFeatures:
        """Encode depth maps (I, S, S) in [0, 1] as grey images."""
        images = (depth_maps.unsqueeze(1) - self.mean) / self.std  # (I, 3, S, S)
        dtype = self.dtype(images.device)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            tokens = self._embed(images)  # (I, T, C)
            for block in self.tower.blocks[:-1]:
                tokens = block(tokens)
            saliency = self._attention(self.tower.blocks[-1], tokens)
            patches = self.tower.blocks[-1](tokens)[:, self.tower.num_prefix_tokens :]  # (I, P * P, C)
            features = self.tower.fc_norm(self.tower.norm(patches))
            features = self.tower.head(features) if self.projects else features
        shape = (len(images), -1, self.patches, self.patches)
        return ImageFeatures(features.float().transpose(1, 2).reshape(shape), saliency.float().view(shape)[:, 0])

    def _embed(self, images: Tensor) -> Tensor:
        tower = self.tower
        return tower.norm_pre(tower._pos_embed(tower.patch_embed(images)))

    def _attention(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Return how much attention a block pays to each patch (I, P * P): that of the class token, mean over heads.

        Towers without a class token: the mean over all patches.
        """
        attention = block.attn
        I, T, _ = tokens.shape  # noqa: E741
        qkv = attention.qkv(block.norm1(tokens)).view(I, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys = attention.q_norm(qkv[0]), attention.k_norm(qkv[1])  # (I, H, T, C / H)
        if self.tower.cls_token is not None:
            queries = queries[:, :, :1]
        weights = ((queries * attention.scale) @ keys.transpose(-2, -1)).float().softmax(-1)
        return weights.mean((1, 2))[:, self.tower.num_prefix_tokens :]

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """Return what products are computed in on a device; None = fp32."""
        return AUTOCAST_DTYPES[resolve_precision(self.precision, device)]


def build_teacher(config: TeacherConfig) -> ImageTeacher:
    """Build a teacher with its weights, and fill in `config.sha256` where they come from a file.

    Raises:
        UserError: the name is no Vision Transformer of timm, the image size does not fit its patches, or the weights are missing or of
            another architecture.
    """
    name = config.name
    # As timm names them: weights fine-tuned to classify have "_ft_" in their tag, and a head that is no projection.
    projects = "_clip_" in name and "_ft_" not in name
    # Before any memory is taken or random number drawn: does such a model exist, and does the size fit?
    with torch.device("meta"):
        _check(config, _create(config, projects))
    weights = None
    if config.weights != "random":
        weights, config.sha256 = read_weights(config.weights, name=_tagged(name), sha256=config.sha256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        tower = _create(config, projects)
    if weights is not None:
        load_tower(tower, weights, where=f"{config.weights} for {name}", projects=projects)
    return ImageTeacher(tower, projects=projects, config=config)


def _tagged(name: str) -> str:
    """Say which of several sets of weights a bare name means, where timm would choose another than the published one."""
    return f"{name}.{CLIP_TAG}" if "_clip_quickgelu_" in name and "." not in name else name


def _create(config: TeacherConfig, projects: bool) -> nn.Module:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    known = timm.list_models(module="vision_transformer")
    if config.name.split(".")[0] not in known:
        raise UserError(
            f"model.teacher.name: {config.name} is no Vision Transformer of timm; {suggest(config.name, known)}"
        )
    keys = {"img_size": config.image_size, **({} if projects else {"num_classes": 0})}
    try:
        tower = timm.create_model(_tagged(config.name), pretrained=False, **{**keys, **config.arguments})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.teacher: {config.name} cannot be built with image_size {config.image_size} and {config.arguments}: {error}"
        ) from error
    if not isinstance(tower, VisionTransformer) or not hasattr(tower.blocks[-1], "attn"):
        raise UserError(
            f"model.teacher.name: {config.name} is a {type(tower).__name__}; use a plain Vision Transformer"
        )
    return tower


def _check(config: TeacherConfig, tower: nn.Module) -> None:
    size, patch = config.image_size, tower.patch_embed.patch_size[0]
    if size < patch or size % patch:
        near = max(1, round(size / patch)) * patch
        raise UserError(
            f"model.teacher.image_size: {size} is no multiple of the patches of {config.name}, {patch} pixels; use {near}"
        )
