"""The encoder of 3DETR on whole scenes: balls of points as tokens, then layers that may be masked by distance; shared by the detector
and by the masked autoencoder that pre-trains it.

Shapes: `B` scenes, `N` points, `G` groups, `S` members of a group, `C` channels; level 0 = the pre-encoder's groups.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from extensions import ball_query, fps, gather, group
from models.base import DEEPEST, LARGEST
from models.detection.layers import EncoderLayer, SetAbstraction, distances, within_radius
from models.layers.group import Pyramid
from models.layers.packing import Packing, pack, unpack

FEW = 15  # neighbours up to which attention goes by lists: most tokens of the first layer see themselves alone


@dataclass
class SceneEncoderConfig:
    """Keys of the encoder of scenes; defaults as published for 3DETR. Lengths are metres."""

    NAME: str = ""
    preenc_npoints: int = 2048  # groups of the pre-encoder
    preenc_radius: float = 0.2
    preenc_samples: int = 64
    preenc_widths: list[int] = field(default_factory=lambda: [64, 128])  # of its layers before the last one
    enc_type: str = "vanilla"  # masked: attention within radii, and half as many tokens after the first layer
    enc_nlayers: int = 3  # masked: always 3
    enc_dim: int = 256
    enc_ffn_dim: int = 128
    enc_nhead: int = 4
    enc_dropout: float = 0.1
    # Masked: attention of a layer reaches less far than this. The paper says 0.4, 0.8, 1.2; the published program compares distances
    # with the squares of these, and the published weights were trained so.
    mask_radii: list[float] = field(default_factory=lambda: [0.16, 0.64, 1.44])
    interim_radius: float = 0.4
    interim_samples: int = 32
    use_color: bool = False
    legacy: bool | list[str] = False

    def __post_init__(self):
        counts = (
            "preenc_npoints",
            "preenc_samples",
            "preenc_widths",
            "enc_dim",
            "enc_ffn_dim",
            "enc_nhead",
            "interim_samples",
        )
        check_numbers(self, dict.fromkeys(counts, (1, LARGEST)))
        check_numbers(self, {"enc_nlayers": (1, DEEPEST), "enc_dropout": (0, 1)})
        check_numbers(self, dict.fromkeys(("preenc_radius", "interim_radius", "mask_radii"), (1e-6, 1e6)))
        if self.enc_type not in ("vanilla", "masked"):
            raise ValueError(f"model.enc_type: {self.enc_type!r} is unknown; choose vanilla or masked")
        if self.enc_type == "masked" and (len(self.mask_radii) != 3 or self.enc_nlayers != 3):
            raise ValueError(
                f"model: a masked encoder has 3 layers and 3 mask_radii, not {self.enc_nlayers} and {self.mask_radii}"
            )
        if self.enc_type == "masked" and self.preenc_npoints < 2:
            raise ValueError(f"model.preenc_npoints: {self.preenc_npoints} cannot be halved; use at least 2")
        if self.enc_dim % self.enc_nhead:
            raise ValueError(
                f"model.enc_dim: {self.enc_dim} does not divide by enc_nhead {self.enc_nhead}; change one of them"
            )

    @property
    def levels(self) -> list[tuple[int, float, int]]:
        """Groups, radius and samples of each level, the pre-encoder's first."""
        first = (self.preenc_npoints, self.preenc_radius, self.preenc_samples)
        interim = (self.preenc_npoints // 2, self.interim_radius, self.interim_samples)
        return [first, interim] if self.enc_type == "masked" else [first]


def check_numbers(config: object, limits: dict[str, tuple[float, float]]) -> None:
    """Raise a ValueError naming a key of a model whose number, or one of whose numbers, is outside its limits."""
    for key, (low, high) in limits.items():
        value = getattr(config, key)
        if not all(low <= number <= high for number in (value if isinstance(value, list) else [value])):
            raise ValueError(f"model.{key}: {value} must be {low:g} to {high:g}")


def group_scenes(
    points: Tensor, levels: list[tuple[int, float, int]], *, dtype: torch.dtype, queries: int = 0
) -> tuple[Pyramid, list[Tensor]]:
    """Group points (B, N, 3), and the centres of the groups, into balls.

    Centres are chosen by farthest point sampling that skips points near the origin; members are the first of a ball in index order.

    Args:
        levels: groups, radius and samples of each level.
        queries: further points to choose among the last centres.

    Returns:
        the pyramid, and which points are its centres at each level, (B, G) int64; the queries among the last centres come last.

    Raises:
        ValueError: not such a tensor, or fewer points than groups.
    """
    counts = [groups for groups, _, _ in levels] + ([queries] if queries else [])
    _check(points, counts)
    members = points.to(dtype)
    with torch.no_grad():
        chosen = fps(members, counts, skip_near_origin=True)
    pyramid = Pyramid([], [], [])
    for (_, radius, samples), own in zip(levels, chosen, strict=False):
        centers = gather(members, own)
        with torch.no_grad():
            idx = ball_query(centers, members, radius, samples)
        pyramid.centers.append(centers)
        pyramid.idx.append(idx)
        pyramid.neighborhoods.append(group(members, centers, idx))
        members = centers
    return pyramid, chosen


def _check(points: Tensor, counts: list[int]) -> None:
    if not isinstance(points, Tensor) or points.dim() != 3 or points.shape[-1] != 3 or not points.is_floating_point():
        shape = f"{tuple(points.shape)} {points.dtype}" if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"scenes: points must be floating (B, N, 3), got {shape}")
    size = points.shape[1]
    for count in counts:
        if size < count:
            raise ValueError(
                f"scenes: {count} centres are wanted of {size} points; take more points a scene, or lower model.preenc_npoints and "
                "model.nqueries"
            )
        size = count


