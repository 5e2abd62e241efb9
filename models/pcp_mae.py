"""PCP-MAE: a masked autoencoder that learns to predict the centres of what is hidden (Zhang et al. 2024, arXiv 2408.08753).

The decoder of Point-MAE is told where the hidden patches are. Here it is told only where the encoder believes that they are: the hidden
tokens pass through the encoder without a position, and a head predicts the embedding of each centre from what comes out.

Shapes: `B` batch, `G` groups, `V` visible and `M` hidden groups of a sample, `L` hidden patches of the batch, `K` points per patch,
`C` channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import gather
from models.classifier import SingleScaleClassifier, SingleScaleClassifierConfig
from models.layers.drop import DropPath
from models.layers.group import Pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import Packing, Rows
from models.layers.transformer import DecoderBlocks
from models.losses import MeanLoss, at_least_float
from models.registry import MODELS
from models.segmenter import SingleScaleSegmenter, SingleScaleSegmenterConfig
from models.single_scale import (
    MaskedTransformerConfig,
    SingleScaleEncoder,
    SingleScaleMAE,
    SingleScaleMAEConfig,
    SingleScaleParts,
    with_placeholders,
)

METHOD = "pcp-mae"
LONGEST = 10000.0  # no wave of the embedding is longer, in radians a unit
# Of a pre-training checkpoint, without a place in what is fine-tuned.
PRETRAINING_KEYS = (
    "mask_token",
    "mask_pos_token",
    "MAE_decoder.",
    "increase_dim.",
    "pred_pos_proj.",
    "pred_pos_decoder.",
)


def sinusoids(centers: Tensor, width: int) -> Tensor:
    """Embed centres (..., 3) as (..., width): for each axis the sines, then the cosines, of width / 6 frequencies from 1 down.

    Coordinates are taken as they are, so that the fastest wave is one radian a unit.
    """
    count = width // 6
    exponents = torch.arange(count, dtype=centers.dtype, device=centers.device) / count
    angles = centers.unsqueeze(-1) * LONGEST**-exponents  # (..., 3, width / 6)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def centers_of(embedding: Tensor) -> Tensor:
    """Return the centres (..., 3) that embeddings (..., width) mean, by the angle of their fastest wave; exact within pi of the origin."""
    sines, cosines = embedding.unflatten(-1, (3, 2, -1))[..., 0].unbind(-1)
    return torch.atan2(sines, cosines)


class CenterEmbed(nn.Sequential):
    """Turn centres, or predicted embeddings of centres, into positions by one MLP."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, centers: Tensor) -> Tensor:
        """Embed centres (B, G, 3) as positions (B, G, C)."""
        return self.of_embedding(sinusoids(centers, self[0].in_features))

    def of_embedding(self, embedding: Tensor) -> Tensor:
        """Turn embeddings of centres (B, G, C) into positions (B, G, C)."""
        return super().forward(embedding)


def check_width(width: int) -> None:
    """Raise a ValueError unless the width of the tokens, `trans_dim`, holds sines and cosines of three axes."""
    if width % 6:
        raise ValueError(f"trans_dim: {width} does not divide by 6, as the embedding of the centres needs; change it")


# Compare predicted embeddings with those of the true centres, both (L, C): (L,).
CENTER_LOSSES = {
    "l2": lambda predicted, true: F.mse_loss(predicted, true, reduction="none").mean(-1),
    "l1": lambda predicted, true: F.l1_loss(predicted, true, reduction="none").mean(-1),
    "sml1": lambda predicted, true: F.smooth_l1_loss(predicted, true, reduction="none").mean(-1),
    "cos": lambda predicted, true: 1 - (F.normalize(predicted, dim=-1) * F.normalize(true, dim=-1)).sum(-1),
}


@dataclass
class PCPMAEConfig(SingleScaleMAEConfig):
    """Keys of PCP-MAE pre-training; defaults as published."""

    NAME: str = "PCP_MAE"
    pred_loss: Literal["l2", "l1", "sml1", "cos"] = "l2"  # compares predicted embeddings of centres with true ones
    ita: float = 0.1  # its weight
    pred_pos_transformer_layer: int = 0  # blocks before the head that predicts the centres
    add_detach: bool = True  # rebuilding does not train that head

    def __post_init__(self):
        super().__post_init__()
        check_width(self.transformer_config.trans_dim)
        for key in ("ita", "pred_pos_transformer_layer"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}: {getattr(self, key)} must not be negative")


