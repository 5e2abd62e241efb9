"""3DETR and 3DETR-m: detection of objects in scenes by a transformer (Misra et al. 2021). Point-M2AE pre-trains the encoder of 3DETR-m.

Shapes: `B` scenes, `N` points, `L` tokens of the encoder, `Q` queries, `C` channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from extensions import gather
from models.base import DEEPEST, LARGEST, PointModel
from models.detection.backbone import SceneEncoderConfig, SceneParts, check_numbers, group_scenes
from models.detection.boxes import angle_of, box_corners, normalize
from models.detection.criterion import SetCriterion
from models.detection.layers import Decoder, FourierEmbedding, PointwiseMLP
from models.layers.group import Pyramid
from models.losses import at_least_float
from models.registry import MODELS

METHOD = "3detr"
LEAST_EXTENT = 0.1  # of a scene along an axis, in metres, when sizes are scaled by it


@dataclass
class DetectorConfig(SceneEncoderConfig):
    """Keys of 3DETR, with the published names of its flags; defaults as published for ScanNet."""

    task_keys: ClassVar[tuple[str, ...]] = ("enc_dropout",)  # not taken from a checkpoint of pre-training
    NAME: str = "3DETR"
    dec_nlayers: int = 8
    dec_dim: int = 256
    dec_ffn_dim: int = 256
    dec_nhead: int = 4
    dec_dropout: float = 0.1
    mlp_dropout: float = 0.3
    nqueries: int = 256
    num_classes: int = 18
    num_angle_bins: int = 1  # 1 = boxes along the axes
    matcher_giou_cost: float = 2.0
    matcher_cls_cost: float = 1.0
    matcher_center_cost: float = 0.0
    matcher_objectness_cost: float = 0.0
    loss_giou_weight: float = 1.0
    loss_sem_cls_weight: float = 1.0
    loss_no_object_weight: float = 0.25
    loss_angle_cls_weight: float = 0.1
    loss_angle_reg_weight: float = 0.5
    loss_center_weight: float = 5.0
    loss_size_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        counts = ("dec_dim", "dec_ffn_dim", "dec_nhead", "nqueries", "num_classes", "num_angle_bins")
        check_numbers(self, dict.fromkeys(counts, (1, LARGEST)) | {"dec_nlayers": (1, DEEPEST)})
        check_numbers(self, dict.fromkeys(("dec_dropout", "mlp_dropout"), (0, 1)))
        weights = [key for key in vars(self) if key.startswith(("matcher_", "loss_"))]
        check_numbers(self, dict.fromkeys(weights, (0, 1e6)))
        if self.dec_dim % self.dec_nhead or self.dec_dim % 2:
            raise ValueError(
                f"model.dec_dim: {self.dec_dim} must be even and divide by dec_nhead {self.dec_nhead}; change one of them"
            )
        if self.num_angle_bins > 1:
            raise ValueError(
                f"model.num_angle_bins: {self.num_angle_bins}, but the loss compares boxes along the axes only; use 1"
            )
        last = self.levels[-1][0]
        if self.nqueries > last:
            raise ValueError(f"model.nqueries: {self.nqueries} of {last} tokens; lower it, or raise preenc_npoints")


@dataclass
class MaskedDetectorConfig(DetectorConfig):
    """The same keys with the defaults published for 3DETR-m."""

    NAME: str = "3DETR_M"
    enc_type: str = "masked"
    enc_dropout: float = 0.3


class SceneGroups(NamedTuple):
    """Groups of a batch of scenes at each level, and the points of the queries."""

    centers: list[Tensor]  # (B, G, 3)
    idx: list[Tensor]  # (B, G, S) int64, members in the level below; level 0: in the points
    neighborhoods: list[Tensor]  # (B, G, S, 3) relative to the centre, metres
    queries: Tensor  # (B, Q, 3)
    chosen: list[Tensor]  # int64: which points the centres are, level by level, then which centres the queries are

    @property
    def pyramid(self) -> Pyramid:
        """The groups alone."""
        return Pyramid(self.centers, self.idx, self.neighborhoods)


@MODELS.register("3DETR", config=DetectorConfig)
@MODELS.register("3DETR_M", config=MaskedDetectorConfig)
class Detector(SceneParts, PointModel):
    """Encode a scene, let queries at some of its points ask for objects, and decode a box and a class from each (Misra et al. 2021)."""

    method = METHOD
    own_keys = ("mlp_heads.", "query_projection.")
    starts_from = ("point-m2ae",)
    missing_keys = ("encoder_to_decoder_projection.", "pos_embedding.", "query_projection.", "decoder.", "mlp_heads.")
    ignored_keys = ("mask_token", "h_decoder.", "decoder_pos_embeds.", "decoder_norm.", "scene_head.")
    # MaskPoint's checkpoints of pre-training.
    renamed_keys = (("transformer_q.encoder.", "pre_encoder."), ("transformer_q.blocks.", "encoder."))

    def __init__(self, config: DetectorConfig):
        super().__init__(config)
        width, hidden = config.dec_dim, [config.enc_dim] * (2 if config.enc_type == "masked" else 3)
        # The order of creation is the order of the published parameter lists.
        self.build_backbone(config)
        self.encoder_to_decoder_projection = PointwiseMLP([*hidden, width], norm=True)
        self.pos_embedding = FourierEmbedding(width)
        self.query_projection = PointwiseMLP([width] * 3, norm=False)
        self.decoder = Decoder(config.dec_nlayers, width, config.dec_nhead, config.dec_ffn_dim, config.dec_dropout)
        outs = {
            "sem_cls_head": config.num_classes + 1,
            "center_head": 3,
            "size_head": 3,
            "angle_cls_head": config.num_angle_bins,
            "angle_residual_head": config.num_angle_bins,
        }
        self.mlp_heads = nn.ModuleDict(
            {
                name: PointwiseMLP([width] * 3, norm=True, dropout=config.mlp_dropout, out=out)
                for name, out in outs.items()
            }
        )
        self.criterion = SetCriterion(config)

    @property
    def data_dependent(self) -> str:
        """Why control flow follows the data on every device."""
        return "predictions are matched with boxes on the host"

    def group(self, points: Tensor, *, generator: torch.Generator | None = None) -> SceneGroups:
        """Group points (B, N, 3) and choose the points of the queries; no weight takes part, and nothing is random.

        Raises:
            ValueError: not such a tensor, fewer points than groups, or weights in half precision.
        """
        self.check_dtype()
        pyramid, chosen = group_scenes(points, self.config.levels, dtype=self.dtype, queries=self.config.nqueries)
        return SceneGroups(*pyramid, gather(pyramid.centers[-1], chosen[-1]), chosen)

    def encode(self, groups: SceneGroups, colors: Tensor | None = None) -> Tensor:
        """Return the memory (B, L, C): encoded and projected tokens at `groups.centers[-1]`."""
        tokens = self.encoder(self.first_tokens(groups.pyramid, colors), groups.pyramid)
        return self.encoder_to_decoder_projection(tokens)

    def forward(
        self,
        points: Tensor,
        extent: tuple[Tensor, Tensor] | None = None,
        *,
        groups: SceneGroups | None = None,
        colors: Tensor | None = None,
    ) -> dict:
        """Detect objects.

        Args:
            points: (B, N, 3), metres.
            extent: lowest and highest coordinates of each scene, (B, 3) each; default: those of the points.
            groups: what `group` makes of the points, if it is known.
            colors: (B, N, 3), where the model uses them.

        Returns:
            "outputs", the predictions of the last decoder layer, and "aux_outputs", a list of those of the others: see `decode`.
        """
        groups = self.group(points) if groups is None else groups
        low, high = (points.amin(1), points.amax(1)) if extent is None else extent
        low, high = low.to(self.dtype), high.to(self.dtype)
        memory = self.encode(groups, colors)
        position = self.pos_embedding(normalize(groups.centers[-1], low, high))
        query = self.query_projection(self.pos_embedding(normalize(groups.queries, low, high)))
        decoded = self.decode(self.decoder(memory, position, query), groups.queries, low, high)
        layers = [
            dict(zip(decoded, values, strict=True))
            for values in zip(*(v.unbind(1) for v in decoded.values()), strict=True)
        ]
        return {"outputs": layers[-1], "aux_outputs": layers[:-1]}

    def decode(self, features: Tensor, queries: Tensor, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """Make boxes and classes of the decoder's outputs (B, layers, Q, C); all results (B, layers, Q, ...), fp32 at least.

        Centres are at most 0.5 m per axis from their queries; sizes are shares of the scene's extent.
        """
        raw = {name: at_least_float(head(features)) for name, head in self.mlp_heads.items()}
        bins = self.config.num_angle_bins
        center = queries.unsqueeze(1) + raw["center_head"].sigmoid() - 0.5
        share = raw["size_head"].sigmoid()
        size = share * (high - low).clamp(min=LEAST_EXTENT)[:, None, None]
        residual = raw["angle_residual_head"] * (math.pi / bins)
        angle = angle_of(raw["angle_cls_head"], residual)
        probabilities = raw["sem_cls_head"].detach().softmax(-1)
        return {
            "sem_cls_logits": raw["sem_cls_head"],
            "center_normalized": normalize(center, low, high),
            "center_unnormalized": center,
            "size_normalized": share,
            "size_unnormalized": size,
            "angle_logits": raw["angle_cls_head"],
            "angle_residual": residual,
            "angle_residual_normalized": raw["angle_residual_head"],
            "angle_continuous": angle,
            "objectness_prob": 1 - probabilities[..., -1],
            "sem_cls_prob": probabilities[..., :-1],
            "box_corners": box_corners(center, size, angle),
        }

    def loss(self, out: dict, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compare what `forward` returns with targets: "loss", and its weighted parts by their published names."""
        total, parts = self.criterion([out["outputs"], *out["aux_outputs"]], targets)
        return {"loss": total, **parts}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that pre-training gives."""
        return [*self.pre_encoder.parameters(), *self.encoder.parameters()]
