"""Write a checkpoint for other programs.

    python -m tools.export --ckpts experiments/pre-training/point-m2ae/pre-train/ckpt-last.pth --out point-m2ae.pth
    python -m tools.export --ckpts experiments/pre-training/point-m2ae/pre-train/ckpt-last.pth --out point-m2ae.safetensors
    python -m tools.export --ckpts experiments/pre-training/point-m2ae/pre-train/ckpt-last.pth --out point-m2ae.onnx
    python -m tools.export --ckpts experiments/pre-training/i2p-mae/pre-train/ckpt-last.pth --clip ViT-B-16.pt --out i2p-mae.pth

`.pth` is the published layout: the weights under `base_model` with the prefix `module.`, and the metrics. Published programs load our
checkpoints as they are; the file written here lacks the state of the run and is smaller. Only a pre-trained I2P-MAE has to be exported,
because its published layout holds CLIP: `--clip` is OpenAI's archive, or any published I2P-MAE checkpoint, for the layout holds CLIP's
text tower too, which nothing uses and image models of a hub do not have.

`.safetensors` has our names, and in its header the configuration, so that every command takes it as `--ckpts`; `--half` stores its
matrices in half precision.

`.onnx` and `.pt2` (torch.export) are graphs that run without this project: the encoder, or with `--part classifier` the whole
classifier. They take clouds that are grouped already, or with `--with-grouping` points. docs/export.md explains them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, run_command

FORMATS = {"pth": ".pth", "safetensors": ".safetensors", "onnx": ".onnx", "pt2": ".pt2"}
GRAPHS = ("onnx", "pt2")
AGREE = 1e-3  # largest difference of a graph from the model, as a share of the largest value; rounding leaves 1e-6


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpts", required=True, metavar="PTH", help="our checkpoint")
    add("--out", required=True, type=Path, metavar="FILE", help="file to write")
    add("--to", choices=FORMATS, help="what to write (default: what the name of --out ends with)")
    add("--clip", metavar="FILE", help="pth, of a pre-trained I2P-MAE: OpenAI's archive or a published checkpoint")
    add("--half", action="store_true", help="safetensors: store matrices in half precision")
    add("--part", choices=("encoder", "classifier"), default="encoder", help="onnx, pt2: what of the model")
    add("--with-grouping", action="store_true", help="onnx, pt2: take points, and group them inside")
    add("--points", type=int, metavar="N", help="with --with-grouping: of a cloud (default: as trained)")
    add("--config", metavar="YAML", help="onnx, pt2: recipe of the model, where --ckpts holds none")
    add("--debug", action="store_true", help="show where an error arose")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for bad input."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> None:
    from tools.weights.names import resolve

    known = {suffix: name for name, suffix in FORMATS.items()}
    to = args.to or known.get(args.out.suffix)
    if to is None:
        raise UserError(f"--out {args.out}: ends in none of {', '.join(known)}; rename it, or say what it is with --to")
    for flag, given, formats in (
        ("--clip", args.clip, ("pth",)),
        ("--half", args.half, ("safetensors",)),
        ("--part classifier", args.part != "encoder", GRAPHS),
        ("--with-grouping", args.with_grouping, GRAPHS),
        ("--points", args.points, GRAPHS),
        ("--config", args.config, GRAPHS),
    ):
        if given and to not in formats:
            raise UserError(
                f"{flag}: is for {' and '.join(formats)}, not for {to}; leave it out, or name a file with --to"
            )
    if args.points is not None and (args.points < 1 or not args.with_grouping):
        raise UserError(f"--points {args.points}: must be at least 1, and belongs to --with-grouping")
    args.ckpts = str(resolve(args.ckpts))
    if to in GRAPHS:
        _export_graph(args, to)
        return
    from tools.export import published

    if to == "safetensors":
        weights = published.export_tensors(args.ckpts, args.out, half=args.half)
        print(f"{args.out}: {len(weights)} tensors, {args.out.stat().st_size:,} bytes")
        return
    clip = args.clip and str(resolve(args.clip))
    weights = published.export(args.ckpts, args.out, clip=clip)
    print(f"{args.out}: {len(weights)} tensors in the published layout")
    for prefix in published.lacking(weights):
        print(
            f"{args.out}: lacks {prefix}*, which the published layout also holds; strict loading there will refuse it"
        )


def _export_graph(args: argparse.Namespace, to: str) -> None:
    from tools.embedder import open_embedder
    from tools.export.graph import difference, pack_program, run_program, trace
    from tools.export.onnx_file import pack_onnx, run_onnx
    from utils.files import write_atomic

    embedder = open_embedder(args.ckpts, config=args.config)
    onnx = to == "onnx"
    traced = trace(embedder, args.part, with_grouping=args.with_grouping, npoints=args.points, onnx=onnx)
    data = pack_onnx(traced) if onnx else pack_program(traced)
    one = [tensor[:1] for tensor in traced.inputs]  # another batch than the one that was traced
    found = run_onnx(data, one) if onnx else run_program(traced, one)
    said = "not compared with the model, for which onnxruntime is missing"
    if found is not None:
        apart = difference(traced, one, found)
        if not apart <= AGREE:
            raise UserError(f"{args.ckpts}: the graph differs from the model by {apart:.1e}; nothing was written")
        said = f"differs from the model by {apart:.0e}"
    write_atomic(args.out, lambda file: file.write(data))
    print(
        f"{args.out}: {args.part} of {traced.about['model']}, {len(data):,} bytes; takes {', '.join(traced.names)}; "
        f"gives {', '.join(traced.about['outputs'])}; {said}"
    )