class PCPParts(SingleScaleParts):
    """The parts of the encoder: Point-MAE's, with positions made of sinusoids."""

    def build_position_embed(self, width: int) -> nn.Module:
        """Return what turns centres (B, G, 3) into positions (B, G, C)."""
        return CenterEmbed(width)


class PCPEncoder(PCPParts, SingleScaleEncoder):
    """Point-MAE's encoder for the visible patches, with a second stream for the hidden ones."""

    def __init__(self, config: MaskedTransformerConfig):
        super().__init__(config)
        self.mask_pos_token = nn.Parameter(torch.zeros(1, 1, config.trans_dim))
        nn.init.trunc_normal_(self.mask_pos_token, std=0.02, a=-2.0, b=2.0)

    def both_streams(self, pyramid: Pyramid, mask: Packing, hidden: Rows) -> tuple[Tensor, Tensor]:
        """Encode visible and hidden groups by the same blocks as normed tokens (B, V, C) and (B, M, C) (Sec. 3.3).

        Visible tokens attend to visible ones only, as if they were alone. Hidden tokens attend to all; instead of their position they have
        a learned token that is the same for all of them.
        """
        visible = mask.order.shape[1]
        order = torch.cat([mask.order, hidden.by_sample()], dim=1)  # (B, G)
        tokens = gather(self.encoder(pyramid.neighborhoods[0]), order)  # (B, G, C)
        position = self.pos_embed(gather(pyramid.centers[0], mask.order))  # (B, V, C)
        position = with_placeholders(position, self.mask_pos_token, order.shape[1])
        place = torch.arange(order.shape[1], device=order.device)
        attend = (place < visible) | (place >= visible).unsqueeze(1)  # (G, G)
        attend = attend.expand(len(order), -1, -1)
        for block in self.blocks.blocks:
            tokens = tokens + position
            tokens = tokens + drop_by_stream(block.drop_path, block.attn(block.norm1(tokens), attend=attend), visible)
            tokens = tokens + drop_by_stream(block.drop_path, block.mlp(block.norm2(tokens)), visible)
        normed = self.normed(tokens)
        return normed[:, :visible], normed[:, visible:]


def drop_by_stream(drop_path: DropPath, branch: Tensor, visible: int) -> Tensor:
    """Drop a residual branch (B, G, C) for its first `visible` tokens and for the others, drawn one after the other."""
    if not drop_path.training or drop_path.rate == 0:
        return branch
    return torch.cat([drop_path(branch[:, :visible]), drop_path(branch[:, visible:])], dim=1)


