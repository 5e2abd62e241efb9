"""Entry points of `torch.hub`: the pre-training model of each method, in evaluation mode, with published weights or ours.

    >>> model = torch.hub.load(".", "point_m2ae", source="local", ckpts="ckpts/pre-train.pth")
    >>> with torch.inference_mode():
    ...     features = model.encode(points)  # (B, N, 3), unit sphere, y up -> (B, 384), the features of the linear SVM
    ...     tokens = model.patch_tokens(points)  # (B, 64, 384), one a coarsest group

All take `ckpts`, the path of a checkpoint, "published", "mini" or another name of `python -m tools.weights list`, or None for random
weights, and keys that replace those of the checkpoint, for example `group_sizes=[32, 16, 16]` or `legacy=True`. A checkpoint of ours
says which model it holds; of a published one, and without one, the published keys are taken. A `UserError` (a ValueError) says that a
key is unknown, or that the checkpoint cannot be read or does not fit.
"""

dependencies = ["torch", "numpy"]


def point_m2ae(ckpts=None, **keys):
    """Build Point-M2AE (Zhang et al. 2022)."""
    return _build("Point_M2AE", ckpts, keys)


def point_mae(ckpts=None, **keys):
    """Build Point-MAE (Pang et al. 2022)."""
    return _build("Point_MAE", ckpts, keys)


def i2p_mae(ckpts=None, **keys):
    """Build I2P-MAE (Zhang et al. 2023), without its image teacher."""
    return _build("I2P_MAE", ckpts, keys)


def inter_mae(ckpts=None, **keys):
    """Build Inter-MAE (Liu et al. 2023)."""
    return _build("Inter_MAE", ckpts, keys)


def pcp_mae(ckpts=None, **keys):
    """Build PCP-MAE (Zhang et al. 2024)."""
    return _build("PCP_MAE", ckpts, keys)


def gm3d(ckpts=None, **keys):
    """Build GeoMask3D around Point-MAE (arXiv 2405.12419), without its teachers."""
    return _build("GM3D", ckpts, keys)


def gm3d_point_m2ae(ckpts=None, **keys):
    """Build GeoMask3D around Point-M2AE, without its teachers."""
    return _build("GM3D_Point_M2AE", ckpts, keys)


def point_jepa(ckpts=None, **keys):
    """Build Point-JEPA (arXiv 2404.16432), with its teacher."""
    return _build("Point_JEPA", ckpts, keys)


def _build(name: str, ckpts: str | None, keys: dict):
    from api import create_model

    return create_model(name, ckpts, **keys)
