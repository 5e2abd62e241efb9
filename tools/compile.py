"""`--compile`: a whole model where nothing in it follows the data, else the regions of it that do not."""

import torch
from torch import nn

from models.hierarchical import HierarchicalEncoder
from models.layers.embed import PatchEmbed
from models.layers.transformer import Block

# Dropout and drop path take the numbers that they would without the compiler, so that its results differ by rounding alone.
OPTIONS = {"fallback_random": True}


def follows_data(model: nn.Module, device: torch.device) -> str | None:
    """Say why the shapes of a model, or what it does, follow its data on a device, or return None."""
    if getattr(model.config, "loss", None) == "emd":
        return "the loss emd runs until all points are matched"
    encoders = [module for module in model.modules() if isinstance(module, HierarchicalEncoder)]
    if not all(encoder.fixes_shapes(device) for encoder in encoders):
        return "on the CPU, and with legacy near_padding, shapes follow the mask"
    return None


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Compile a model in place: whole, where it trains on a GPU and nothing follows the data, else its regions.

    On the CPU regions it is: what lies between them has fused kernels, which a compiled model cannot use.
    """
    if device.type != "cpu" and follows_data(model, device) is None:
        model.compile(dynamic=False, options=OPTIONS)
    else:
        compile_regions(model)


def compile_regions(model: nn.Module) -> None:
    """Compile each patch embedding and transformer block in place; keys of the state dict stay as they are.

    Packing stays eager: how many tokens are visible is known at run time only.
    """
    for module in model.modules():
        if isinstance(module, PatchEmbed | Block):
            module.compile(dynamic=True, options=OPTIONS)


def undo_compile(model: nn.Module) -> None:
    """Let a model run eagerly again."""
    for module in model.modules():
        module._compiled_call_impl = None


def is_whole(model: nn.Module) -> bool:
    """Return whether a model is compiled as a whole."""
    return model._compiled_call_impl is not None


def compile_failed(error: BaseException) -> bool:
    """Return whether an exception comes from the compiler, not from the model."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
