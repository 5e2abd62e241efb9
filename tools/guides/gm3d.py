"""The guide of GeoMask3D: an averaged student that chooses what to hide, and a frozen teacher that says what should come out.

Shapes: `B` batch, `N` points, `G` groups of the scale that is guided, `W` watched clouds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.batches import Batch
from datasets.clouds import CloudSet
from extensions import knn
from models.gm3d import Targets
from models.layers.group import Pyramid
from models.losses import rank_correlation
from models.masking import guided_mask
from models.teachers import FrozenTeacher, NotingTeacher, feature_spread, load_teacher
from tools.context import RunContext
from tools.gallery_items import chosen_clouds, describe
from tools.guides.base import Guide, teacher_file
from tools.report.charts import Series, line_chart
from tools.report.page import GalleryItem, Section
from tools.report.runlog import RunLog, curve, read_metrics
from tools.train import last_epoch
from utils.config.yaml import save_config
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint

SHOWN, FRAMES = 2, 40  # maps of a cloud in the report, spread over the epochs: side by side, and one at a time
MOVING = "complexity"  # the cloud that a slider takes through the epochs


class GeometricGuide(Guide):
    """Choose masks by what the averaged student expects to be hard, more of them the longer the run is.

    Args:
        epochs: length of the curriculum.
        watched: (W, N, 3) clouds whose complexity map is remembered at the beginning of every epoch.
        describe: index of a watched cloud -> keyword arguments of its `GalleryItem`.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: FrozenTeacher | None,
        *,
        epochs: int,
        folder: Path,
        watched: Tensor,
        describe: Callable[[int], dict],
    ):
        self.model, self.teacher, self.epochs, self.folder = model, teacher, epochs, folder
        self.guidance = model.config.guidance
        self.ema = NotingTeacher(model)
        self.epoch = 0
        self._watched, self._describe = watched, describe

    follows_model = True  # the average moves with every step

    def prepare(
        self, points: Tensor, batch: Batch, *, epoch: int, draw: Callable, pyramid: Pyramid | None = None
    ) -> dict[str, Any]:
        """Return the guided mask and the targets of a step."""
        self.epoch = epoch
        if batch.step == 0:
            self._remember(epoch)
        pyramid = self.model.group(points) if pyramid is None else pyramid
        return self._guide(pyramid, epoch, draw("mask"))

    def picture(self, pyramid: Pyramid, generator: torch.Generator) -> dict[str, Any]:
        """Return the guided mask that the report shows."""
        return self._guide(pyramid, self.epoch, generator)

    @torch.no_grad()
    def _guide(self, pyramid: Pyramid, epoch: int, generator: torch.Generator) -> dict[str, Any]:
        count = self.model.masked_count
        # Behind its end, where the run is longer, the curriculum stays where it is.
        guided = self.guidance.guided_count(count, min(epoch, self.epochs - 1), self.epochs)
        tokens = self.ema.average.patch_tokens(None, pyramid)
        scores = self.ema.average.predict_complexity(tokens, pyramid.centers[-1]).float()
        complete = None if self.teacher is None else self.teacher.complete(pyramid)
        targets = Targets(
            self.guidance.loss_weights(epoch), guided, scores, self.teacher, complete, feature_spread(tokens)
        )
        masked = guided_mask(scores, count, guided, generator=generator)
        return {"masked": masked, "pyramid": pyramid, "targets": targets}

    def after_update(self) -> None:
        """Update the average of the model."""
        self.ema.update(self.model, self.guidance.decay(self.epoch))

    def _remember(self, epoch: int) -> None:
        """Note the complexity maps (W, G) of the watched clouds as they are now."""
        if len(self._watched):
            self.ema.notes[f"map {epoch}"] = self._maps()

    @torch.no_grad()
    def _maps(self) -> Tensor:
        return self.ema.module.complexity(self.model.group(self._watched)).float()

    def maps(self) -> dict[int, Tensor]:
        """Return the maps (W, G) that were noted, by epoch, in order."""
        found = {int(name.removeprefix("map ")): values.cpu() for name, values in self.ema.notes.items()}
        return dict(sorted(found.items()))

    def sections(self, model: nn.Module) -> list[Section]:
        """Return the section about guided masks."""
        log = read_metrics(self.folder / "metrics.jsonl")
        if not log.epochs:
            return []
        charts = "".join([_losses(log), _fraction(log), _correlation(log), _distances(self.maps())])
        lead = (
            "How much of the mask is guided, whether what was expected to be hard was hard to rebuild (Kendall's tau over the hidden "
            "patches of a cloud, 0 = chance), and how much the order of the patches changes from epoch to epoch."
        )
        return [Section("Guided masks", f'<div class="charts">{charts}</div>', lead)]

    def galleries(self, model: nn.Module) -> dict[str, list[GalleryItem]]:
        """Return the complexity maps of the watched clouds at some epochs: each point has the rank of its nearest patch, 1 = hardest.

        One cloud of a row goes through the epochs; the first and a middle one stand still, to compare.
        """
        maps = self.maps()
        if not maps:
            return {}
        named = {f"epoch {epoch}": values for epoch, values in maps.items()}
        moving = _spread(list(named), FRAMES)
        still = _spread(list(named), SHOWN + 1)[:SHOWN]
        named["now"] = self._maps().cpu()
        centers = self.model.group(self._watched).centers[-1]
        nearest = knn(self._watched, centers, 1)[1].squeeze(-1).cpu()  # (W, N)
        items = []
        for row, points in enumerate(self._watched.cpu().numpy()):

            def ranks(name: str, row: int = row) -> np.ndarray:
                order = named[name][row].argsort().argsort() / max(named[name].shape[1] - 1, 1)
                return order[nearest[row]].numpy()

            fixed = {f"complexity, {name}": ranks(name) for name in still}
            items.append(
                GalleryItem(
                    clouds=dict.fromkeys([*fixed, MOVING], points),
                    values=fixed,
                    frames={MOVING: [(name, ranks(name)) for name in [*moving, "now"]]},
                    value_name="hardness, 1 = hardest",
                    **self._describe(row),
                )
            )
        return {"complexity": items}


