"""Weight initialisation rules of the family."""

from torch import nn


def init_truncated_normal(module: nn.Module) -> None:
    """Initialise one layer the way the encoders do; use with `Module.apply`.

    Linear and 1x1 convolution weights: truncated normal, std 0.02, cut at -2 and 2; biases 0; LayerNorm 1 and 0.
    Batch normalisation keeps PyTorch's default, which is the same. (He et al. 2022, as in Point-BERT and its successors.)
    """
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Initialise one layer the way the decoders do; use with `Module.apply`: Linear Xavier uniform, bias 0, LayerNorm 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
