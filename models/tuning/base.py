"""What all kinds of tuning share: an encoder that is frozen, what is inserted into it, and what is therefore saved."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from models.layers.norm import BatchNorm
from models.layers.transformer import Stack
from models.tuning.config import FROZEN, TuneConfig
from utils.errors import UserError


class Base(NamedTuple):
    """The checkpoint that frozen weights come from.

    Args:
        averaged: they are its moving average.
        keys: the tensors of the model that it gave; None = not known yet.
    """

    path: Path
    sha256: str
    averaged: bool = False
    keys: frozenset[str] = frozenset()


class Tuning:
    """Freeze what pre-training gave a model, and insert what trains into its encoder; by itself it inserts nothing.

    Parts are attached to the modules that they act on, under names that no checkpoint of pre-training has, and act
    through forward hooks: the model's own code stays as it is. Hooks take their part from the module that they are
    called with, so that a copy of a model uses the copy of the part.

    Args:
        model: a classifier or part segmenter; it is changed in place.
        whole: save all weights and not only those that train.

    Attributes:
        base: where the frozen weights come from, once they are loaded; None = the initialisation.
        moves: whether batch statistics of the frozen encoder move.

    Class attributes:
        data_dependent: why a step cannot be recorded or compiled whole, or None.
    """

    data_dependent: ClassVar[str | None] = None

    def __init__(self, model: nn.Module, keys: TuneConfig, *, whole: bool = False):
        self.keys, self.whole, self.base, self.moves = keys, whole, None, False
        for parameter in model.encoder_parameters():
            parameter.requires_grad_(False)
        before = {name for name, _ in model.named_parameters()}
        stacks = model.stacks() if keys.kind not in FROZEN else []
        if not any(len(stack.blocks.blocks) for stack in stacks) and keys.kind not in FROZEN:
            raise UserError(
                f"model.tune.kind: {keys.kind} acts on transformer blocks, and {type(model).__name__} says of none in its "
                "method stacks(); use mlp3, linear or full"
            )
        for stack in stacks:
            self.insert(stack)
        self.inserted = tuple(name for name, _ in model.named_parameters() if name not in before)

    def insert(self, stack: Stack) -> None:
        """Attach what trains to the blocks of one stack."""
        raise NotImplementedError(f"{type(self).__name__}.insert")

    def set_mode(self, model: nn.Module, *, training: bool = False) -> None:
        """Bring a model into training mode, as far as it trains.

        A frozen encoder with nothing inserted is in evaluation mode. With inserted parts its blocks are in training
        mode, where paths drop, and batch norms that are frozen keep their statistics.

        Args:
            training: bring a frozen encoder into training mode whole.
        """
        self.moves = training
        if training:
            model.train()
            return
        if self.keys.kind in FROZEN:
            model.eval()
            for child in model.children():
                parameters = list(child.parameters())
                child.train(not parameters or any(parameter.requires_grad for parameter in parameters))
            return
        model.train()
        for module in model.modules():
            if isinstance(module, BatchNorm) and not module.weight.requires_grad:
                module.eval()

    def saved_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what a checkpoint holds: all that is not in the base, or trains, or moves as it trains."""
        state = model.state_dict()
        if self.base is None or self.whole:
            return state
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if self.moves:
            trained |= {name for name, _ in model.named_buffers()}
        owners = {name.rpartition(".")[0] for name in trained}
        return {
            key: value
            for key, value in state.items()
            if key not in self.base.keys or key in trained or key.rpartition(".")[0] in owners
        }

    def record(self) -> dict:
        """Return what a checkpoint says of its base, as plain data; nothing where it is whole."""
        if self.base is None or self.whole:
            return {}
        base = {"path": self.base.path.as_posix(), "sha256": self.base.sha256, "averaged": self.base.averaged}
        return {"tuned": {"kind": self.keys.kind, "base": base}}


def attach(module: nn.Module, name: str, part: nn.Module, hook: Callable) -> None:
    """Give a module a part, and a hook that changes what it returns by that part."""
    module.add_module(name, part)
    module.register_forward_hook(hook)


def counts(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters of a model train, and how many it has."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
