"""Heads that project features into the space where they are compared."""

from torch import nn

from models.layers.norm import BatchNorm


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build linear layer, batch normalisation, ReLU and linear layer from (B, width) to (B, out), without biases."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
    )
