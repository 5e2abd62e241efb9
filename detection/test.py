"""Evaluation of a trained detector (`--test`), also over several draws of the points."""

import numpy as np

from detection.evaluate import DetectionEvaluator, check_set, load_detector
from detection.metrics import SCORES
from detection.pages import write_pages
from tools.context import RunContext
from tools.evaluate import Vote, evaluation_set
from tools.results import open_output


def run_test(run: RunContext) -> dict[str, float]:
    """Evaluate the detector in `--ckpts` on the test set; returns scores in percent by what they are.

    With `--vote` the points of each scene are drawn `--vote_rounds` times (default 1), and mean and spread over these draws are the scores:
    which points are drawn moves AP25 by up to 1. Writes a time-stamped folder with the report and the average precision of each class.

    Raises:
        UserError: the checkpoint is not one of this detector whole, or the configuration has no set to evaluate on.
    """
    config, args = run.config, run.args
    model = load_detector(run)
    clouds = evaluation_set(run)
    check_set(clouds, run)
    evaluator = DetectionEvaluator(run, clouds)
    rounds = [evaluator.evaluate(model, turn) for turn in range((args.vote_rounds or 1) if args.vote else 1)]
    results = {name: 100 * float(np.mean([row[key] for row in rounds])) for key, name in SCORES.items()}
    if len(rounds) > 1:
        spread = {key: Vote([row[key] for row in rounds]) for key in ("ap25", "ap50")}
        results |= {
            f"{SCORES[key]}, standard deviation over {len(rounds)} draws": 100 * v.std for key, v in spread.items()
        }
    shown = ", ".join(f"{name} {value:.2f} %" for name, value in results.items())
    run.log.info(f"{clouds.name} ({clouds.subset}), {len(clouds)} scenes: {shown}")
    folder = open_output(run, "test")
    summary = {name: f"{value:.2f} %" for name, value in results.items()}
    summary |= {"Scenes": len(clouds), "Checkpoint": str(args.ckpts)}
    title = f"{config.model.NAME} on {clouds.name}: {args.exp_name}"
    run.log.info(f"report: {write_pages(run, folder, evaluator, title=title, summary=summary)}")
    return results
