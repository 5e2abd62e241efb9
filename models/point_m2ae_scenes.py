"""Point-M2AE on scenes: masked autoencoding with the encoder of 3DETR-m as its two scales (Zhang et al. 2022, Sec. 4.2 and appendix B).

The paper trained the detector's encoder so and released neither program nor settings; `docs/deviations.md` says what is a choice of ours.

Shapes: `B` scenes, `G` groups, `V` visible groups, `S` members of a group, `C` channels, `L` hidden groups of the batch; scale index 0 =
finest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.base import DEEPEST, LARGEST, MaskedAutoencoder
from models.detection.backbone import SceneEncoderConfig, SceneParts, check_numbers, group_scenes
from models.layers.embed import position_embed
from models.layers.group import Pyramid
from models.layers.init import init_truncated_normal, init_xavier
from models.layers.packing import Packing, Rows, rows_of, unpack
from models.layers.transformer import Blocks, drop_path_rates
from models.losses import RECONSTRUCTION_LOSSES
from models.masking import random_mask
from models.point_m2ae import METHOD
from models.registry import MODELS
from utils.device import send


@dataclass
class PointM2AEScenesConfig(SceneEncoderConfig):
    """Keys of pre-training on scenes; those that the paper leaves open have our choices as defaults."""

    NAME: str = "Point_M2AE_Scenes"
    enc_type: str = "masked"
    mask_ratio: float = 0.8
    local_attention_in_pretraining: bool = False  # whether the radii of the encoder hold among visible tokens too
    decoder_depth: int = 1
    decoder_num_heads: int = 4
    drop_path_rate: float = 0.0  # of the decoder
    loss: str = "cdl2"

    def __post_init__(self):
        super().__post_init__()
        check_numbers(self, {"decoder_depth": (1, DEEPEST), "decoder_num_heads": (1, LARGEST)})
        groups = self.preenc_npoints // 2
        if self.enc_type != "masked":
            raise ValueError("model.enc_type: a plain encoder has one scale, and this method hides at two; use masked")
        if not 0 <= self.mask_ratio < 1 or int(self.mask_ratio * groups) < 1:
            raise ValueError(
                f"model.mask_ratio: {self.mask_ratio} of {groups} groups must hide at least one and leave one visible"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"model.drop_path_rate: {self.drop_path_rate} must be at least 0 and below 1")
        if self.loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"model.loss: {self.loss!r} is unknown; choose from {', '.join(RECONSTRUCTION_LOSSES)}")
        if self.enc_dim % self.decoder_num_heads:
            raise ValueError(
                f"model.enc_dim: {self.enc_dim} does not divide by decoder_num_heads {self.decoder_num_heads}; change one of them"
            )
        if self.use_color:
            raise ValueError("model.use_color: pre-training takes no colours; leave it out")


@MODELS.register("Point_M2AE_Scenes", config=PointM2AEScenesConfig)
class PointM2AEScenes(SceneParts, MaskedAutoencoder):
    """Hide coarse groups of a scene and the fine groups that only they hold, encode the rest, rebuild the centres of hidden groups.

    What is rebuilt of a coarse group are the centres of its fine groups, relative to its own; losses compare them in units of its radius.
    """

    method = METHOD
    own_keys = ("scene_head.",)
    ignored_keys = ("encoder_to_decoder_projection.", "pos_embedding.", "query_projection.", "decoder.", "mlp_heads.")
    decoded_scale = 1

    def __init__(self, config: PointM2AEScenesConfig):
        super().__init__(config)
        width = config.enc_dim
        self.masked_count = int(config.mask_ratio * (config.preenc_npoints // 2))
        self.build_backbone(config)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-2.0, b=2.0)
        rates = drop_path_rates(config.drop_path_rate, config.decoder_depth)
        self.h_decoder = nn.ModuleList([Blocks(width, config.decoder_num_heads, drop_paths=rates)])
        self.decoder_pos_embeds = nn.ModuleList([position_embed(width)])
        self.decoder_norm = nn.LayerNorm(width)
        self.scene_head = nn.Linear(width, 3 * config.interim_samples)
        self.h_decoder.apply(init_xavier)
        self.decoder_pos_embeds.apply(init_truncated_normal)

    def group(self, points: Tensor, *, generator: torch.Generator | None = None) -> Pyramid:
        """Group points (B, N, 3) into the balls of both scales; no weight takes part, and nothing is random."""
        self.check_dtype()
        return group_scenes(points, self.config.levels, dtype=self.dtype)[0]

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the coarse groups to hide uniformly: (B, G) bool, True = hidden."""
        B, G, _ = pyramid.centers[-1].shape
        masked = random_mask(B, G, self.config.mask_ratio, generator=generator)
        return send(masked, pyramid.centers[-1].device)

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Any) -> dict[str, Tensor]:
        """Encode the visible groups, rebuild the hidden coarse ones, compare."""
        local = self.config.local_attention_in_pretraining
        visible = self.encoder.encode_visible(self.first_tokens(pyramid), pyramid, masks, local=local)
        tokens = unpack(visible, masks[1], self.mask_token)  # (B, G, C)
        tokens = self.h_decoder[0](tokens, self.decoder_pos_embeds[0](pyramid.centers[1]))
        hidden = rows_of(~masks[1].visible, self.masked_count)
        return self.compare(self.scene_head(self.decoder_norm(hidden.take(tokens))), pyramid, masks, hidden)

    def compare(self, rebuilt: Tensor, pyramid: Pyramid, masks: list[Packing], hidden: Rows) -> dict[str, Tensor]:
        """Compare rebuilt patches (L, 3 * S), in units of the radius, with the hidden groups; what is returned is in metres."""
        radius = self.config.interim_radius
        out = self.pair(rebuilt * radius, pyramid, masks, hidden)
        return {"loss": self.criterion(out["rebuilt"] / radius, out["target"] / radius, out["valid"]), **out}

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as tokens (B, G, C) of the coarse scale, as a detector does."""
        pyramid = self.group(points) if pyramid is None else pyramid
        return self.encoder(self.first_tokens(pyramid), pyramid)
