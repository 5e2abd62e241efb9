"""Weights from checkpoints, ours or published ones, into models: strict, and loud when nothing fits.

What tells the checkpoints of methods apart, and what a model does with keys that are not its own, are class attributes of the models
(`models.base.PointModel`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from models.pyg_layout import is_converted, published_layout
from models.registry import MODELS
from models.tuning.base import Base
from models.tuning.files import base_of, check_complete, check_kind, find_base, is_tuned, tuned_keys
from models.tuning.lora import merged
from utils.checkpoints import check_weights, find_weights
from utils.errors import UserError
from utils.files import file_hash, read_checkpoint

MOST_NAMED = 12  # modules of a message
_MEANINGS = {
    "missing": "which start untrained",
    "unexpected": "which this model does not have",
    "ignored": "which it does not need",
}


@dataclass
class LoadReport:
    """What became of every key of a checkpoint."""

    used: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # wanted by the model, not in the checkpoint, and allowed to be
    unexpected: list[str] = field(default_factory=list)  # in the checkpoint, not known to the model
    ignored: list[str] = field(default_factory=list)  # in the checkpoint, known to be of no use here

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors used ({_modules(self.used, ())})"]
        for name, meaning in _MEANINGS.items():
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name} ({_modules(keys, self.used)}), {meaning}")
        return "; ".join(parts)


def _modules(keys: Iterable[str], others: Iterable[str]) -> str:
    """Name the modules that keys belong to, each by the shortest path that none of `others` lies below."""
    taken = {key[:end] for key in others for end in range(len(key) + 1) if key[end : end + 1] in (".", "")}
    names = set()
    for key in keys:
        parts = key.split(".")
        paths = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        names.add(next((path for path in paths if path not in taken), key))
    return ", ".join([*sorted(names)[:MOST_NAMED], *(["..."] if len(names) > MOST_NAMED else [])])


def state_dict_of(checkpoint: Mapping) -> dict[str, Tensor]:
    """Find the weights in a checkpoint or bare state dict, without the wrappers of their keys (`utils.checkpoints`).

    Those that torch-pointcloud converted get their published keys back.
    """
    weights = find_weights(checkpoint)
    return published_layout(weights) if is_converted(weights) else weights


def averaged(checkpoint: Mapping) -> dict[str, Mapping]:
    """Return a checkpoint with the averaged weights of a pre-training checkpoint, ours (`ema`) or a published one, as its weights.

    Raises:
        UserError: it holds none.
    """
    found = next(
        (checkpoint[key] for key in ("ema", "ema_state_dict") if isinstance(checkpoint.get(key), Mapping)), None
    )
    if found is None:
        raise UserError("checkpoint: holds no averaged weights (ema, ema_state_dict); leave out --teacher")
    return {"state_dict": found}


def method_of(checkpoint: Mapping) -> str | None:
    """Name the method that a checkpoint was trained with, by the configuration in ours, else by its keys; None where nothing says it."""
    config = checkpoint.get("config")
    model = config.get("model") if isinstance(config, Mapping) else None
    name = model.get("NAME") if isinstance(model, Mapping) else None
    if isinstance(name, str) and name in MODELS:
        return getattr(MODELS.entry(name).target, "method", None)
    keys = state_dict_of(checkpoint)
    return _told_by("own_keys", keys) or _told_by("shared_keys", keys)


def _told_by(attribute: str, keys: Iterable[str]) -> str | None:
    """Return the method of the first model whose class attribute lists a prefix that one of the keys has."""
    for name in MODELS.names():
        model = MODELS.entry(name).target
        prefixes = getattr(model, attribute, ())
        if prefixes and any(key.startswith(prefixes) for key in keys):
            return model.method
    return None


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping,
    allow_missing: Sequence[str] = (),
    *,
    average: bool = False,
    base: str | Path | None = None,
) -> LoadReport:
    """Load a checkpoint into a model, in place.

    Reads our checkpoints, the published layouts, with or without `module.`, and that of torch-pointcloud. Four class attributes of a model
    list key prefixes: `missing_keys` may be absent (for example an untrained head), `ignored_keys` are skipped, `renamed_keys` are pairs of
    prefixes, and `refused_keys` are an error. Where a renamed key meets another one that had this name already, the renamed one is taken;
    with `later_key_wins` the later one, as published programs do. A checkpoint of what tuning trained brings its base; updates of LoRA are
    merged into the weights of a model that is not tuned.

    Args:
        source: path of a checkpoint, or one that is read already, or a state dict.
        allow_missing: further key prefixes that may be missing.
        average: take its moving average.
        base: where the base of a checkpoint of tuning is, if not where it was.

    Raises:
        UserError: it is a checkpoint of another method, no key fits, a shape differs, a key outside the lists is missing, or the base is
            missing or another one. The model is unchanged then, but for the weights of a base.
    """
    where = f"{source}" if isinstance(source, str | Path) else "checkpoint"
    checkpoint = read_checkpoint(source) if isinstance(source, str | Path) else source
    if is_tuned(checkpoint):
        return _load_tuned(model, where, checkpoint, base)
    weights, replaced = _fitting(where, model, averaged(checkpoint) if average else checkpoint)
    own = model.state_dict()
    report = LoadReport(used=[key for key in own if key in weights])
    kind = f"{type(model).__name__} ({len(own)} tensors)"
    if not report.used:
        raise UserError(
            f"{where}: no tensor fits {kind}; its first keys are {', '.join(list(weights)[:3])}. "
            "Give a checkpoint of this method, or its config with --config."
        )
    _check_shapes(where, kind, own, weights, report.used)
    check_weights(where, weights, report.used)

    tuning = getattr(model, "tuning", None)
    allowed = (*getattr(model, "missing_keys", ()), *allow_missing, *(tuning.inserted if tuning else ()))
    report.missing = [key for key in own if key not in weights]
    lost = [
        key for key in report.missing if not key.startswith(allowed or "\0") and not key.endswith("num_batches_tracked")
    ]
    if lost:
        raise UserError(
            f"{where}: lacks {len(lost)} tensors that {kind} needs, first {', '.join(lost[:3])}; "
            "is it a checkpoint of another model or size?"
        )
    ignorable = getattr(model, "ignored_keys", ())
    for key in weights:
        if key not in own:
            (report.ignored if key.startswith(ignorable or "\0") else report.unexpected).append(key)
    report.ignored += replaced
    model.load_state_dict({key: weights[key] for key in report.used}, strict=False)
    if tuning is not None and isinstance(source, str | Path):
        tuning.base = Base(Path(source).resolve(), file_hash(source), average, frozenset(report.used))
    return report


def _fitting(where: str, model: nn.Module, checkpoint: Mapping) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a checkpoint as a model calls them, and the keys whose place went to another one.

    Raises:
        UserError: it is of another method, or was trained for something else.
    """
    _check_method(where, model, checkpoint)
    weights, replaced = _rename(
        state_dict_of(checkpoint),
        getattr(model, "renamed_keys", ()),
        last_wins=getattr(model, "later_key_wins", False),
    )
    _check_refused(where, model, weights)
    return weights, replaced


