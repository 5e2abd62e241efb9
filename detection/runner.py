"""Object detection: train a detector on a pre-trained encoder or from scratch, evaluate it, or let it detect in own scenes."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from datasets import CloudSet
from datasets.batches import Batch
from detection.evaluate import DetectionEvaluator, build_detector, check_set, table_of
from detection.inputs import draw_batch, own_seeds
from detection.metrics import SCORES
from detection.pages import write_pages
from tools.context import RunContext
from tools.supervised import Sets, Supervised, run_supervised
from tools.train import Display, Values
from utils.dist import world_size
from utils.errors import UserError

AUGMENTATIONS = ("cuboid", "none")
LOGGED = ("loss", "loss_giou", "loss_sem_cls", "loss_center", "loss_size", "loss_angle_reg", "loss_cardinality")


def run_detection(run: RunContext) -> dict[str, float]:
    """Do what the flags ask of a detector: `--predict`, `--test`, or train; returns scores in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    args = run.args
    if args.test_svm or args.corruptions or run.config.transfer != "full":
        flag = "--test_svm" if args.test_svm else "--corruptions" if args.corruptions else "--transfer"
        raise UserError(f"{flag}: is not for detection; leave it out, or use another recipe")
    if run.config.held_out is not None:
        raise UserError(
            "held_out: takes a part of each class, and a scene has several; use --select last, or best_test, without --held_out"
        )
    if args.predict:
        from detection.predict import run_predict

        return run_predict(run)
    if args.test:
        from detection.test import run_test

        return run_test(run)
    if run.config.augmentation not in AUGMENTATIONS:
        raise UserError(
            f"augmentation: {run.config.augmentation} does not know boxes; choose {' or '.join(AUGMENTATIONS)} for detection"
        )
    return run_supervised(run, ObjectDetection)


class ObjectDetection(Supervised):
    """Train a detector; the best epoch is that of the best AP25."""

    display = Display(scale=1.0, epoch_tag="Loss/Epoch/Loss", batch_tags={"loss": "Loss", "lr": "LR"})
    named = "classes"
    row, scores = "detection", SCORES
    tags: ClassVar[dict[str, str]] = {"ap25": "mAP_0.25", "ap50": "mAP_0.5", "ar25": "AR_0.25", "ar50": "AR_0.5"}
    best_by = kept_as = "ap25"
    best_name = "epoch of the best AP25"
    build_model = staticmethod(build_detector)

    def __init__(self, run: RunContext, model: nn.Module, sets: Sets):
        # Scenes are drawn whole, with their boxes, in `prepare`: batches need to carry nothing but which ones they are.
        self.whole = sets.train
        named = replace(sets.train, sampling="first", npoints=1)
        super().__init__(run, model, replace(sets, train=named))

    @property
    def drop_last(self) -> bool:
        """Whether the last, partial batch of an epoch is left out: it is kept, as published, where no process would go without."""
        return world_size() > 1

    @classmethod
    def check_set(cls, run: RunContext, clouds: CloudSet) -> None:
        """Raise where a detector cannot be trained or evaluated on a set, or its classes are called otherwise."""
        check_set(clouds, run)

    @classmethod
    def names(cls, clouds: CloudSet) -> dict[str, Any]:
        """Return the names of the classes."""
        return table_of(clouds)

    def describe(self, steps: int) -> str:
        """Say what is trained on, in one line."""
        clouds = self.whole
        return (
            f"{len(clouds)} scenes with {int(clouds.box_counts.sum()):,} boxes to train on, {len(self.val)} to evaluate on, "
            f"{len(clouds.class_names)} classes, {clouds.npoints:,} points, {steps} steps of {self.run.config.total_bs} an epoch, "
            f"{self.run.device}"
        )

    def prepare(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Draw, augment and group the scenes of a batch."""
        config = self.run.config
        rows = batch.indices.tolist()
        seeds = own_seeds(len(rows), batch.draw(config.seed, epoch)("scenes"))
        inputs = draw_batch(
            self.whole,
            rows,
            seeds,
            augment=config.augmentation != "none",
            color=config.model.use_color,
            device=self.run.device,
        )
        return {"inputs": inputs, "groups": self.model.group(inputs.points)}

    def compute(self, model: nn.Module, inputs: dict[str, Any]) -> Values:
        """Detect and compare."""
        given = inputs["inputs"]
        out = model(given.points, given.extent, groups=inputs["groups"], colors=given.colors)
        losses = self.model.loss(out, given.targets)
        return {name: losses[name] for name in LOGGED}

    def open_evaluator(self, clouds: CloudSet) -> DetectionEvaluator:
        """Return what evaluates the detector on a set."""
        return DetectionEvaluator(self.run, clouds)

    def score(self, evaluator: DetectionEvaluator) -> dict[str, float]:
        """Return the scores."""
        return evaluator.evaluate(self.model)

    def entries(self, scores: dict[str, float]) -> dict[str, float]:
        """Return the scores."""
        return dict(scores)

    def write_report(self) -> None:
        """Write report.html with the last evaluation; where there is none, the run was complete, and its report shows more."""
        run = self.run
        if self.evaluator.scores is None and (run.folder / "report.html").exists():
            return
        title = f"Detection, {run.config.model.NAME}: {run.args.exp_name}"
        run.log.info(f"report: {write_pages(run, run.folder, self.evaluator, title=title)}")
