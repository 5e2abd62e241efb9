"""Fine-tuning: a classifier on a pre-trained encoder, or from scratch, evaluated on the validation set as it trains."""

from typing import Any

from torch import nn

from datasets import CloudSet
from datasets.batches import Batch
from datasets.transforms import augment
from models import build_model
from models.classifier import Classifier
from models.tuning import TuneConfig, Tuning
from tools.context import RunContext
from tools.evaluate import Evaluator, check_class_names, check_classes, check_points
from tools.report.page import write_report
from tools.results import write_predictions
from tools.sampling import training_points
from tools.supervised import Supervised, run_supervised, votes_after
from tools.train import Trainer, Values, last_epoch
from utils.errors import UserError

# Accuracies in percent from which the published program votes during training: after any epoch, after a new best one.
PUBLISHED_VOTE_ABOVE, PUBLISHED_VOTE_BEST_ABOVE = 92.1, 91.0


def run_finetune(run: RunContext) -> dict[str, float]:
    """Train the classifier of a configuration; returns accuracies in percent by what they are."""
    return run_supervised(run, Classification)


def build_classifier(run: RunContext) -> nn.Module:
    """Build the classifier of a configuration on the device of the run.

    Raises:
        UserError: the configuration is of a model that does not classify, its head does not fit `transfer`, or that
            contradicts the key `tune`.
    """
    config = run.config
    model = build_model(config.model)
    if not isinstance(model, Classifier):
        raise UserError(
            f"model.NAME: {config.model.NAME} does not classify; use a recipe of cfgs/fine-tuning/ or cfgs/few-shot/"
        )
    kind = config.model.tune.kind
    if config.transfer != "full" and kind not in ("full", config.transfer):
        raise UserError(f"transfer: {config.transfer} and model.tune.kind {kind} contradict each other; leave one out")
    if (config.transfer == "linear") != (config.model.head == "linear") and config.transfer != "full":
        raise UserError(
            f"transfer: {config.transfer} does not go with model.head {config.model.head}; set model.head to {config.transfer}"
        )
    if config.transfer != "full" and model.tuning is None:
        model.tuning = Tuning(model, TuneConfig(kind=config.transfer), whole=True)
    return model.to(run.device)


class Classification(Supervised):
    """Train a classifier, or what its tuning lets train."""

    named = "class names"
    row, scores, tags = "val", {"accuracy": "accuracy"}, {"accuracy": "ACC"}
    best_by, kept_as, best_name = "accuracy", "acc", "best epoch"
    build_model = staticmethod(build_classifier)

    @classmethod
    def check_set(cls, run: RunContext, clouds: CloudSet) -> None:
        """Raise where a set has other classes than the head, or fewer points than the classifier takes."""
        check_classes(clouds, run.config.model.cls_dim)
        check_points(clouds, run.config.npoints)
        check_class_names(run.config.class_names, clouds, "the key class_names")

    @classmethod
    def names(cls, clouds: CloudSet) -> dict[str, Any]:
        """Return the class names of a set."""
        return {"class_names": list(clouds.class_names) if clouds.class_names else None}

    def describe(self, steps: int) -> str:
        """Say what is trained on, in one line."""
        config = self.run.config
        return (
            f"{len(self.clouds)} clouds to train on, {len(self.val)} to evaluate on, {config.npoints} points, "
            f"{steps} steps of {config.total_bs} an epoch, {self.run.device}"
        )

    def prepare(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Choose points, augment and group them."""
        draw, config = batch.draw(self.run.config.seed, epoch), self.run.config
        points, model = batch.points, self.model
        if not model.subsamples:
            points = training_points(points, config.npoints, draw("subset"))
        points = augment(points, config.augmentation, self.clouds.up_axis, draw("augmentation"))
        points = model.transform(points, generator=draw("transform"))
        return {"points": points, "pyramid": model.group(points, generator=draw("group")), "labels": batch.labels}

    def compute(self, model: nn.Module, inputs: dict[str, Any]) -> Values:
        """Classify and compare."""
        labels = inputs["labels"]
        logits = model(inputs["points"], pyramid=inputs["pyramid"])
        right = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": self.model.loss(logits, labels), "accuracy": right}

    def due(self, epoch: int) -> bool:
        """Say whether the model is evaluated after an epoch: as published, epoch 0 is not; the last one always is."""
        return super().due(epoch) and (epoch > 0 or epoch == last_epoch(self.run.config))

    def open_evaluator(self, clouds: CloudSet) -> Evaluator:
        """Return what evaluates the classifier on a set."""
        return Evaluator(self.run, clouds)

    def score(self, evaluator: Evaluator) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": evaluator.evaluate(self.model)}

    def entries(self, scores: dict[str, float]) -> dict[str, float]:
        """Return the accuracy under its published name."""
        return {"acc": scores["accuracy"]}

    def vote(self, trainer: Trainer, epoch: int, scores: dict[str, float], *, best: bool) -> None:
        """Evaluate with voting where that is asked for, and keep the epoch that is best by it."""
        run, state, writer = self.run, trainer.state, trainer.writer
        above = PUBLISHED_VOTE_BEST_ABOVE if best else PUBLISHED_VOTE_ABOVE
        published = run.args.vote and 100 * scores["accuracy"] > above
        if not (published if run.args.as_published else votes_after(run, epoch, best=best)):
            return
        vote = self.evaluator.vote(self.model, run.args.vote_rounds or 1)
        best = vote.mean > state.best_metrics.get("acc_vote", 0.0)
        writer.scalar("Metric/ACC_vote", 100 * vote.mean, epoch, split="test")
        if best and not self.selects_held_out:  # else ckpt-best.pth is that of the only epoch that votes
            state.best_metrics = {**state.best_metrics, "acc_vote": vote.mean, "epoch_vote": epoch}
            self.save(run.folder / "ckpt-best_vote.pth", state)
        writer.write({"kind": "vote", "epoch": epoch, "data": self.val.name, **vote.row(), "best": best})
        run.log.info(f"epoch {epoch}: with voting {vote}" + (" (best)" if best else ""))

    def results(self) -> dict[str, float]:
        """Return accuracies of the last and the best epoch, without and with voting, in percent."""
        return super().results() | self.last_and_best("vote", {"mean": "accuracy with voting"}, "mean")

    def write_report(self) -> None:
        """Write report.html, and the predictions of the last evaluation; where there is none, the run was complete before."""
        run, predictions = self.run, self.evaluator.predictions
        if predictions is not None:
            write_predictions(run.folder, self.val, predictions)
        elif (run.folder / "report.html").exists():
            return
        path = write_report(
            run.folder,
            config=run.config_dict(),
            **self.evaluator.pages(),
            title=f"Fine-tuning {run.config.model.NAME}: {run.args.exp_name}",
        )
        run.log.info(f"report: {path}")
