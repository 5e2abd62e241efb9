"""Features, and with a classifier predictions, of any clouds or meshes: `python -m tools.embed --ckpts PTH --input DIR_OR_FILE`."""

import argparse
import csv
import io
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.formats.cloud_files import BadFiles, cloud_files
from datasets.formats.points import check_up
from tools.embedder import Embedder, Embedding, embed_files, open_embedder
from tools.launch import weights_file
from utils.device import choose_device
from utils.environment import settle_environment
from utils.errors import UserError, run_command, stop_signals
from utils.files import explain_write, file_hash, write_atomic
from utils.log import console
from utils.registry import import_file

BEST = 3  # classes of the table of predictions
_LOG = logging.getLogger("m2ae.embed")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for bad input, which is one message on stderr, 128 + signal when stopped."""
    args = build_parser().parse_args(argv)
    settle_environment()
    with stop_signals(), console():
        return run_command(partial(_run, args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.embed",
        description="Features, and with a classifier predictions, of any clouds or meshes.",
        allow_abbrev=False,
    )
    add_model_flags(parser)
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="a cloud or mesh, or a folder of them, with those below it"
    )
    parser.add_argument(
        "--out", default="embeddings.npz", metavar="NPZ",
        help="features (default: embeddings.npz); the predictions of a classifier go to the same name ending in .csv",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace these files where they exist")
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="clouds encoded at a time (default: 32)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="of the computation (default: the configuration's)"
    )
    return parser


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model encodes clouds of one's own, and how such clouds are read."""
    parser.add_argument(
        "--ckpts", required=True, metavar="PTH", help="weights of a pre-trained model or of a classifier: a file, mini, or a published name"
    )
    parser.add_argument(
        "--start_ckpts", metavar="PTH", help="where --ckpts is what --tune trained: its base, if that has moved"
    )
    parser.add_argument("--config", metavar="YAML", help="recipe of the model; checkpoints of ours hold their own")
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="FILE.py", help="file that registers the model"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a key of the configuration"
    )
    parser.add_argument(
        "--normalize", action="store_true", default=None,
        help="centre clouds and scale them to the unit sphere (default: as the training set did)",
    )  # fmt: skip
    parser.add_argument("--no_normalize", dest="normalize", action="store_false", help="take coordinates as they are")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there, else cpu)")
    parser.add_argument("--up", default="y", help="axis of the input that points up and becomes y (default: y)")
    parser.add_argument("--skip_bad", action="store_true", help="pass over files that cannot be read, and list them")
    parser.add_argument("--debug", action="store_true", help="show where an error arose")


def _run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    table = out.with_suffix(".csv")
    if out.suffix.lower() != ".npz":
        raise UserError(f"--out {out}: must end in .npz, for example {out.with_suffix('.npz')}")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: must be at least 1")
    check_up(args.up)
    for path in (out, table):
        if path.exists() and not args.overwrite:
            raise UserError(f"{path}: exists; replace it with --overwrite, or choose another --out")
    files = cloud_files(args.input, recursive=True)
    root = Path(args.input) if Path(args.input).is_dir() else files[0].parent
    names = [file.relative_to(root).as_posix() for file in files]
    bad = BadFiles(args.skip_bad)
    for file in args.imports:
        import_file(Path(file) if Path(file).is_file() else None, f"--import {file}")
    overrides = [*args.set, *([f"precision={args.precision}"] if args.precision else [])]
    ckpts = str(weights_file(args.ckpts, args.config))
    embedder = open_embedder(
        ckpts,
        config=args.config,
        overrides=overrides,
        normalize=args.normalize,
        device=choose_device(args.device),
        base=args.start_ckpts,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(explain_write(out, error)) from error
    embedding = embed_files(embedder, files, names, batch_size=args.batch_size, up=args.up, bad=bad)
    bad.tell(len(files))
    if embedding.repeated:
        _LOG.warning(
            "%d clouds have fewer points than the %d that the groups need, and their points were repeated; the first is %s",
            len(embedding.repeated), embedder.needed, embedding.repeated[0],
        )  # fmt: skip
    _write(embedder, embedding, ckpts, out, table)


def _write(embedder: Embedder, embedding: Embedding, ckpts: str, out: Path, table: Path) -> None:
    arrays = {
        "features": embedding.features,
        "names": np.array(embedding.names),
        "method": np.array(embedder.model.method),
        "checkpoint_sha256": np.array(file_hash(ckpts)),
    }
    write_atomic(out, lambda file: np.savez_compressed(file, **arrays))
    count, width = embedding.features.shape
    _LOG.info("%s: features (%d, %d) of %s", out, count, width, embedder.model.method)
    if embedding.probabilities is None:
        return
    if not embedder.config.class_names:
        _LOG.info("the checkpoint does not name its classes; %s has numbers, or give --set 'class_names=[a, b]'", table)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(prediction_rows(embedding, embedder.config.class_names))
    write_atomic(table, lambda file: file.write(text.getvalue().encode("utf-8")))
    _LOG.info("%s: predictions", table)


def prediction_rows(embedding: Embedding, class_names: Sequence[str] | None) -> list[list]:
    """Return the table of predictions, its head first: file, then class, name and probability of the three best classes.

    Equal probabilities are in the order of the labels; a class without a name has its number as name.
    """
    names = list(class_names or [])
    best = min(BEST, embedding.probabilities.shape[1])
    order = np.argsort(-embedding.probabilities, axis=1, kind="stable")[:, :best]
    head = ["file"]
    for rank in range(1, best + 1):
        ending = "" if rank == 1 else f"_{rank}"
        head += [f"class{ending}", f"name{ending}", f"probability{ending}"]
    rows: list[list] = [head]
    for file, labels, probabilities in zip(embedding.names, order.tolist(), embedding.probabilities, strict=True):
        row: list = [file]
        for label in labels:
            row += [label, names[label] if label < len(names) else str(label), f"{probabilities[label]:.6f}"]
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
