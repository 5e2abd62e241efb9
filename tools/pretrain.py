"""Pre-training: epochs of masking and rebuilding, each followed by a linear SVM on what the encoder learned."""

import time
from dataclasses import replace
from typing import Any

from torch import nn

from datasets import CloudSet, build_dataset
from datasets.batches import Batch
from datasets.transforms import augment
from models import load_weights
from models.teachers import collapsed
from tools.context import RunContext, build_pretraining_model
from tools.features import HeldOut, SVMResult
from tools.guides.base import Guide, build_guide, gallery_of
from tools.optim import check_training
from tools.report.page import write_report
from tools.results import SELECTED_HELD_OUT, SELECTED_ON_TEST
from tools.run_state import RunState
from tools.session import Session, run_session
from tools.svm import LinearProbe
from tools.train import Display, Trainer, Values, last_epoch
from utils.dist import is_main
from utils.files import read_checkpoint, save_checkpoint
from utils.metrics_log import read_rows

# What a model returns under these names is a scalar of the step and goes into the log.
LOGGED = ("loss", "log_")


def run_pretrain(run: RunContext) -> dict[str, float]:
    """Pre-train the model of a configuration; returns losses and linear-SVM accuracies in percent by what they are.

    Raises:
        UserError: bad input, or a loss that is not finite; the last good checkpoint is kept.
        Interrupted: asked to stop; the state is saved and `--resume` continues it.
    """
    check_training(run.config)
    model = build_pretraining_model(run)
    if run.args.start_ckpts:
        run.log.info(f"{run.args.start_ckpts}: {load_weights(model, run.args.start_ckpts)}")
    clouds = build_dataset(run.config.dataset.train)
    return run_session(pretraining(run, model, clouds, build_guide(run, model, clouds)))


def pretraining(run: RunContext, model: nn.Module, clouds: CloudSet, guide: Guide | None) -> "Pretraining":
    """Return the task of pre-training a model, with the guide of a method that has one."""
    return Pretraining(run, model, clouds) if guide is None else GuidedPretraining(run, model, clouds, guide)


