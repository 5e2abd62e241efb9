"""Write a checkpoint for other programs: in the published layout, or as a safetensors file.

    python -m tools.export --ckpts experiments/pre-training/point-m2ae/pre-train/ckpt-last.pth --out point-m2ae.pth
    python -m tools.export --ckpts experiments/pre-training/point-m2ae/pre-train/ckpt-last.pth --out point-m2ae.safetensors
    python -m tools.export --ckpts experiments/pre-training/i2p-mae/pre-train/ckpt-last.pth --clip ViT-B-16.pt --out i2p-mae.pth

The published layout has the weights under `base_model` with the prefix `module.`, and the metrics. A safetensors file has our names,
and in its header the configuration, so that every command takes it as `--ckpts`; `--half` stores its matrices in half precision.

Published programs load our checkpoints as they are; the file written here lacks the state of the run and is smaller. Only a
pre-trained I2P-MAE has to be exported, because its published layout holds CLIP: `--clip` is OpenAI's archive, or any published
I2P-MAE checkpoint, for the layout holds CLIP's text tower too, which nothing uses and image models of a hub do not have.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from models import MODELS, build_model, load_weights
from models.base import MaskedAutoencoder
from models.images.clip_layout import find_clip, with_clip
from models.images.weights import read_weights
from models.tuning import FROZEN
from models.tuning.files import is_tuned, tuned_keys
from models.weights import method_of, state_dict_of
from tools.weights.names import resolve
from utils.checkpoints import check_weights
from utils.errors import UserError, run_command
from utils.files import read_checkpoint, save_checkpoint, save_tensors
from utils.provenance import recorded

PRE_TRAINED_I2P = "rec_head_3d."  # begins keys that only a pre-trained I2P-MAE has
NAME = "vit_base_patch16_clip_quickgelu_224.openai"  # where a missing file is to be had


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpts", required=True, help="our checkpoint")
    parser.add_argument("--clip", help="of a pre-trained I2P-MAE: OpenAI's archive or a published checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="file to write, .pth or .safetensors")
    parser.add_argument("--half", action="store_true", help="store matrices in half precision, in .safetensors")
    args = parser.parse_args(argv)
    return run_command(lambda: _report(args))


def _report(args: argparse.Namespace) -> None:
    ckpts = str(resolve(args.ckpts))
    if args.out.suffix == ".safetensors":
        if args.clip:
            raise UserError("--clip: belongs to the published layout; leave it out, or name a .pth file with --out")
        weights = export_tensors(ckpts, args.out, half=args.half)
        print(f"{args.out}: {len(weights)} tensors, {args.out.stat().st_size:,} bytes")
        return
    if args.half:
        raise UserError("--half: is for .safetensors files; name one with --out")
    weights = export(ckpts, args.out, clip=args.clip)
    print(f"{args.out}: {len(weights)} tensors in the published layout")
    for prefix in _lacking(weights):
        print(
            f"{args.out}: lacks {prefix}*, which the published layout also holds; strict loading there will refuse it"
        )


def export(ckpts: str, out: Path, *, clip: str | None = None) -> dict[str, Tensor]:
    """Write the checkpoint `ckpts`, with the CLIP of the file `clip` inside if one is given, to `out`; returns the weights.

    Raises:
        UserError: a file cannot be read, a pre-trained I2P-MAE comes without a whole CLIP or another checkpoint with one.
    """
    saved = read_checkpoint(ckpts)
    weights = _whole(ckpts, saved, published=True)
    holds_clip = any(key.startswith(PRE_TRAINED_I2P) for key in weights)
    if clip is None and holds_clip:
        raise UserError(
            f"{ckpts}: the published layout of I2P-MAE holds CLIP; give --clip, OpenAI's ViT-B-16.pt or a published checkpoint"
        )
    if clip is not None:
        if not holds_clip:
            raise UserError(
                f"{ckpts}: is no I2P-MAE pre-training checkpoint, whose layout holds CLIP; leave out --clip"
            )
        towers = find_clip(read_weights(clip, name=NAME)[0])
        if not towers:
            raise UserError(f"{clip}: holds no CLIP; give OpenAI's ViT-B-16.pt or a published I2P-MAE checkpoint")
        weights = with_clip(weights, towers)
    kept = {key: saved[key] for key in ("epoch", "metrics", "best_metrics") if key in saved}
    save_checkpoint(out, {"base_model": {f"module.{key}": value for key, value in weights.items()}, **kept})
    return weights


def export_tensors(ckpts: str, out: Path, *, half: bool = False) -> dict[str, Tensor]:
    """Write the weights of a checkpoint, and what it says of them, as a safetensors file; returns the weights.

    Args:
        half: store matrices in half precision.

    Raises:
        UserError: the checkpoint cannot be read or used, a value is too large for half precision, or the file cannot be written.
    """
    saved = read_checkpoint(ckpts)
    weights = _whole(ckpts, saved, published=False)
    check_weights(ckpts, weights, list(weights))
    origin = saved.get("provenance") or recorded(Path(ckpts).parent)
    save_tensors(out, weights, {**saved, **({"provenance": origin} if origin else {})}, half=half)
    return weights


def _whole(ckpts: str, saved: Mapping, *, published: bool) -> dict[str, Tensor]:
    """Return the weights of a checkpoint; of one that tuning trained with those of its base.

    Args:
        published: updates of LoRA are merged into the weights; other inserted parts are an error, as no published program has them.
    """
    if not is_tuned(saved):
        return state_dict_of(saved)
    keys = tuned_keys(ckpts, saved)
    config = saved["config"]["model"]
    if published:
        if keys.kind not in (*FROZEN, "lora"):
            raise UserError(
                f"{ckpts}: was tuned by {keys.kind}, and published programs have no place for what that inserts; "
                "name a .safetensors file with --out, which holds it whole"
            )
        config = {**config, "tune": {"kind": "full"}}
    model = build_model(config)
    load_weights(model, ckpts)
    return model.state_dict()


def _lacking(weights: Mapping[str, Tensor]) -> list[str]:
    """Return prefixes of keys that a published pre-training checkpoint of this method holds and these weights do not."""
    if not any("MAE_decoder" in key or key.startswith("h_decoder.") for key in weights):
        return []  # a classifier: the published one holds what ours does
    method = method_of({"base_model": weights})
    targets = (
        target for target in MODELS.targets() if issubclass(target, MaskedAutoencoder) and target.method == method
    )
    prefixes = {prefix for target in targets for prefix in target.ignored_keys}
    return sorted(prefix for prefix in prefixes if not any(key.startswith(prefix) for key in weights))


if __name__ == "__main__":
    sys.exit(main())
