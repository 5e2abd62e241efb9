"""Keep the weights of a checkpoint, and nothing else, for files that hold more than plain data: nothing in them is run."""

import logging
from pathlib import Path

from models.tuning.files import is_tuned
from utils.checkpoints import check_weights, find_weights
from utils.errors import UserError
from utils.files import AGAIN, read_checkpoint, save_checkpoint
from utils.reading import reading
from utils.untrusted import load_with_stand_ins

_LOG = logging.getLogger("m2ae.weights")


def clean(source: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write the weights of `source` to `out`, as `{"base_model": ...}`.

    Raises:
        UserError: the file holds no weights that can be used, or the output exists.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; replace it with --overwrite, or choose another name")
    try:
        checkpoint = read_checkpoint(source)
    except UserError:
        with reading(source, "a checkpoint"):
            checkpoint = load_with_stand_ins(source, keep_going=True)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{source}: holds a {type(checkpoint).__name__}, expected a dict with weights")
    if is_tuned(checkpoint):
        raise UserError(
            f"{source}: holds only what --tune trained, and so needs its base; python -m tools.export writes it whole"
        )
    weights = find_weights(checkpoint)
    check_weights(str(source), weights, list(weights))
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    save_checkpoint(out, {"base_model": plain}, AGAIN)
    _LOG.info("%s: %d tensors, %d values", out, len(plain), sum(value.numel() for value in plain.values()))
