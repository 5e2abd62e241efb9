"""Evaluation of a trained part segmenter (`--test`), without and with voting."""

import numpy as np

from segmentation.evaluate import PartEvaluator, check_set, load_segmenter
from segmentation.metrics import SCORES
from segmentation.pages import write_pages
from tools.context import RunContext
from tools.evaluate import evaluation_set
from tools.results import open_output
from utils.files import write_atomic


def run_test(run: RunContext) -> dict[str, float]:
    """Evaluate the part segmenter in `--ckpts` on the test set; returns scores in percent by what they are.

    Writes a time-stamped folder with the report, the IoU of each category and part, PLY files of true and predicted
    parts, and the predictions for every cloud.

    Raises:
        UserError: the checkpoint is not one of this segmenter whole, or the configuration has no set to evaluate on.
    """
    config, args = run.config, run.args
    model = load_segmenter(run)
    clouds = evaluation_set(run)
    check_set(clouds, run)
    evaluator = PartEvaluator(run, clouds)
    scores = evaluator.evaluate(model).row()
    results = {name: 100 * scores[key] for key, name in SCORES.items()}
    shown = ", ".join(f"{name} {value:.2f} %" for name, value in results.items())
    run.log.info(f"{clouds.name} ({clouds.subset}), {len(clouds)} clouds: {shown}")
    if args.vote:
        vote = evaluator.vote(model, args.vote_rounds or 1)
        results |= {
            "instance mIoU with voting": 100 * vote.instance.mean,
            "class mIoU with voting": 100 * vote.classes.mean,
        }
        run.log.info(f"with voting: instance mIoU {vote.instance}, class mIoU {vote.classes}")
    folder = open_output(run, "test")
    names = np.array(clouds.names or [f"#{row}" for row in range(len(clouds))])
    arrays = {"names": names, "categories": clouds.labels, "true": evaluator.parts, "predicted": evaluator.predictions}
    write_atomic(folder / "predictions.npz", lambda file: np.savez_compressed(file, **arrays))
    summary = {name[0].upper() + name[1:]: f"{value:.2f} %" for name, value in results.items()}
    summary |= {"Clouds": len(clouds), "Checkpoint": str(args.ckpts)}
    path = write_pages(
        run, folder, evaluator, title=f"{config.model.NAME} on {clouds.name}: {args.exp_name}", summary=summary
    )
    run.log.info(f"report: {path}")
    return results
