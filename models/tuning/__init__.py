"""Tuning with few parameters: what trains of a classifier or part segmenter, as its keys `tune` say (docs/peft.md).

`apply_tuning` changes a model that is built already, from outside. A kind is a subclass of `Tuning` in a file of its own.
"""

from torch import nn

from models.tuning.base import Tuning, counts
from models.tuning.config import DEFAULTS, FROZEN, TuneConfig
from models.tuning.dynamic import DynamicTuning
from models.tuning.lora import LoRA
from models.tuning.prompts import PromptTuning
from models.tuning.spectral import SpectralTuning

__all__ = ["DEFAULTS", "FROZEN", "TuneConfig", "Tuning", "apply_tuning", "counts"]

TUNINGS: dict[str, type[Tuning]] = {
    "mlp3": Tuning,
    "linear": Tuning,
    "lora": LoRA,
    "gst": SpectralTuning,
    "dapt": DynamicTuning,
    "prompt": PromptTuning,
}


def apply_tuning(model: nn.Module) -> nn.Module:
    """Tune a model as its own keys say, in place; returns it.

    Raises:
        UserError: its encoder has no part that the kind acts on.
    """
    keys = getattr(model.config, "tune", None)
    if keys is not None and keys.kind != "full":
        model.tuning = TUNINGS[keys.kind](model, keys)
    return model
