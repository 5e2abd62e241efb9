"""What stands beside a model while it pre-trains: teachers and image branches that choose its masks and its targets.

A method that needs one has a file here and a line in `GUIDES`. What a guide holds is no part of the model: it is in no
checkpoint's `base_model`, has no gradient and no place in the optimizer. An average of the model (`ema`) is saved under that name.
What trains beside a model only while it pre-trains, such as an image branch, a guide makes part of it when it is built, before the
optimizer is.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batches import Batch
from datasets.clouds import CloudSet
from models.layers.group import Pyramid
from tools.context import RunContext
from tools.report.page import GalleryItem, Section

# Method -> module with `build(run, model, clouds) -> Guide`; imported only where the method is trained.
GUIDES: dict[str, str] = {
    "gm3d": "tools.guides.gm3d",
    "gm3d-point-m2ae": "tools.guides.gm3d",
    "i2p-mae": "tools.guides.i2p_mae",
    "inter-mae": "tools.guides.inter_mae",
}


class Guide:
    """Give a model nothing, watch nothing, show nothing: what a method without a guide has.

    Attributes:
        ema: an average of the model that checkpoints keep, or None.
        ahead: whether `prepare` reads no weights that train, so that it may run before the step before it is over.
    """

    ema: nn.Module | None = None
    ahead: bool = True

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
        """Return clouds that the report shows beside the rebuilt ones, by the name of the picture that also has them."""
        return {}


def build_guide(run: RunContext, model: nn.Module, clouds: CloudSet) -> Guide:
    """Build the guide of a model on the device of the run, for the clouds that it trains on.

    Raises:
        UserError: weights of a teacher are missing or do not fit, or the clouds lack what the method needs.
    """
    module = GUIDES.get(model.method)
    return Guide() if module is None else import_module(module).build(run, model, clouds)