@MODELS.register("PCP_MAE", config=PCPMAEConfig)
class PCPMAE(SingleScaleMAE):
    """Hide patches, encode both kinds, predict the centres of the hidden ones, rebuild these from mask tokens at predicted centres."""

    method = METHOD
    own_keys = ("pred_pos_proj.", "MAE_encoder.mask_pos_token")
    encoder_class = PCPEncoder
    epoch_loss = "loss_recon"

    def __init__(self, config: PCPMAEConfig):
        super().__init__(config)
        self.mean = MeanLoss()

    def build_parts(self, config: MaskedTransformerConfig) -> None:
        """Create all parts, in the published order; encoder and decoder share the embedding of positions."""
        width, depth = config.trans_dim, self.config.pred_pos_transformer_layer
        self.MAE_encoder = self.encoder_class(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-2.0, b=2.0)
        self.MAE_decoder = self.build_decoder(config, config.decoder_depth)
        self.increase_dim = nn.Sequential(PointwiseConv(width, 3 * self.config.group_size))
        self.pred_pos_proj = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )
        self.pred_pos_decoder: DecoderBlocks | None = self.build_decoder(config, depth) if depth else None

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: None = None) -> dict[str, Tensor]:
        """Encode, predict where the hidden patches are, rebuild them there, compare both.

        "loss" is "loss_recon" plus "loss_center", the weighted one; "predicted_centers" (L, 3) are what the predictions mean.
        """
        hidden = self.hidden_rows(masks)
        visible, masked = self.MAE_encoder.both_streams(pyramid, masks[0], hidden)  # (B, V, C), (B, M, C)
        predicted = self.predict_centers(masked)  # (B, M, C)
        rebuilt = self.rebuild(visible, gather(pyramid.centers[0], masks[0].order), predicted)  # (B, M, 3 * K)
        out = self.compare(rebuilt.flatten(0, 1), pyramid, masks, hidden)
        predicted = predicted.flatten(0, 1)
        loss_center = self.config.ita * self.compare_centers(predicted, out["centers"], hidden.valid)
        losses = {"loss": out["loss"] + loss_center, "loss_recon": out["loss"], "loss_center": loss_center}
        return {**out, **losses, "predicted_centers": centers_of(predicted.detach())}

    def predict_centers(self, masked: Tensor) -> Tensor:
        """Predict from the hidden tokens (B, M, C) the embeddings (B, M, C) of their centres."""
        if self.pred_pos_decoder is not None:
            masked = self.pred_pos_decoder.norm(self.pred_pos_decoder(masked, masked.new_zeros(())))
        return self.pred_pos_proj(masked)

    def compare_centers(self, predicted: Tensor, centers: Tensor, valid: Tensor) -> Tensor:
        """Compare predicted embeddings (L, C) with those of the true centres (L, 3): a scalar, without `ita`."""
        predicted = at_least_float(predicted)
        true = sinusoids(centers, predicted.shape[-1])
        return self.mean(CENTER_LOSSES[self.config.pred_loss](predicted, true), valid)

    def rebuild(self, visible: Tensor, centers: Tensor, predicted: Tensor) -> Tensor:
        """Rebuild the hidden patches as points (B, M, 3 * K), from visible tokens (B, V, C) at centers (B, V, 3).

        Args:
            predicted: (B, M, C) embeddings of their centres, which become the positions of the mask tokens.
        """
        embed = self.MAE_encoder.pos_embed
        told = predicted.detach() if self.config.add_detach else predicted
        position = torch.cat([embed(centers), embed.of_embedding(told)], dim=1)  # (B, V + M, C)
        tokens = with_placeholders(visible, self.mask_token, position.shape[1])
        tokens = self.MAE_decoder(tokens, position)[:, visible.shape[1] :]
        return self.increase_dim(self.MAE_decoder.norm(tokens))


@dataclass
class PCPClassifierConfig(SingleScaleClassifierConfig):
    """Keys of PCP-MAE's classifier: those of Point-MAE's."""

    NAME: str = "PCP_MAE_Classifier"

    def __post_init__(self):
        super().__post_init__()
        check_width(self.trans_dim)


@MODELS.register("PCP_MAE_Classifier", config=PCPClassifierConfig)
class PCPClassifier(PCPParts, SingleScaleClassifier):
    """Fine-tune PCP-MAE's encoder to classify; published as `PointTransformer`."""

    method = METHOD
    published_rounds = 51
    ignored_keys = PRETRAINING_KEYS

    def __init__(self, config: PCPClassifierConfig):
        super().__init__(config)
        if config.head == "linear":  # which published checkpoints hold within a sequence
            self.cls_head_finetune = nn.Sequential(self.cls_head_finetune)


@dataclass
class PCPSegmenterConfig(SingleScaleSegmenterConfig):
    """Keys of PCP-MAE's part segmenter: those of Point-MAE's."""

    NAME: str = "PCP_MAE_SEG"

    def __post_init__(self):
        super().__post_init__()
        check_width(self.trans_dim)


@MODELS.register("PCP_MAE_SEG", config=PCPSegmenterConfig)
class PCPSegmenter(PCPParts, SingleScaleSegmenter):
    """Fine-tune PCP-MAE's encoder to segment parts."""

    method = METHOD
    ignored_keys = PRETRAINING_KEYS
