"""Published results, in percent, of the methods that are here, and the runs that give ours."""

from collections.abc import Iterator
from dataclasses import dataclass

FEW_SHOT = ((5, 10), (5, 20), (10, 10), (10, 20))
BEST = "best epoch (selected on the test set)"


@dataclass(frozen=True)
class Task:
    """A kind of result.

    Args:
        recipe: below cfgs/, with the method left open.
        flags: of main.py.
        result: how `result.json` names the number that was published: the last of those that begin so.
        data: data sets, as `datasets.prepare check` names them.
    """

    recipe: str
    flags: tuple[str, ...]
    result: str
    data: tuple[str, ...]


FINE_TUNE = ("--finetune_model",)
TASKS = {
    "svm-modelnet40": Task(
        "linear-svm/{}/modelnet40.yaml", ("--test_svm", "modelnet40"), "linear SVM on", ("ModelNet40_SVM",)
    ),
    "svm-scan": Task("linear-svm/{}/scan_obj-bg.yaml", ("--test_svm", "scan"), "linear SVM on", ("Scan_OBJ-BG",)),
    "modelnet40": Task("fine-tuning/{}/modelnet40.yaml", FINE_TUNE, f"accuracy, {BEST}", ("ModelNet",)),
    "modelnet40-vote": Task(
        "fine-tuning/{}/modelnet40.yaml", (*FINE_TUNE, "--vote"), f"accuracy with voting, {BEST}", ("ModelNet",)
    ),
    "scan-obj-bg": Task("fine-tuning/{}/scan_obj-bg.yaml", FINE_TUNE, f"accuracy, {BEST}", ("Scan_OBJ-BG",)),
    "scan-obj": Task("fine-tuning/{}/scan_obj.yaml", FINE_TUNE, f"accuracy, {BEST}", ("Scan_OBJ",)),
    "scan-pb": Task("fine-tuning/{}/scan_pb.yaml", FINE_TUNE, f"accuracy, {BEST}", ("Scan_PB",)),
    **{
        f"{way}way-{shot}shot": Task(
            "few-shot/{}/modelnet40.yaml",
            (*FINE_TUNE, "--way", str(way), "--shot", str(shot), "--fold", "all"),
            f"accuracy, {BEST}",
            ("ModelNetFewShot",),
        )
        for way, shot in FEW_SHOT
    },
    "parts-instance": Task("segmentation/{}/shapenet_part.yaml", (), "instance mIoU, epoch of", ("ShapeNetPart",)),
    "parts-class": Task("segmentation/{}/shapenet_part.yaml", (), "class mIoU, epoch of", ("ShapeNetPart",)),
}
# What pre-training reads; the linear SVM after each epoch reads ModelNet40_SVM besides.
PRE_TRAINING_DATA = {"inter-mae": ("ShapeNetRender", "ModelNet40_SVM")}
USUAL_PRE_TRAINING_DATA = ("ShapeNet", "ModelNet40_SVM")
SCAN = ("scan-obj-bg", "scan-obj", "scan-pb")
FEW = tuple(f"{way}way-{shot}shot" for way, shot in FEW_SHOT)

# Task -> number, or number and published standard deviation. Authors report the best of several epochs and runs.
RESULTS: dict[str, dict[str, float | tuple[float, float]]] = {
    "point-mae": {
        "svm-modelnet40": 91.0, "modelnet40": 93.2, "modelnet40-vote": 93.8,
        **dict(zip(SCAN, (90.02, 88.29, 85.18), strict=True)),
        **dict(zip(FEW, ((96.3, 2.5), (97.8, 1.8), (92.6, 4.1), (95.0, 3.0)), strict=True)),
        "parts-instance": 86.1,
    },
    "point-m2ae": {
        "svm-modelnet40": 92.87, "svm-scan": 84.12, "modelnet40": 93.43, "modelnet40-vote": 93.96,
        **dict(zip(SCAN, (91.22, 88.81, 86.43), strict=True)),
        **dict(zip(FEW, ((96.8, 1.8), (98.3, 1.4), (92.3, 4.5), (95.0, 3.0)), strict=True)),
        "parts-class": 84.86, "parts-instance": 86.51,
    },
    "i2p-mae": {
        "svm-modelnet40": 93.35, "svm-scan": 87.09, "modelnet40": 93.67, "modelnet40-vote": 94.06,
        **dict(zip(SCAN, (94.15, 91.57, 90.11), strict=True)),
    },
    "gm3d": {
        "svm-modelnet40": 92.30, "modelnet40": 93.55, "modelnet40-vote": 94.16,
        **dict(zip(SCAN, (93.45, 90.36, 88.30), strict=True)), **dict(zip(FEW, (97.0, 98.3, 93.1, 95.2), strict=True)),
        "parts-class": 84.49, "parts-instance": 86.04,
    },
    "gm3d-point-m2ae": {
        "svm-modelnet40": 93.15, "modelnet40": 92.90, "modelnet40-vote": 93.03,
        **dict(zip(SCAN, (94.14, 91.04, 87.75), strict=True)), "parts-class": 84.91, "parts-instance": 86.52,
    },
    "pcp-mae": {
        "modelnet40": 94.1, "modelnet40-vote": 94.4, **dict(zip(SCAN, (95.52, 94.32, 90.35), strict=True)),
        **dict(zip(FEW, ((97.4, 2.3), (99.1, 0.8), (93.5, 3.7), (95.9, 2.7)), strict=True)),
        "parts-class": 84.9, "parts-instance": 86.1,
    },
    "point-jepa": {
        "svm-modelnet40": (93.7, 0.2), "modelnet40": (93.8, 0.2), "modelnet40-vote": (94.1, 0.1), "scan-obj-bg": (92.9, 0.4),
        "scan-pb": (86.6, 0.3), "parts-instance": (85.8, 0.1),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """One published number and what gives ours."""

    method: str
    task: str
    published: float
    spread: float | None

    @property
    def name(self) -> str:
        """What `tools.reproduce` calls it."""
        return f"{self.method}/{self.task}"

    @property
    def how(self) -> Task:
        """The kind of result."""
        return TASKS[self.task]

    @property
    def recipe(self) -> str:
        """Its recipe, relative to the repository."""
        return f"cfgs/{self.how.recipe.format(self.method)}"

    @property
    def pre_training(self) -> str:
        """The recipe of the weights that it starts from, relative to the repository."""
        return f"cfgs/pre-training/{self.method}.yaml"

    def data(self, *, pre_trained: bool) -> tuple[str, ...]:
        """Return the data sets that it takes; with weights at hand those of pre-training are not among them."""
        first = () if pre_trained else PRE_TRAINING_DATA.get(self.method, USUAL_PRE_TRAINING_DATA)
        return tuple(dict.fromkeys([*first, *self.how.data]))


def numbers() -> Iterator[Number]:
    """Yield all published numbers, method by method."""
    for method, results in RESULTS.items():
        for task, value in results.items():
            published, spread = value if isinstance(value, tuple) else (value, None)
            yield Number(method, task, published, spread)