def _load_tuned(model: nn.Module, where: str, checkpoint: Mapping, given: str | Path | None) -> LoadReport:
    """Load what tuning trained, after the base that it belongs to."""
    keys = tuned_keys(where, checkpoint)
    check_kind(where, model, keys)
    weights, _ = _fitting(where, model, checkpoint)
    own, base = model.state_dict(), base_of(where, checkpoint)
    kind = f"{type(model).__name__} ({len(own)} tensors)"
    _check_shapes(where, kind, own, weights, [key for key in weights if key in own])
    check_weights(where, weights, list(weights))
    report = load_weights(model, find_base(where, base, given), average=base.averaged)
    if model.tuning is None:
        weights = merged(weights, model.state_dict(), keys)
    unexpected = [key for key in weights if key not in own]
    check_complete(where, model, report.used, weights)
    model.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)
    return LoadReport(used=[key for key in own if key in weights or key in report.used], unexpected=unexpected)


def _check_method(where: str, model: nn.Module, checkpoint: Mapping) -> None:
    """Raise where a checkpoint is of a method that the model does not take weights from.

    Keys that methods share tell no more than that the checkpoint has the layout of one of them, which may be the model's own layout.
    """
    own, keys = getattr(model, "method", None), state_dict_of(checkpoint)
    found = _told_by("own_keys", keys) or _told_by("shared_keys", keys)
    if own is None or found is None or found in (own, *getattr(model, "starts_from", ())):
        return
    layout = model.state_dict()
    if found != _told_by("own_keys", keys) and found == (
        _told_by("own_keys", layout) or _told_by("shared_keys", layout)
    ):
        return
    raise UserError(
        f"{where}: is a checkpoint of {found}, and {type(model).__name__} is a model of {own}. "
        f"Give a checkpoint of {own}, or a configuration of {found} with --config or --method."
    )


def _check_refused(where: str, model: nn.Module, weights: Mapping) -> None:
    """Raise where a checkpoint of the same method was trained for something else."""
    for prefix, owner in getattr(model, "refused_keys", ()):
        found = next((key for key in weights if key.startswith(prefix)), None)
        if found:
            raise UserError(
                f"{where}: is a checkpoint of {owner} (it holds {found}), and {type(model).__name__} does not start from one. "
                "Give a checkpoint of pre-training, or of this very model."
            )


def _rename(
    weights: dict[str, Tensor], pairs: Sequence[tuple[str, str]], *, last_wins: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Replace the first prefix of `pairs` that a key has; also returns the keys whose place went to another one."""
    renamed, sources, replaced = {}, {}, []
    for key, value in weights.items():
        old, new = next(((old, new) for old, new in pairs if key.startswith(old)), ("", ""))
        name = new + key.removeprefix(old)
        if name in renamed:
            replaced.append(key if not old and not last_wins else sources[name])
            if replaced[-1] == key:
                continue
        renamed[name], sources[name] = value, key
    return renamed, replaced


def _check_shapes(where: str, kind: str, own: Mapping, weights: Mapping, keys: Sequence[str]) -> None:
    wrong = [key for key in keys if own[key].shape != weights[key].shape]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{where}: {len(wrong)} tensors have another shape than in {kind}, first {key}: "
            f"{tuple(weights[key].shape)} in the checkpoint, {tuple(own[key].shape)} in the model. "
            "Use the configuration that the checkpoint was trained with"
        )
