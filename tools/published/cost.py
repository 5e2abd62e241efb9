"""Published sizes of models: parameters of the authors' code, and the FLOPs that papers say."""

# Name of a model, and its variant (classes of a classifier, mode of GM3D, else "") -> parameters of the authors' code.
PARAMETERS = {
    ("Point_M2AE", ""): 15_255_856,
    ("Point_M2AE_ModelNet40", "40"): 12_830_056,
    ("Point_M2AE_ScanObjectNN", "15"): 12_921_935,
    ("Point_M2AE_SEG", ""): 25_474_354,
    ("Point_MAE", ""): 29_006_432,
    ("PointTransformer", "40"): 22_099_752,
    ("PointTransformer", "15"): 22_093_327,
    ("Point_MAE_SEG", ""): 27_063_730,
    ("I2P_MAE", ""): 17_622_808,  # without CLIP, which its checkpoints hold
    ("I2P_MAE_ModelNet40", "40"): 12_830_056,
    ("I2P_MAE_ScanObjectNN", "15"): 12_921_935,
    ("Inter_MAE", ""): 25_465_568,  # the point side
    ("Inter_MAE_Classifier", "40"): 22_229_544,
    ("Inter_MAE_Classifier", "15"): 22_223_119,
    ("GM3D", "feature"): 51_077_984,
    ("GM3D", "usual"): 36_891_488,
    ("GM3D_PointTransformer", "40"): 22_099_752,
    ("GM3D_PointTransformer", "15"): 22_093_327,
    ("PCP_MAE", ""): 29_498_848,
    ("PCP_MAE_Classifier", "40"): 22_345_384,
    ("PCP_MAE_Classifier", "15"): 22_338_959,
    ("PCP_MAE_SEG", ""): 27_309_362,
    ("Point_JEPA", ""): 45_976_384,
    ("PointJepaClassification", "40"): 22_111_656,
    ("PointJepaClassification", "15"): 22_105_231,
    ("PointJepaPartSegmentation", ""): 22_905_010,
    ("3DETR", ""): 7_305_691,
    ("3DETR_M", ""): 7_438_555,
}
# What tables and project pages call GFLOPs of classification. That of Point-M2AE could not be reproduced in either convention.
_FLOPS = {
    "Point_M2AE_ModelNet40": 3.6,
    "I2P_MAE_ModelNet40": 3.6,
    "PointTransformer": 4.8,
}


def flops_of(model: str) -> float | None:
    """Return the figure that was published of a model, in units of 1e9, or None."""
    return _FLOPS.get(model)
