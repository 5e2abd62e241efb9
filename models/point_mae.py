"""Point-MAE: masked autoencoders for point clouds (Pang et al. 2022).

Shapes: `B` batch, `G` groups, `V` visible and `M` hidden groups of a sample, `K` points per patch, `C` channels.
"""

from torch import Tensor, nn

from models.classifier import SingleScaleClassifier, SingleScaleClassifierConfig
from models.layers.group import Pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import Packing
from models.registry import MODELS
from models.segmenter import SingleScaleSegmenter, SingleScaleSegmenterConfig
from models.single_scale import SingleScaleMAE, SingleScaleMAEConfig

METHOD = "point-mae"
DECODER_KEYS = ("mask_token", "decoder_pos_embed.", "MAE_decoder.", "increase_dim.")


@MODELS.register("Point_MAE", config=SingleScaleMAEConfig)
class PointMAE(SingleScaleMAE):
    """Hide patches, encode the visible ones, rebuild the hidden ones from mask tokens."""

    method = METHOD
    shared_keys = ("MAE_encoder.",)

    def __init__(self, config: SingleScaleMAEConfig):
        super().__init__(config)
        self.increase_dim = nn.Sequential(PointwiseConv(config.transformer_config.trans_dim, 3 * config.group_size))

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: None = None) -> dict[str, Tensor]:
        """Encode what is visible, rebuild what is hidden, compare."""
        hidden = self.hidden_rows(masks)
        visible = self.encode_visible(pyramid, masks)  # (B, V, C)
        tokens = self.decode(pyramid, masks, visible, hidden)[:, visible.shape[1] :]  # (B, M, C)
        rebuilt = self.increase_dim(self.MAE_decoder.norm(tokens))  # (B, M, 3 * K)
        return self.compare(rebuilt.flatten(0, 1), pyramid, masks, hidden)

    def complete_features(self, pyramid: Pyramid) -> Tensor:
        """Return what this model, as a teacher, says of each patch of a complete cloud: tokens (B, G, C)."""
        return self.MAE_encoder(pyramid)

    def points_from(self, features: Tensor, centers: Tensor) -> Tensor:
        """Decode features (B, T, C) of patches at centers (B, T, 3) together, as points (B, T, K, 3) relative to the centres."""
        tokens = self.MAE_decoder(features, self.decoder_pos_embed(centers))
        return self.increase_dim(self.MAE_decoder.norm(tokens)).unflatten(-1, (-1, 3))


@MODELS.register("PointTransformer", config=SingleScaleClassifierConfig)
class PointMAEClassifier(SingleScaleClassifier):
    """Fine-tune Point-MAE's encoder to classify (Pang et al. 2022, Sec. 4.2)."""

    method = METHOD
    published_rounds = 299
    shared_keys = ("blocks.blocks.", "cls_pos")
    ignored_keys = DECODER_KEYS


@MODELS.register("Point_MAE_SEG", config=SingleScaleSegmenterConfig, aliases=("pt", "get_model"))
class PointMAESegmenter(SingleScaleSegmenter):
    """Fine-tune Point-MAE's encoder to segment parts (Pang et al. 2022, Sec. 4.2); `pt` is the name of its published module.

    As published, GM3D's segmenter is this one: its encoder's norm goes by another name, and its checkpoints hold a second one that
    was never trained, and a branch of its own.
    """

    method = METHOD
    starts_from = ("gm3d",)
    shared_keys = ("blocks.blocks.",)
    ignored_keys = (
        *DECODER_KEYS,
        "increase_dim_just_network_without_feature.",
        "mask_token_loss_pred",
        "MAE_decoder_loss_pred.",
        "increase_dim_2.",
        "norm_p.",
    )
    renamed_keys = (("MAE_encoder.norm_p.", "norm."), ("MAE_encoder.", ""))