class SceneEncoder(nn.Module):
    """The layers behind the pre-encoder: plain ones, or three masked by distance with a set abstraction after the first."""

    def __init__(self, config: SceneEncoderConfig):
        super().__init__()
        width = config.enc_dim
        self.radii = tuple(config.mask_radii) if config.enc_type == "masked" else None
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.enc_nhead, config.enc_ffn_dim, config.enc_dropout)
            for _ in range(config.enc_nlayers)
        )
        if self.radii is not None:
            self.interim_downsampling = SetAbstraction(config.interim_radius, [width] * 4)

    def forward(self, tokens: Tensor, pyramid: Pyramid) -> Tensor:
        """Encode the tokens (B, G_0, C) of all groups; returns those of the last level."""
        if self.radii is None:
            for layer in self.layers:
                tokens = layer(tokens)
            return tokens
        first, *others = self.layers
        tokens = first(tokens, within_radius(pyramid.centers[0], self.radii[0], FEW))
        tokens = self.interim_downsampling(pyramid.neighborhoods[1], tokens, pyramid.idx[1])
        between = distances(pyramid.centers[1])
        for layer, radius in zip(others, self.radii[1:], strict=True):
            tokens = layer(tokens, between < radius)
        return tokens

    def encode_visible(self, tokens: Tensor, pyramid: Pyramid, masks: list[Packing], *, local: bool) -> Tensor:
        """Encode only what masks leave visible of a masked encoder's tokens (B, G_0, C).

        Args:
            local: attention reaches as far as in `forward`; else as far as there are visible tokens.

        Returns:
            packed tokens (B, V, C) of the last level.
        """
        first, *others = self.layers
        fine, coarse = masks
        packed = first(pack(tokens, fine), self._allowed(pyramid.centers[0], fine, 0, local), fine.valid)
        tokens = unpack(packed, fine, background=tokens)
        tokens = self.interim_downsampling(pyramid.neighborhoods[1], tokens, pyramid.idx[1])
        packed = pack(tokens, coarse)
        for number, layer in enumerate(others, start=1):
            packed = layer(packed, self._allowed(pyramid.centers[1], coarse, number, local), coarse.valid)
        return packed

    def _allowed(self, centers: Tensor, packing: Packing, layer: int, local: bool) -> Tensor | None:
        return distances(gather(centers, packing.order)) < self.radii[layer] if local else None


class SceneParts:
    """What the detector and its masked autoencoder share: `pre_encoder` and `encoder`, under their published names."""

    def build_backbone(self, config: SceneEncoderConfig) -> None:
        """Create `pre_encoder` and `encoder`."""
        widths = [3 if config.use_color else 0, *config.preenc_widths, config.enc_dim]
        self.pre_encoder = SetAbstraction(config.preenc_radius, widths)
        self.encoder = SceneEncoder(config)

    def first_tokens(self, pyramid: Pyramid, colors: Tensor | None = None) -> Tensor:
        """Return the pre-encoder's tokens (B, G_0, C); `colors` (B, N, 3) of all points, where the model uses them."""
        if self.config.use_color != (colors is not None):
            verb = "needs" if self.config.use_color else "takes no"
            raise ValueError(f"{type(self).__name__}: {verb} colours; set model.use_color to match the input")
        return self.pre_encoder(pyramid.neighborhoods[0], colors, pyramid.idx[0])