class Pretraining(Session):
    """Mask clouds and rebuild them."""

    # What TensorBoard and the log show of a loss of about 0.02 square units is a number of about 20.
    display = Display(scale=1000.0, epoch_tag="Loss/Epoch/Loss_1", batch_tags={"loss": "Loss", "lr": "LR"})
    asynchronous = True

    probe: LinearProbe | None = None

    def __init__(self, run: RunContext, model: nn.Module, clouds: CloudSet):
        super().__init__(run, model, clouds)
        self.display = replace(self.display, epoch_loss=model.epoch_loss)

    def prepare(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Augment the clouds, group them and draw a mask."""
        inputs = self.grouped(batch, epoch)
        draw = batch.draw(self.run.config.seed, epoch)
        return inputs | {"masked": self.model.draw_mask(inputs["pyramid"], generator=draw("mask"))}

    def grouped(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Augment the clouds and group them."""
        draw = batch.draw(self.run.config.seed, epoch)
        points = augment(batch.points, self.run.config.augmentation, self.clouds.up_axis, draw("augmentation"))
        points = self.model.transform(points, generator=draw("transform"))
        return {"points": points, "pyramid": self.model.group(points, generator=draw("group"))}

    def compute(self, model: nn.Module, inputs: dict[str, Any]) -> Values:
        """Rebuild the hidden part and compare."""
        return {name: value for name, value in model(**inputs).items() if name.startswith(LOGGED)}

    def open_evaluation(self) -> None:
        """Load the sets of the linear SVM."""
        self.probe = LinearProbe.from_config(self.run)

    def describe(self, steps: int) -> str:
        """Say what is trained on, in one line."""
        clouds, size = self.clouds, self.run.config.total_bs
        return f"{len(clouds)} clouds of {clouds.npoints} points, {steps} steps of {size} an epoch, {self.run.device}"

    def before_training(self, trainer: Trainer) -> None:
        """Evaluate the untrained weights, once a run."""
        begins = trainer.state.epoch < 0 and not trainer.state.pending["step"]
        if self.run.config.svm.random_weights and begins:
            self.evaluate(trainer, None)

    def after_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Keep the checkpoint of some epochs; say so where the features of a teacher have collapsed."""
        run, means = self.run, trainer.state.metrics
        if "log_target_std" in means and (why := collapsed(means["log_target_std"], means["log_target_rank"])):
            run.log.warning(f"epoch {epoch}: {why}")
        if run.config.keep_from <= epoch and epoch % run.config.keep_every == 0 and is_main():
            save_checkpoint(run.folder / f"ckpt-epoch-{epoch:03d}.pth", trainer.state.checkpoint(run.config_dict()))

    def due(self, epoch: int) -> bool:
        """Say whether the model is evaluated after an epoch: only after the last one where no other can be selected."""
        config = self.run.config
        selects = config.select != "last" or config.held_out is not None
        return super().due(epoch) and (selects or epoch == last_epoch(config))

    def evaluate(self, trainer: Trainer, epoch: int | None) -> None:
        """Evaluate the encoder as it is by a linear SVM and keep the best one; epoch None stands for the untrained weights.

        Features are extracted here; the SVM is fitted and its result written where `trainer` says, perhaps while
        training goes on.
        """
        probe, state, started = self.probe, trainer.state, time.perf_counter()
        if probe is None:
            return
        select, final = self.run.config.select, epoch in (None, last_epoch(self.run.config))
        tests = select == "best_test" or (select == "last" and final)
        features = probe.features(self.model) if tests else probe.extract(self.model, probe.train)
        checkpoint, metrics = trainer.snapshot(), state.metrics
        spent = time.perf_counter() - started

        def fit() -> tuple[SVMResult | None, HeldOut | None, float]:
            begun = time.perf_counter()
            held_out = None if probe.held_out is None else probe.choose(features)
            result = probe.evaluate_features(features, choose=final) if tests else None
            return result, held_out, spent + time.perf_counter() - begun

        def then(found: tuple[SVMResult | None, HeldOut | None, float]) -> None:
            result, held_out, seconds = found
            evaluated = metrics if result is None else {**metrics, "acc": result.accuracy}
            if epoch is not None and state.metrics is metrics:  # else a later epoch has its own by now
                state.metrics = evaluated
            saved = {**checkpoint, "metrics": evaluated}
            if held_out is not None:
                self._write_held_out(trainer, held_out, seconds, epoch=epoch, checkpoint=saved)
            if result is not None:
                self._write_evaluation(trainer, result, seconds, epoch=epoch, checkpoint=saved)

        trainer.start(fit, then)

    def _write_held_out(
        self, trainer: Trainer, result: HeldOut, seconds: float, *, epoch: int | None, checkpoint: dict
    ) -> None:
        """Write what held-out clouds say of an epoch, and keep its checkpoint where it is the best so far and that counts."""
        run, state, name = self.run, trainer.state, self.probe.name
        best = epoch is not None and result.accuracy > state.best_metrics.get("held_out", -1.0)
        if best:
            kept = {"held_out": result.accuracy, "held_out_epoch": epoch, "held_out_C": result.C}
            state.best_metrics = {**state.best_metrics, **kept}
            if run.config.select == "held_out":
                save_checkpoint(run.folder / "ckpt-best.pth", {**checkpoint, "best_metrics": state.best_metrics})
        if epoch is not None:
            trainer.writer.scalar("HeldOut/ACC", result.accuracy, epoch, split="test")
        row = {"kind": "held_out", "epoch": epoch, "data": name, **result.row(), "best": best, "seconds": seconds}
        trainer.writer.write(row)
        which = "random weights" if epoch is None else f"epoch {epoch}"
        run.log.info(
            f"{which}: {result.accuracy:.4f} at C {result.C:g} on held-out clouds of {name}"
            + (" (best so far)" if best else "")
        )

    def finish(self, trainer: Trainer) -> None:
        """Write what the test set says of the epoch and C that held-out clouds selected; where they count, evaluate it now, once."""
        run, best, probe = self.run, trainer.state.best_metrics, self.probe
        if probe is None or "held_out_epoch" not in best:
            return
        chosen = {"by": "held_out", "epoch": best["held_out_epoch"], "last_epoch": last_epoch(run.config)}
        path, started = run.folder / "metrics.jsonl", time.perf_counter()
        rows = [row for row in read_rows(path) if row.get("epoch") == chosen["epoch"]]
        if any(row["kind"] == "selected" and chosen.items() <= row.items() for row in rows):
            return  # a complete run that was resumed
        if run.config.select == "held_out":
            self.model.load_state_dict(read_checkpoint(run.folder / "ckpt-best.pth")["base_model"])
            accuracy = probe.fit(probe.features(self.model), best["held_out_C"]).accuracy
        else:
            known = [row for row in rows if row["kind"] == "held_out" and row.get("test_accuracy") is not None]
            if not known:
                return
            accuracy = known[-1]["test_accuracy"]
        found = {
            "data": probe.name,
            "accuracy": accuracy,
            "C": best["held_out_C"],
            "seconds": time.perf_counter() - started,
        }
        trainer.writer.write({"kind": "selected", **chosen, **found})
        run.log.info(
            f"epoch {chosen['epoch']} and C {found['C']:g}, {SELECTED_HELD_OUT}: linear SVM {100 * accuracy:.2f} % on {probe.name}"
        )

    def _write_evaluation(
        self, trainer: Trainer, result: SVMResult, seconds: float, *, epoch: int | None, checkpoint: dict
    ) -> None:
        """Write what a linear SVM found of an epoch, and keep its checkpoint where it is the best so far."""
        run, state, writer, probe = self.run, trainer.state, trainer.writer, self.probe
        selects = run.config.select == "best_test"
        best = selects and epoch is not None and result.accuracy > state.best_metrics.get("acc", 0.0)
        if epoch is not None:
            writer.scalar("Metric/ACC", result.accuracy, epoch, split="test")
        if best:
            state.best_metrics = {**state.best_metrics, "acc": result.accuracy, "epoch": epoch}
            save_checkpoint(run.folder / "ckpt-best.pth", {**checkpoint, "best_metrics": state.best_metrics})
        row = {"kind": "svm", "epoch": epoch, "data": probe.name, "accuracy": result.accuracy, "C": result.C}
        row["best"] = best
        if result.chosen_C is not None:
            row.update(chosen_C=result.chosen_C, chosen_accuracy=result.chosen_accuracy)
        writer.write({**row, "seconds": seconds})
        name = "random weights" if epoch is None else f"epoch {epoch}"
        run.log.info(f"{name}: {probe.describe(result)}" + (f" (best so far, {SELECTED_ON_TEST})" if best else ""))

    def write_report(self) -> None:
        """Write report.html and gallery.png."""
        run = self.run
        path = write_report(
            run.folder,
            config=run.config_dict(),
            **self.pictures(),
            gallery_about=gallery_of(self.model)[1],
            confusion=None if self.probe is None else self.probe.confusion(),
            title=f"Pre-training {run.config.model.NAME}: {run.args.exp_name}",
        )
        run.log.info(f"report: {path}")

    def pictures(self) -> dict[str, Any]:
        """Return what the report shows besides numbers, as keyword arguments of `write_report`."""
        return {"gallery": gallery_of(self.model)[0](self.model, self.clouds, self.run.seed, self.run.device)}

    def conclude(self, state: RunState) -> dict[str, float]:
        """Log and return what pre-training was worth: the linear SVM on the untrained and on the trained encoder."""
        rows = read_rows(self.run.folder / "metrics.jsonl")
        evaluated = [row for row in rows if row["kind"] == "svm"]
        compared = {
            "random weights": evaluated[:1] if evaluated and evaluated[0]["epoch"] is None else [],
            "pre-trained": evaluated[-1:],
        }
        losses = [row["loss"] for row in rows if row["kind"] == "epoch" and row.get("loss") is not None]
        results = {"loss x 1000, last epoch": 1000 * losses[-1]} if losses else {}
        for name, found in compared.items():
            for row in found:
                text = f"{name:>14}: linear SVM on {row['data']} {100 * row['accuracy']:.1f} % at C {row['C']:g}"
                results[f"{name}, linear SVM on {row['data']}, C {row['C']:g}"] = 100 * row["accuracy"]
                if row.get("chosen_C") is not None:
                    text += f", {100 * row['chosen_accuracy']:.1f} % at C {row['chosen_C']:g} (cross-validated on the training features)"
                    results[f"{name}, linear SVM on {row['data']}, cross-validated C"] = 100 * row["chosen_accuracy"]
                self.run.log.info(text)
        results |= _selected(rows)
        if self.run.config.select == "best_test" and (
            trained := [row for row in evaluated if row["epoch"] is not None]
        ):
            best = max(trained, key=lambda row: row["accuracy"])
            results[f"best epoch ({SELECTED_ON_TEST}), linear SVM on {best['data']}, C {best['C']:g}"] = (
                100 * best["accuracy"]
            )
        return results


def _selected(rows: list[dict]) -> dict[str, float]:
    """Return the accuracy, in percent, at the epoch and C that held-out clouds selected; nothing where there is none."""
    found = [row for row in rows if row["kind"] == "selected"][-1:]
    return {f"linear SVM on {row['data']}, epoch and C {SELECTED_HELD_OUT}": 100 * row["accuracy"] for row in found}


class GuidedPretraining(Pretraining):
    """Pre-train with what the method's guide says of each batch: masks, targets."""

    def __init__(self, run: RunContext, model: nn.Module, clouds: CloudSet, guide: Guide):
        super().__init__(run, model, clouds)
        self.guide, self.ema = guide, guide.ema

    def prepare(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Augment the clouds, group them, and ask a guide that follows no weights."""
        inputs = self.grouped(batch, epoch)
        return inputs if self.guide.follows_model else self._guided(batch, epoch, inputs)

    def complete(self, batch: Batch, epoch: int, inputs: dict[str, Any]) -> dict[str, Any]:
        """Ask a guide that follows the model."""
        return self._guided(batch, epoch, inputs) if self.guide.follows_model else inputs

    def _guided(self, batch: Batch, epoch: int, inputs: dict[str, Any]) -> dict[str, Any]:
        draw = batch.draw(self.run.config.seed, epoch)
        found = self.guide.prepare(batch=batch, epoch=epoch, draw=draw, **inputs)
        if "masked" not in found:
            found["masked"] = self.model.draw_mask(inputs["pyramid"], generator=draw("mask"))
        return inputs | found

    def after_update(self) -> None:
        """Let the guide follow the model."""
        self.guide.after_update()

    def pictures(self) -> dict[str, Any]:
        """Return what the report shows besides numbers, of the method too."""
        run, guide, model = self.run, self.guide, self.model
        gallery = gallery_of(model)[0](model, self.clouds, run.seed, run.device, guidance=guide.picture)
        return {"gallery": gallery, **guide.pages(model)}
