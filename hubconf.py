"""Entry points of `torch.hub`."""

dependencies = ["torch", "numpy"]


def point_m2ae(ckpts=None, **keys):
    """Build the pre-training model of Point-M2AE, in evaluation mode, with published weights or ours where given.

    Example:
        >>> model = torch.hub.load(".", "point_m2ae", source="local", ckpts="ckpts/pre-train.pth")
        >>> with torch.inference_mode():
        ...     features = model.encode(points)  # (B, N, 3), unit sphere, y up -> (B, 384), what the linear SVM judges
        ...     tokens = model.patch_tokens(points)  # (B, 64, 384), one a coarsest group

    Args:
        ckpts: path of a checkpoint, or None for random weights. A checkpoint of ours says which model it holds; of a published
            one, and without one, the published keys are taken.
        keys: keys of the model that replace these, for example `group_sizes=[32, 16, 16]` or `legacy=True`.

    Raises:
        UserError: (a ValueError) a key is unknown, or the checkpoint cannot be read or does not fit the model.
    """
    from models import build_model, load_weights
    from utils.checkpoint import read_checkpoint

    saved = {} if ckpts is None else _saved_keys(read_checkpoint(ckpts))
    model = build_model({**saved, "NAME": "Point_M2AE", **keys})
    if ckpts is not None:
        load_weights(model, ckpts)
    return model.eval()


def _saved_keys(checkpoint: dict) -> dict:
    """Return the model keys that a checkpoint of ours was trained with, if it is a pre-training one of this method."""
    config = checkpoint.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return dict(model) if isinstance(model, dict) and model.get("NAME") == "Point_M2AE" else {}
