"""Evaluation of a trained part segmenter (`--test`), without and with voting."""

from datetime import datetime

import numpy as np

from datasets import build_dataset
from segmentation.judge import PartJudge, check_set
from segmentation.pages import write_pages
from segmentation.runner import SCORES, load_segmenter
from tools.context import RunContext
from utils.errors import UserError
from utils.files import write_atomic


def run_test(run: RunContext) -> dict[str, float]:
    """Judge the part segmenter in `--ckpts` on the test set; returns scores in percent by what they are.

    Writes a time-stamped folder with the report, the IoU of each category and part, PLY files of true and predicted parts,
    and the predictions for every cloud.

    Raises:
        UserError: the checkpoint is not one of this segmenter whole, or the configuration has no set to judge on.
    """
    config, args = run.config, run.args
    entry = config.dataset.test or config.dataset.val
    if entry is None:
        raise UserError("dataset.test: is missing, --test judges on it; add the entry, or dataset.val")
    model = load_segmenter(run)
    clouds = build_dataset(entry)
    check_set(clouds, run)
    judge = PartJudge(run, clouds)
    scores = judge.judge(model).row()
    results = {name: 100 * scores[key] for key, name in SCORES.items()}
    shown = ", ".join(f"{name} {value:.2f} %" for name, value in results.items())
    run.log.info(f"{clouds.name} ({clouds.subset}), {len(clouds)} clouds: {shown}")
    if args.vote:
        vote = judge.vote(model, args.vote_rounds or 1)
        results |= {
            "instance mIoU with voting": 100 * vote.instance.mean,
            "class mIoU with voting": 100 * vote.classes.mean,
        }
        run.log.info(f"with voting: instance mIoU {vote.instance}, class mIoU {vote.classes}")
    folder = run.folder / f"test_{datetime.now():%Y%m%d_%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    names = np.array(clouds.names or [f"#{row}" for row in range(len(clouds))])
    arrays = {"names": names, "categories": clouds.labels, "true": judge.parts, "predicted": judge.predictions}
    write_atomic(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))
    summary = {name[0].upper() + name[1:]: f"{value:.2f} %" for name, value in results.items()}
    summary |= {"Clouds": len(clouds), "Checkpoint": str(args.ckpts)}
    path = write_pages(
        run, folder, judge, title=f"{config.model.NAME} on {clouds.name}: {args.exp_name}", summary=summary
    )
    run.log.info(f"report: {path}")
    return results