def _spread(names: list[str], count: int) -> list[str]:
    """Return up to `count` names, evenly spread from the first to the last."""
    return [names[index] for index in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]


def _losses(log: RunLog) -> str:
    names = {"loss_feature": "features", "loss_chamfer": "points", "loss_ranking": "ranking"}
    series = [Series(text, *curve(log.epochs, name), color=i) for i, (name, text) in enumerate(names.items())]
    return line_chart([one for one in series if one.xs], title="Single losses, unweighted", y_label="loss", log_y=True)


def _fraction(log: RunLog) -> str:
    series = Series("guided", *curve(log.epochs, "log_guided_fraction"))
    return line_chart([series], title="Guided part of the hidden patches", y_label="fraction", floor=0)


def _correlation(log: RunLog) -> str:
    names = {
        "log_guide_rank_correlation": "averaged student, complete cloud",
        "log_rank_correlation": "student, visible patches",
    }
    series = [Series(text, *curve(log.epochs, name), color=i) for i, (name, text) in enumerate(names.items())]
    return line_chart(series, title="Predicted complexity against true loss", y_label="rank correlation")


def _distances(maps: dict[int, Tensor]) -> str:
    distances = map_distances(maps)
    series = Series("1 - tau", list(distances), list(distances.values()))
    return line_chart([series], title="Distance between maps of successive epochs", y_label="1 - tau", floor=0)


def map_distances(maps: dict[int, Tensor]) -> dict[int, float]:
    """Return 1 - Kendall's tau of the maps (W, G) of each epoch with those of the one before, 0 (same order) to 2 (reversed)."""
    epochs = [epoch for epoch in maps if epoch - 1 in maps]
    return {epoch: 1 - rank_correlation(maps[epoch], maps[epoch - 1]).item() for epoch in epochs}


def build(run: RunContext, model: nn.Module, clouds: CloudSet) -> GeometricGuide:
    """Read the teacher and prepare the average.

    Raises:
        UserError: the teacher is missing or does not fit, or the curriculum is longer than the run.
    """
    guidance, epochs = model.config.guidance, last_epoch(run.config) + 1
    if guidance.epochs is not None and guidance.epochs > epochs:
        raise UserError(
            f"model.guidance.epochs: the curriculum of {guidance.epochs} epochs is longer than the run of {epochs}; "
            "shorten it, leave it out, or raise max_epoch"
        )
    chosen, watched = chosen_clouds(clouds, guidance.map_clouds, run.seed, run.device)
    return GeometricGuide(
        model,
        _teacher(run, model) if guidance.mode == "feature" else None,
        epochs=guidance.epochs or epochs,
        folder=run.folder,
        watched=watched,
        describe=lambda row: describe(clouds, chosen[row]),
    )


def _teacher(run: RunContext, model: nn.Module) -> FrozenTeacher:
    """Read the teacher, note in the configuration which file it was, and refuse another one in a resumed run."""
    guidance, last = run.config.model.guidance, run.folder / "ckpt-last.pth"
    if run.args.resume and last.exists():
        saved = read_checkpoint(last)["config"]["model"]["guidance"]
        guidance.teacher_sha256 = guidance.teacher_sha256 or saved["teacher_sha256"]
    base, path = model.config.base(), guidance.teacher
    path = path and teacher_file("model.guidance.teacher", path, model=base.NAME)
    teacher = load_teacher(path, base, sha256=guidance.teacher_sha256)
    teacher.model.to(run.device)
    guidance.teacher_sha256 = teacher.sha256
    if is_main():
        save_config(run.config, run.folder / "config.yaml")
    run.log.info(f"teacher: {guidance.teacher}, SHA-256 {teacher.sha256}")
    return teacher
