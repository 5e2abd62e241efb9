"""Checkpoints that hold only what tuning trained: which base they belong to, and where it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.tuning.base import Base
from models.tuning.config import FROZEN, TuneConfig
from models.tuning.lora import NAME as LORA
from utils.config.merge import merge
from utils.errors import UserError
from utils.files import file_hash

ENTRY = "tuned"  # of a checkpoint, see `Tuning.record`
LENGTH = 64  # of a SHA-256 in hexadecimal digits


def is_tuned(checkpoint: Mapping) -> bool:
    """Say whether a checkpoint holds only what tuning trained."""
    return ENTRY in checkpoint


def base_of(where: str, checkpoint: Mapping) -> Base:
    """Return the base that a checkpoint names.

    Raises:
        UserError: it does not do so as a run does.
    """
    record = checkpoint[ENTRY]
    base = record.get("base") if isinstance(record, Mapping) else None
    digest = base.get("sha256") if isinstance(base, Mapping) else None
    if not (isinstance(digest, str) and len(digest) == LENGTH and isinstance(base.get("path"), str)):
        raise UserError(f"{where}: its entry {ENTRY!r} does not name a base; the file is damaged, copy it again")
    return Base(Path(base["path"]), digest, bool(base.get("averaged")))


def find_base(where: str, base: Base, given: str | Path | None) -> Path:
    """Return the file of a base: the one that is given, else the one that is named, or one of that name next to the checkpoint.

    Raises:
        UserError: there is none with the SHA-256 of the base.
    """
    named = [Path(given)] if given else [base.path, Path(where).parent / base.path.name]
    found = [path for path in named if path.is_file()]
    for path in found:
        if file_hash(path) == base.sha256:
            return path
    wanted = f"was tuned on {base.path}, SHA-256 {base.sha256[:16]}..."
    if found:
        raise UserError(
            f"{where}: {wanted}, and {found[0]} is another base, SHA-256 {file_hash(found[0])[:16]}...; give the base that it was "
            "tuned on: --start_ckpts BASE (with --resume: --ckpts BASE)"
        )
    raise UserError(
        f"{where}: {wanted}, and there is no {named[0]}; give that file with --start_ckpts BASE (with --resume: --ckpts BASE)"
    )


def tuned_keys(where: str, checkpoint: Mapping) -> TuneConfig:
    """Return the keys that a checkpoint was tuned with.

    Raises:
        UserError: its configuration does not say so.
    """
    node: Any = checkpoint
    for key in ("config", "model", "tune"):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        raise UserError(
            f"{where}: does not say how it was tuned (config.model.tune); the file is damaged, copy it again"
        )
    return merge(TuneConfig, node, f"{where}: config.model.tune")


def check_kind(where: str, model: nn.Module, keys: TuneConfig) -> None:
    """Raise where a model has no place for what tuning trained: it must be tuned alike, or the parts must merge into weights."""
    if not hasattr(model, "encoder_parameters"):
        raise UserError(
            f"{where}: holds what --tune {keys.kind} trained of a classifier or part segmenter, and {type(model).__name__} is a "
            "model of pre-training; give its base"
        )
    own = getattr(model.config, "tune", TuneConfig())
    if own == keys or keys.kind in FROZEN or (keys.kind == LORA and own.kind == "full"):
        return
    differs = ", ".join(f"{key} {value}" for key, value in vars(keys).items() if value != getattr(own, key))
    raise UserError(
        f"{where}: was tuned with {differs}, and this model has --tune {own.kind}"
        f"; give --tune {keys.kind} and the keys model.tune of that run"
        + (", or start from the base" if own.kind != keys.kind else "")
    )


def check_complete(where: str, model: nn.Module, loaded: list[str], weights: Mapping[str, Tensor]) -> None:
    """Raise where base and checkpoint together lack a tensor of a model."""
    lost = [key for key in model.state_dict() if key not in loaded and key not in weights]
    if lost:
        raise UserError(
            f"{where}: it and its base lack {len(lost)} tensors of {type(model).__name__}, first {lost[0]}; "
            "use the configuration that it was tuned with"
        )
