"""`--compile`: the regions of a model that have no data-dependent shapes inside."""

from torch import nn

from models.layers.embed import PatchEmbed
from models.layers.transformer import Block


def compile_regions(model: nn.Module) -> None:
    """Compile each patch embedding and transformer block in place; keys of the state dict stay as they are.

    Packing stays eager: how many tokens are visible is known at run time only.
    """
    for module in model.modules():
        if isinstance(module, PatchEmbed | Block):
            module.compile(dynamic=True)


def undo_compile(model: nn.Module) -> None:
    """Let a model run eagerly again."""
    for module in model.modules():
        module._compiled_call_impl = None


def compile_failed(error: BaseException) -> bool:
    """Return whether an exception comes from the compiler, not from the model."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
