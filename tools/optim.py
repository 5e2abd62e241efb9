"""Optimizers, parameter groups and learning-rate schedules as published."""

import math
import re
from collections.abc import Callable

import torch
from torch import nn

from utils.config.schema import BNMomentumConfig, OptimizerConfig, RunConfig, SchedulerConfig
from utils.errors import UserError

OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD}

# Both ends of the published cosine: the warm-up starts there, the decay stops there.
LOWEST_RATE = 1e-6


def parameter_groups(model: nn.Module, weight_decay: float, *, token_rule: bool = True) -> list[dict]:
    """Split a model's parameters into [no decay, decay].

    No decay for one-dimensional tensors and biases and, by the published "token" rule, for every name that contains
    `token`. The rule was meant for mask tokens but spares `token_embed` and `token_prop` as well; it is kept because
    published numbers were trained with it.
    """
    spared, decayed = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.dim() <= 1 or name.endswith(".bias") or (token_rule and "token" in name)
        (spared if plain else decayed).append(parameter)
    return [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


# A parameter of a transformer block: everything up to the block's number.
_BLOCK = re.compile(r"(.*\bblocks\.\d+)\.(?:norm\d|attn|mlp)\.|(.*encoder_blocks\.\d+\.blocks\.\d+)\.")


def layer_groups(model: nn.Module, weight_decay: float, layer_decay: float, *, token_rule: bool = True) -> list[dict]:
    """Split the groups of `parameter_groups` by depth; each has the factor of its learning rate as `lr_scale` (Bao et al. 2022).

    Block n of D, counted from fine to coarse where there are several scales, has layer_decay ** (D - 1 - n), a class
    token layer_decay ** D, everything else, patch embedding, norms and head, the whole rate: as published for GM3D.
    """
    found = {name: _BLOCK.match(name) for name, _ in model.named_parameters()}
    blocks = list(dict.fromkeys(match.group(1) or match.group(2) for match in found.values() if match))
    if not blocks:
        raise UserError(f"optimizer.layer_decay: {type(model).__name__} has no transformer blocks; leave it out")
    depth = {block: layer + 1 for layer, block in enumerate(blocks)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: dict[tuple[float, float], dict] = {}
    plain, decayed = parameter_groups(model, weight_decay, token_rule=token_rule)
    for group in (plain, decayed):
        for parameter in group["params"]:
            match = found[names[parameter]]
            layer = depth[match.group(1) or match.group(2)] if match else len(blocks)
            scale = layer_decay ** (len(blocks) - (0 if names[parameter] == "cls_token" else layer))
            place = (scale, group["weight_decay"])
            groups.setdefault(place, {"params": [], "weight_decay": group["weight_decay"], "lr_scale": scale})
            groups[place]["params"].append(parameter)
    return list(groups.values())


def head_groups(model: nn.Module, weight_decay: float, head_scale: float, *, token_rule: bool = True) -> list[dict]:
    """Take class token, its position and the head, all names with `cls`, out of the groups of `parameter_groups` into one before them.

    They train at `head_scale` times the rate, and all of them decay, biases and norms too: as published for PCP-MAE.
    """
    head = [parameter for name, parameter in model.named_parameters() if "cls" in name]
    if not head:
        raise UserError(f"optimizer.head_scale: {type(model).__name__} has no class token and head; leave it out")
    own = set(head)
    groups = parameter_groups(model, weight_decay, token_rule=token_rule)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in own]
    return [{"params": head, "weight_decay": weight_decay, "peak_scale": head_scale}, *groups]


def whole_groups(model: nn.Module, weight_decay: float, encoder_scale: float | None) -> list[dict]:
    """Put all parameters into one group, or those of `encoder.` into one before it.

    The highest rate of that one is `encoder_scale` times the other's.
    """
    if encoder_scale is None:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.startswith("encoder.")].append(parameter)
    if not groups[True]:
        raise UserError(f"optimizer.encoder_lr: {type(model).__name__} has no encoder of that name; leave it out")
    return [
        {"params": groups[True], "weight_decay": weight_decay, "peak_scale": encoder_scale},
        {"params": groups[False], "weight_decay": weight_decay},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer; parameters without gradient stay in its groups, so that optimizer states keep the published order."""
    kwargs = {key: value for key, value in vars(config.kwargs).items() if value is not None}
    weight_decay = kwargs.pop("weight_decay", 0.0)
    if config.type == "SGD":
        kwargs.setdefault("nesterov", True)
        kwargs.setdefault("momentum", 0.9)
    if config.decay_all:
        scale = None if config.encoder_lr is None else config.encoder_lr / config.kwargs.lr
        groups = whole_groups(model, weight_decay, scale)
    elif config.head_scale is not None:
        groups = head_groups(model, weight_decay, config.head_scale, token_rule=config.token_rule)
    elif config.layer_decay is None:
        groups = parameter_groups(model, weight_decay, token_rule=config.token_rule)
    else:
        groups = layer_groups(model, weight_decay, config.layer_decay, token_rule=config.token_rule)
    # The fused step takes a device flag that skips it when a gradient is not finite, without a host synchronisation.
    return OPTIMIZERS[config.type](groups, fused=True, **kwargs)


def build_schedule(config: SchedulerConfig, base_rate: float) -> Callable[[int, float], float]:
    """Return `schedule(epoch, fraction) -> learning rate`; the published schedules are constant within an epoch.

    The published scheduler is stepped with the index of the epoch that just ended, so epoch e runs at rate(max(e - lag, 0)) with lag 1:
    epochs 0 and 1 both run at the start of the warm-up. `lag: 0` gives every epoch its own rate, `per_step` every step.
    """
    rate = _RATES[config.type](config.kwargs, base_rate)
    return lambda epoch, fraction=0.0: rate(max(epoch + config.per_step * fraction - config.lag, 0))


def group_rate(group: dict, rate: float, raised: Callable[[float], float]) -> float:
    """Return the learning rate of a parameter group where the others have `rate`.

    Its `lr_scale` multiplies the rate. Its `peak_scale` multiplies the highest rate alone, so that both ends of the curve stay where they
    are; `raised` returns the rate of such a curve.
    """
    return raised(group["peak_scale"]) if "peak_scale" in group else rate * group.get("lr_scale", 1.0)


def _cosine(kwargs, base: float) -> Callable[[float], float]:
    """Warm up linearly, then half a cosine over `epochs`, the warm-up not subtracted; the lowest rate after that."""

    def rate(epoch: float) -> float:
        if epoch < kwargs.initial_epochs:
            return LOWEST_RATE + epoch * (base - LOWEST_RATE) / kwargs.initial_epochs
        if epoch >= kwargs.epochs:
            return LOWEST_RATE
        return LOWEST_RATE + (base - LOWEST_RATE) * (1 + math.cos(math.pi * epoch / kwargs.epochs)) / 2

    return rate


def _half_cosine(kwargs, base: float) -> Callable[[float], float]:
    """Warm up linearly from 0, then half a cosine over what is left of `epochs`, down to `min_lr`."""

    def rate(epoch: float) -> float:
        if epoch < kwargs.initial_epochs:
            return base * epoch / kwargs.initial_epochs
        progress = (epoch - kwargs.initial_epochs) / max(kwargs.epochs - kwargs.initial_epochs, 1)
        return kwargs.min_lr + (base - kwargs.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    return rate


def _warmup_cosine(kwargs, base: float) -> Callable[[float], float]:
    """Warm up linearly from `start_lr` to the highest rate, which the last epoch of the warm-up has; then half a cosine to `min_lr`."""

    def rate(epoch: float) -> float:
        if epoch < kwargs.initial_epochs:
            return min(base, kwargs.start_lr + epoch * (base - kwargs.start_lr) / max(kwargs.initial_epochs - 1, 1))
        progress = (epoch - kwargs.initial_epochs) / max(kwargs.epochs - kwargs.initial_epochs, 1)
        return kwargs.min_lr + (base - kwargs.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    return rate


def _exponential(kwargs, base: float) -> Callable[[float], float]:
    return lambda epoch: base * max(kwargs.lr_decay ** (epoch / kwargs.decay_step), kwargs.lowest_decay)


def _steps(kwargs, base: float) -> Callable[[float], float]:
    return lambda epoch: base * kwargs.gamma ** (epoch // kwargs.step_size)


def _constant(kwargs, base: float) -> Callable[[float], float]:
    return lambda epoch: base


_RATES = {
    "CosLR": _cosine,
    "HalfCosine": _half_cosine,
    "WarmupCosine": _warmup_cosine,
    "LambdaLR": _exponential,
    "StepLR": _steps,
    "function": _constant,
}


def batch_norm_momentum(config: BNMomentumConfig, epoch: int) -> float:
    """Return the momentum of batch-norm statistics in an epoch."""
    kwargs = config.kwargs
    return max(kwargs.bn_momentum * kwargs.bn_decay ** (epoch / kwargs.decay_step), kwargs.lowest_decay)


def check_training(config: RunConfig) -> None:
    """Raise where a recipe lacks what training needs."""
    for key in ("optimizer", "scheduler", "max_epoch", "dataset.train"):
        node = config
        for part in key.split("."):
            node = getattr(node, part)
        if node is None:
            raise UserError(f"{key}: is missing, training needs it; use a recipe of cfgs/pre-training/ or add the key")
    config = config.scheduler
    needed = {
        "CosLR": ("epochs", "initial_epochs"),
        "HalfCosine": ("epochs", "initial_epochs"),
        "WarmupCosine": ("epochs", "initial_epochs"),
        "LambdaLR": ("lr_decay", "decay_step", "lowest_decay"),
        "StepLR": ("step_size", "gamma"),
    }
    for key in needed.get(config.type, ()):
        if getattr(config.kwargs, key) is None:
            raise UserError(
                f"scheduler.kwargs.{key}: is missing, {config.type} needs it; add it to the recipe or pass --set"
            )
