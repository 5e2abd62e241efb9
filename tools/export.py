"""Write a checkpoint of I2P-MAE in the published layout, with CLIP inside, for programs that load it strictly.

    python -m tools.export --ckpts experiments/pre-training/i2p-mae/pre-train/ckpt-last.pth --clip ViT-B-16.pt --out i2p-mae.pth

`--clip` is OpenAI's archive, or any published I2P-MAE checkpoint: the layout holds CLIP's text tower too, which nothing uses and
image models of a hub do not have.
"""

import argparse
import sys
from pathlib import Path

from models.images.clip_layout import find_clip, with_clip
from models.images.weights import read_weights
from models.weights import method_of, state_dict_of
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint

NAME = "vit_base_patch16_clip_quickgelu_224.openai"  # where a missing file is to be had


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpts", required=True, help="our checkpoint")
    parser.add_argument("--clip", required=True, help="OpenAI's archive or a published checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    args = parser.parse_args(argv)
    try:
        count = export(args.ckpts, args.clip, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {count} tensors in the published layout")
    return 0


def export(ckpts: str, clip: str, out: Path) -> int:
    """Write the checkpoint `ckpts` with the CLIP of the file `clip` inside to `out`; returns how many tensors it holds.

    Raises:
        UserError: a file cannot be read, the first is no I2P-MAE pre-training checkpoint, or the second holds no whole CLIP.
    """
    saved = read_checkpoint(ckpts)
    if method_of(saved) != "i2p-mae":
        raise UserError(
            f"{ckpts}: is no I2P-MAE pre-training checkpoint; the published layout with CLIP inside is that method's"
        )
    towers = find_clip(read_weights(clip, name=NAME)[0])
    if not towers:
        raise UserError(f"{clip}: holds no CLIP; give OpenAI's ViT-B-16.pt or a published I2P-MAE checkpoint")
    weights = with_clip(state_dict_of(saved), towers)
    kept = {key: saved[key] for key in ("epoch", "metrics", "best_metrics") if key in saved}
    save_checkpoint(out, {"base_model": {f"module.{key}": value for key, value in weights.items()}, **kept})
    return len(weights)


if __name__ == "__main__":
    sys.exit(main())
