"""Evaluation of a fine-tuned classifier (`--test`), without and with voting."""

from datetime import datetime

from torch import nn

from datasets import build_dataset
from models import load_weights
from tools.compile import compile_regions
from tools.context import RunContext
from tools.evaluate import PUBLISHED_ROUNDS, Judge, Vote, check_class_names, check_classes
from tools.finetune import build_classifier
from tools.report.page import write_report
from utils.errors import UserError
from utils.files import read_checkpoint, write_atomic


def run_test(run: RunContext) -> dict[str, float]:
    """Judge the classifier in `--ckpts` on the test set; returns accuracies in percent by what they are.

    Writes a time-stamped folder with the report and the prediction for each cloud.

    Raises:
        UserError: the checkpoint is not one of this classifier whole, or the configuration has no set to judge on.
    """
    config, args = run.config, run.args
    entry = config.dataset.test or config.dataset.val
    if entry is None:
        raise UserError("dataset.test: is missing, --test judges on it; add the entry, or dataset.val")
    model = load_classifier(run)
    clouds = build_dataset(entry)
    check_classes(clouds, config.model.cls_dim)
    check_class_names(config.class_names, clouds, f"{args.ckpts}")
    judge = Judge(run, clouds)
    results = {"accuracy": 100 * judge.judge(model)}
    run.log.info(f"{clouds.name} ({clouds.subset}), {len(clouds)} clouds: accuracy {results['accuracy']:.2f} %")
    if args.vote or args.as_published:
        vote = judge.vote(model, _rounds(run, model.method))
        run.log.info(f"with voting: {vote}")
        results |= _voted(vote)
    _write(run, judge, results)
    return results


def load_classifier(run: RunContext) -> nn.Module:
    """Build the classifier of a configuration with the weights of `--ckpts`; `run.config.class_names` become those of the checkpoint.

    Raises:
        UserError: the checkpoint is not one of this classifier whole.
    """
    config, path = run.config, run.args.ckpts
    model = build_classifier(run)
    report = load_weights(model, path)
    if report.missing:
        raise UserError(
            f"{path}: lacks {len(report.missing)} tensors of the classifier, first {report.missing[0]}; "
            "--test needs a fine-tuned checkpoint, fine-tune this one with --finetune_model"
        )
    run.log.info(f"{path}: {report}")
    saved = read_checkpoint(path).get("config")
    config.class_names = (saved.get("class_names") if isinstance(saved, dict) else None) or config.class_names
    if run.args.compile:
        compile_regions(model)
    return model


def _rounds(run: RunContext, method: str) -> int:
    """Return the rounds of voting: `--vote_rounds`, else 1, or with `--as_published` those of the published program."""
    published = PUBLISHED_ROUNDS.get(method, 1) if run.args.as_published else 1
    return run.args.vote_rounds or published


def _voted(vote: Vote) -> dict[str, float]:
    results = {"accuracy with voting": 100 * vote.mean}
    if len(vote.accuracies) > 1:
        results[f"standard deviation over {len(vote.accuracies)} rounds"] = 100 * vote.std
        results["best round (selected on the test set)"] = 100 * vote.best
    return results


def _write(run: RunContext, judge: Judge, results: dict[str, float]) -> None:
    folder = run.folder / f"test_{datetime.now():%Y%m%d_%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    clouds = judge.clouds
    names = clouds.names or [f"#{row}" for row in range(len(clouds))]
    lines = "".join(
        f"{name} {label} {guess}\n" for name, label, guess in zip(names, clouds.labels, judge.predictions, strict=True)
    )
    text = f"# cloud, true class, predicted class\n{lines}"
    write_atomic(folder / "predictions.txt", lambda file: file.write(text.encode()))
    summary = {name[0].upper() + name[1:]: f"{value:.2f} %" for name, value in results.items()}
    path = write_report(
        folder,
        config=run.config_dict(),
        confusion=judge.confusion(),
        summary={**summary, "Clouds": len(clouds), "Checkpoint": str(run.args.ckpts)},
        title=f"{run.config.model.NAME} on {clouds.name}: {run.args.exp_name}",
    )
    run.log.info(f"report: {path}")
