"""A guide: what a method needs besides the model while it pre-trains, such as a teacher or an image branch.

It chooses masks and targets. A method that needs one has a file here with the name of the model's module and a
function `build(run, model, clouds) -> Guide`. What a guide holds is no part of the model: it is in no checkpoint's
`base_model`, has no gradient and no place in the optimizer. An average of the model (`ema`) is saved under that name.
What trains with a model only while it pre-trains, such as an image branch, a guide makes part of it when it is built,
before the optimizer is.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batches import Batch
from datasets.clouds import CloudSet
from models.layers.group import Pyramid
from tools.context import RunContext
from tools.gallery_items import ABOUT, reconstruction_gallery
from tools.report.page import GalleryItem, Section
from tools.weights.names import resolve
from utils.errors import UserError


class Guide:
    """A guide that chooses nothing, follows nothing, shows nothing: what a method's own one does not say otherwise.

    Attributes:
        ema: an average of the model that checkpoints keep, or None.
        follows_model: whether `prepare` reads trainable weights, or an average of them; where it does not, it may run
            while the previous step is still executing.
    """

    ema: nn.Module | None = None
    follows_model: bool = False

    def prepare(
        self, points: Tensor, batch: Batch, *, epoch: int, draw: Callable, pyramid: Pyramid | None = None
    ) -> dict[str, Any]:
        """Return keyword arguments of the model's `forward`: `masked`, `pyramid`, `targets`.

        Args:
            points: (B, N, 3), augmented.
            batch: says which clouds these are: `indices` and `step`.
            epoch: from 0; what depends on the progress of a run depends on it alone.
            draw: stream -> generator of this step, for what is random.
            pyramid: the groups of these points, where they are there already.
        """
        return {}

    def after_update(self) -> None:
        """Follow the model after each step of the optimizer."""

    def picture(self, pyramid: Pyramid, generator: torch.Generator) -> dict[str, Any]:
        """Return keyword arguments of the model's `forward` for pictures in the report, as `prepare` does for a step."""
        return {"pyramid": pyramid, "generator": generator}

    def sections(self, model: nn.Module) -> list[Section]:
        """Return what the report of the run shows of the method."""
        return []

    def galleries(self, model: nn.Module) -> dict[str, list[GalleryItem]]:
        """Return clouds that the report shows besides the rebuilt ones, by the name of the picture that also has them."""
        return {}

    def pages(self, model: nn.Module) -> dict[str, Any]:
        """Return both as keyword arguments of `write_report`; a guide that computes them together does so here."""
        return {"galleries": self.galleries(model), "sections": self.sections(model)}


def teacher_file(key: str, name: str, *, model: str | None = None) -> str:
    """Return the file that a key of the configuration means: a path, or a name of weights as after `--ckpts`.

    The configuration keeps the name, so that a run goes on where the file lies elsewhere.

    Args:
        model: as in `tools.weights.resolve`.

    Raises:
        UserError: as `tools.weights.resolve`, with the key.
    """
    try:
        return str(resolve(name, model=model))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _own_file(model: nn.Module) -> ModuleType | None:
    """Return the file of this folder that is called as the model's module, or None."""
    name = f"{__package__}.{type(model).__module__.rpartition('.')[2]}"
    return None if find_spec(name) is None else import_module(name)


def gallery_of(model: nn.Module) -> tuple[Callable[..., list[GalleryItem]], tuple[str, str]]:
    """Return what makes the gallery of a model that pre-trains, with the arguments of `reconstruction_gallery`, and what it is about.

    A method that rebuilds no clouds has `gallery` and `ABOUT` in its file here.
    """
    own = _own_file(model)
    return getattr(own, "gallery", reconstruction_gallery), getattr(own, "ABOUT", ABOUT)


def build_guide(run: RunContext, model: nn.Module, clouds: CloudSet) -> Guide | None:
    """Build the guide of a model on the device of the run, for the clouds that it trains on.

    It is in the file of this folder that is called as the model's module; None where there is no such file.

    Raises:
        UserError: weights of a teacher are missing or do not fit, or the clouds lack what the method needs.
    """
    own = _own_file(model)
    return None if own is None else own.build(run, model, clouds)
