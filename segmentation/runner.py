"""Part segmentation: train a segmenter on a pre-trained encoder or from scratch, evaluate it, or let it name parts."""

from typing import Any, ClassVar

from torch import nn

from datasets import CloudSet
from datasets.batches import Batch
from datasets.transforms import augment
from segmentation.evaluate import PartEvaluator, build_segmenter, check_set, table_of
from segmentation.metrics import SCORES
from segmentation.pages import write_pages
from tools.context import RunContext
from tools.supervised import Sets, Supervised, run_supervised, votes_after
from tools.train import Trainer, Values
from utils.errors import UserError


def run_parts(run: RunContext) -> dict[str, float]:
    """Do what the flags ask of a part segmenter: `--predict`, `--test`, or train; returns scores in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    args = run.args
    if args.test_svm or args.corruptions or run.config.transfer != "full":
        flag = "--test_svm" if args.test_svm else "--corruptions" if args.corruptions else "--transfer"
        raise UserError(f"{flag}: is not for part segmentation; leave it out, or use another recipe")
    if args.predict:
        from segmentation.predict import run_predict

        return run_predict(run)
    if args.test:
        from segmentation.test import run_test

        return run_test(run)
    return run_supervised(run, PartSegmentation)


class PartSegmentation(Supervised):
    """Train a part segmenter; the best epoch is that of the best instance mIoU."""

    named = "categories or parts"
    row, scores = "parts", SCORES
    tags: ClassVar[dict[str, str]] = {"instance_miou": "InstanceMIoU", "class_miou": "ClassMIoU", "accuracy": "ACC"}
    best_by = kept_as = "instance_miou"
    latest_best = True  # as published
    best_name = "epoch of the best instance mIoU"
    build_model = staticmethod(build_segmenter)

    def __init__(self, run: RunContext, model: nn.Module, sets: Sets):
        super().__init__(run, model, sets)
        self.updates_per_batch = 2 if "double_step" in run.config.legacy_names() else 1

    @classmethod
    def check_set(cls, run: RunContext, clouds: CloudSet) -> None:
        """Raise where a set cannot be segmented by the model of a configuration, or names its parts otherwise."""
        check_set(clouds, run)

    @classmethod
    def names(cls, clouds: CloudSet) -> dict[str, Any]:
        """Return the names of categories and parts."""
        return table_of(clouds)

    def describe(self, steps: int) -> str:
        """Say what is trained on, in one line."""
        clouds = self.clouds
        return (
            f"{len(clouds)} clouds to train on, {len(self.val)} to evaluate on, {len(clouds.class_names)} categories, "
            f"{len(clouds.part_names)} parts, {clouds.npoints} points, {steps} steps of {self.run.config.total_bs} an epoch, "
            f"{self.run.device}"
        )

    def prepare(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Augment and group the clouds."""
        draw, kind = batch.draw(self.run.config.seed, epoch), self.run.config.augmentation
        points = augment(batch.points, kind, self.clouds.up_axis, draw("augmentation"))
        points = self.model.transform(points, generator=draw("transform"))
        pyramid = self.model.group(points, generator=draw("group"))
        return {"points": points, "pyramid": pyramid, "category": batch.labels, "parts": batch.parts}

    def compute(self, model: nn.Module, inputs: dict[str, Any]) -> Values:
        """Segment and compare."""
        parts = inputs["parts"]
        log_probs = model(inputs["points"], inputs["category"], pyramid=inputs["pyramid"])
        # As published, over the parts of all categories here, and over those of the true one in evaluation.
        right = (log_probs.detach().argmax(-1) == parts).float().mean()
        return {"loss": self.model.loss(log_probs, parts), "accuracy": right}

    def open_evaluator(self, clouds: CloudSet) -> PartEvaluator:
        """Return what evaluates the segmenter on a set."""
        return PartEvaluator(self.run, clouds)

    def score(self, evaluator: PartEvaluator) -> dict[str, float]:
        """Return the scores."""
        return evaluator.evaluate(self.model).row()

    def entries(self, scores: dict[str, float]) -> dict[str, float]:
        """Return the scores, and the point accuracy under its published name too."""
        return {**scores, "acc": scores["accuracy"]}

    def running_best(self, scores: dict[str, float], best: dict[str, float]) -> dict[str, float]:
        """Return the best value of each score; as published, each has its own epoch."""
        return {f"best_{name}": max(scores[name], best.get(f"best_{name}", 0.0)) for name in SCORES}

    def vote(self, trainer: Trainer, epoch: int, scores: dict[str, float], *, best: bool) -> None:
        """Evaluate with voting, where that is asked for after this epoch."""
        if votes_after(self.run, epoch, best=best):
            vote = self.evaluator.vote(self.model, self.run.args.vote_rounds or 1)
            trainer.writer.write({"kind": "parts_vote", "epoch": epoch, "data": self.val.name, **vote.row()})
            self.run.log.info(f"epoch {epoch}: with voting: instance mIoU {vote.instance}, class mIoU {vote.classes}")

    def write_report(self) -> None:
        """Write report.html with the last evaluation; where there is none, the run was complete, and its report shows more."""
        run = self.run
        if self.evaluator.scores is None and (run.folder / "report.html").exists():
            return
        title = f"Part segmentation, {run.config.model.NAME}: {run.args.exp_name}"
        run.log.info(f"report: {write_pages(run, run.folder, self.evaluator, title=title)}")
