"""Evaluation of a fine-tuned classifier (`--test`), without and with voting."""

from torch import nn

from tools.context import RunContext
from tools.evaluate import (
    Evaluator,
    Vote,
    check_class_names,
    check_classes,
    evaluation_set,
    load_trained,
)
from tools.finetune import build_classifier
from tools.report.page import write_report
from tools.results import open_output, write_predictions


def run_test(run: RunContext) -> dict[str, float]:
    """Evaluate the classifier in `--ckpts` on the test set; returns accuracies in percent by what they are.

    Writes a time-stamped folder with the report and the prediction for each cloud.

    Raises:
        UserError: the checkpoint is not one of this classifier whole, or the configuration has no set to evaluate on.
    """
    config, args = run.config, run.args
    model = load_classifier(run)
    clouds = evaluation_set(run)
    check_classes(clouds, config.model.cls_dim)
    check_class_names(config.class_names, clouds, f"{args.ckpts}")
    evaluator = Evaluator(run, clouds)
    results = {"accuracy": 100 * evaluator.evaluate(model)}
    run.log.info(f"{clouds.name} ({clouds.subset}), {len(clouds)} clouds: accuracy {results['accuracy']:.2f} %")
    if args.vote or args.as_published:
        vote = evaluator.vote(model, _rounds(run, model))
        run.log.info(f"with voting: {vote}")
        results |= _voted(vote)
    _write(run, evaluator, results)
    return results


def load_classifier(run: RunContext) -> nn.Module:
    """Build the classifier of a configuration with the weights of `--ckpts`; `run.config.class_names` become those of the checkpoint.

    Raises:
        UserError: the checkpoint is not one of this classifier whole.
    """
    remedy = "--test needs a fine-tuned checkpoint, fine-tune this one with --finetune_model"
    return load_trained(run, build_classifier(run), ("class_names",), what="classifier", remedy=remedy)


def _rounds(run: RunContext, model: nn.Module) -> int:
    """Return the rounds of voting: `--vote_rounds`, else 1, or with `--as_published` those of the published program."""
    published = model.published_rounds if run.args.as_published else 1
    return run.args.vote_rounds or published


def _voted(vote: Vote) -> dict[str, float]:
    results = {"accuracy with voting": 100 * vote.mean}
    if len(vote.accuracies) > 1:
        results[f"standard deviation over {len(vote.accuracies)} rounds"] = 100 * vote.std
        results["best round (selected on the test set)"] = 100 * vote.best
    return results


def _write(run: RunContext, evaluator: Evaluator, results: dict[str, float]) -> None:
    folder = open_output(run, "test")
    clouds = evaluator.clouds
    write_predictions(folder, clouds, evaluator.predictions)
    summary = {name[0].upper() + name[1:]: f"{value:.2f} %" for name, value in results.items()}
    path = write_report(
        folder,
        config=run.config_dict(),
        **evaluator.pages(),
        summary={**summary, "Clouds": len(clouds), "Checkpoint": str(run.args.ckpts)},
        title=f"{run.config.model.NAME} on {clouds.name}: {run.args.exp_name}",
    )
    run.log.info(f"report: {path}")
