"""Point-M2AE: multi-scale masked autoencoders for hierarchical point cloud pre-training (Zhang et al. 2022).

`models/plain.py` says the same in one file of ordinary PyTorch.

Shapes: `B` batch, `G` groups, `V` visible groups, `K` neighbours per group, `C` channels, `L` hidden patches of the batch; scale index
0 = finest.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from models.classifier import HierarchicalClassifier, HierarchicalClassifierConfig, HierarchicalScanObjectNNConfig
from models.hierarchical import HierarchicalMAE, HierarchicalMAEConfig
from models.layers.group import Pyramid
from models.layers.norm import PointwiseConv
from models.layers.packing import Packing
from models.registry import MODELS
from models.segmenter import HierarchicalSegmenter, HierarchicalSegmenterConfig

METHOD = "point-m2ae"
# Of GM3D around this method, whose encoder these models start from too.
COMPLEXITY_KEYS = ("mask_token_loss_pred", "MAE_decoder_loss_pred.", "increase_dim_2.")


@MODELS.register("Point_M2AE", config=HierarchicalMAEConfig)
class PointM2AE(HierarchicalMAE):
    """Hide patches at every scale, encode what is visible from fine to coarse, rebuild what is hidden."""

    method = METHOD
    own_keys = ("rec_head.",)
    shared_keys = ("h_encoder.",)
    svm_C: ClassVar = {"modelnet40": 0.012}

    def __init__(self, config: HierarchicalMAEConfig):
        super().__init__(config)
        # As published: 3 * K of the finest scale, though the targets are patches of a coarser one. Chamfer does not mind.
        self.rec_head = PointwiseConv(config.decoder_dims[-1], 3 * config.group_sizes[0])

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: None = None) -> dict[str, Tensor]:
        """Encode what is visible, rebuild what is hidden, compare."""
        visible = self.encode_visible(pyramid, masks)  # (B, V, C) a scale
        tokens = self.decode(pyramid, masks, visible)  # (B, G, C)
        hidden = self.hidden_rows(masks)
        rebuilt = self.rec_head(hidden.take(tokens))  # (L, 3 * K_0)
        return self.compare(rebuilt, pyramid, masks, hidden)

    def complete_features(self, pyramid: Pyramid) -> Tensor:
        """Return what this model, as a teacher, says of each patch of a complete cloud: decoded tokens (B, G, C)."""
        masks = self.mask_nothing(pyramid)
        return self.decode(pyramid, masks, self.encode_visible(pyramid, masks))

    def points_from(self, features: Tensor, centers: Tensor | None = None) -> Tensor:
        """Decode features (..., C) of patches, each on its own, as points (..., K_0, 3) relative to their centres."""
        return self.rec_head(features).unflatten(-1, (-1, 3))


@dataclass
class PointM2AEModelNet40Config(HierarchicalClassifierConfig):
    """Keys of Point-M2AE's classifier; defaults as published for ModelNet40."""

    NAME: str = "Point_M2AE_ModelNet40"
    smooth: float = 0.3


@dataclass
class PointM2AEScanObjectNNConfig(HierarchicalScanObjectNNConfig):
    """The same keys with the defaults published for ScanObjectNN."""

    NAME: str = "Point_M2AE_ScanObjectNN"
    pooling: str = "mean,max[1:]"


@MODELS.register("Point_M2AE_ModelNet40", config=PointM2AEModelNet40Config)
@MODELS.register("Point_M2AE_ScanObjectNN", config=PointM2AEScanObjectNNConfig)
class PointM2AEClassifier(HierarchicalClassifier):
    """Fine-tune Point-M2AE's encoder to classify (Zhang et al. 2022, Sec. 4.2)."""

    method = METHOD
    starts_from = ("gm3d-point-m2ae",)
    published_rounds = 49
    shared_keys = ("h_encoder.",)
    ignored_keys = (*HierarchicalClassifier.ignored_keys, "rec_head.", *COMPLEXITY_KEYS)
    renamed_keys = (("base.", ""),)


@MODELS.register("Point_M2AE_SEG", config=HierarchicalSegmenterConfig)
class PointM2AESegmenter(HierarchicalSegmenter):
    """Fine-tune Point-M2AE's encoder to segment parts (Zhang et al. 2022, Sec. 4.2); I2P-MAE's part segmenter is this one, as published."""

    method = METHOD
    starts_from = ("gm3d-point-m2ae", "i2p-mae")
    shared_keys = ("h_encoder.",)
    ignored_keys = (*HierarchicalSegmenter.ignored_keys, "rec_head", *COMPLEXITY_KEYS, "clip_model.")
    renamed_keys = (("base.", ""),)
