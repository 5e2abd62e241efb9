"""Linear SVM on frozen features: during pre-training, and on demand with `--test_svm`."""

import time

import numpy as np

from datasets import CloudSet, build_dataset
from datasets.fractions import held_out_rows
from models import MODELS, load_weights
from tools.context import RunContext, build_pretraining_model
from tools.features import HeldOut, SVMResult, choose_held_out, extract_features, linear_svm
from tools.probes import PROBES
from tools.report.page import write_report
from tools.results import SELECTED_HELD_OUT, open_output, write_predictions
from utils.config.schema import DatasetsConfig, SVMDatasets
from utils.errors import UserError
from utils.log import track
from utils.metrics import confusion_matrix

# C is the published one of the method (`svm_C` of its class); where nothing is published, that of the data set, else that
# of pre-training.
PRETRAINING_C = 0.01
DATASET_C = {"scan": 0.042}
# Data set that each name of --test_svm stands for, by the NAME of its reader; "own" is that of the recipe, whichever it is.
TEST_SETS = {
    "modelnet40": "ModelNet40_SVM",
    "scan": "ScanObjectNN",
    "modelnet10": "ModelNet10",
    "synthetic": "Synthetic",
}


# Name of a recipe in cfgs/linear-svm/<method>/ where it is another one.
RECIPES = {"scan": "scan_obj-bg"}


class LinearProbe:
    """Evaluate a model by a linear SVM on the train and test sets of `dataset.svm`."""

    def __init__(self, run: RunContext, C: float, sets: SVMDatasets | None = None):
        self.run, self.C = run, C
        sets = sets or run.config.dataset.svm
        self.train, self.test = build_dataset(sets.train), build_dataset(sets.test)
        self.name = self.train.name
        self._predictions = None
        for clouds in (self.train, self.test):
            if clouds.labels is None:
                raise UserError(
                    f"dataset.svm: {clouds.name} has no labels; use a labelled set such as ModelNet40_SVM or Synthetic"
                )
        self._check()
        share = run.config.held_out
        self.held_out = None if share is None else held_out_rows(self.train, share, run.seed)

    def _check(self) -> None:
        """Raise where there is nothing to tell apart, or the two sets number their classes otherwise."""
        classes = np.unique(self.train.labels)
        if len(classes) < 2:
            name = self.train.class_names[classes[0]] if self.train.class_names else classes[0]
            raise UserError(
                f"dataset.svm: all {len(self.train)} training clouds of {self.name} are of one class ({name}); a linear SVM "
                "needs two. Add clouds of another class, or leave dataset.svm out: dataset.svm=null"
            )
        if self.train.class_names and self.test.class_names and self.train.class_names != self.test.class_names:
            raise UserError(
                f"dataset.svm: train has {len(self.train.class_names)} classes and test {len(self.test.class_names)}, or other names of "
                "them; use two splits of one set"
            )

    @classmethod
    def from_config(cls, run: RunContext) -> "LinearProbe | None":
        """Return the probe of a pre-training run, or None where the configuration has no `dataset.svm`."""
        if run.config.dataset.svm is None:
            run.log.warning("dataset.svm is missing: no linear SVM, and no ckpt-best.pth")
            return None
        return cls(run, PRETRAINING_C if run.config.svm.C is None else run.config.svm.C)

    def evaluate(self, model, *, choose: bool = False) -> SVMResult:
        """Fit on the training features and evaluate on the test features; `choose` also cross-validates C."""
        return self.evaluate_features(self.features(model), choose=choose)

    def features(self, model) -> tuple:
        """Return training features and labels, test features and labels."""
        return *self.extract(model, self.train), *self.extract(model, self.test)

    def extract(self, model, clouds: CloudSet) -> tuple:
        """Return features and labels of a set."""
        config = self.run.config.svm
        options = {
            "batch_size": config.batch_size,
            "seed": self.run.seed,
            "device": self.run.device,
            "precision": self.run.config.precision,
        }
        return extract_features(model, clouds, **options)

    def evaluate_features(self, features: tuple, *, choose: bool) -> SVMResult:
        """Fit and evaluate the linear SVM on what `features` returned."""
        result = linear_svm(*features, C=self.C, choose=choose and self.run.config.svm.cross_validate)
        self._predictions = result.predictions
        return result

    def choose(self, features: tuple) -> HeldOut:
        """Choose C on the held-out clouds of the training set; with test features, evaluate it on them as well."""
        found = choose_held_out(*features[:2], self.held_out, self.C)
        if len(features) > 2:
            found.test_accuracy = linear_svm(*features, C=found.C).accuracy
        return found

    def fit(self, features: tuple, C: float) -> SVMResult:
        """Fit on all training features with a C that was chosen, and evaluate on the test features."""
        result = linear_svm(*features, C=C)
        self._predictions = result.predictions
        return result

    def confusion(self):
        """Return (matrix, class names) of the last evaluation, or None before the first."""
        if self._predictions is None:
            return None
        names = self.test.class_names or [str(i) for i in range(int(self.test.labels.max()) + 1)]
        return confusion_matrix(self._predictions, self.test.labels, len(names)), names

    def describe(self, result: SVMResult) -> str:
        """Say a result in one line, with the words of the published logs."""
        text = f"Linear Accuracy : {result.accuracy:.4f} ({self.name}, C {result.C:g})"
        if result.chosen_C is not None:
            text += f", {result.chosen_accuracy:.4f} at C {result.chosen_C:g} chosen by cross-validation on the training features"
        return text


def run_svm(run: RunContext) -> dict[str, float]:
    """Evaluate a pre-trained checkpoint (`--test_svm`), and write a time-stamped folder with the report.

    Returns accuracies in percent by what they are.

    Raises:
        UserError: the recipe's data set is another one than `--test_svm` names, or the checkpoint does not fit.
    """
    config, args = run.config, run.args
    sets = _sets(config.dataset)
    name = sets.train.NAME
    if not name.startswith(TEST_SETS.get(args.test_svm, name)):
        raise UserError(
            f"--test_svm {args.test_svm}: the recipe evaluates on {name}; run {_command(run)}, or --test_svm own to evaluate on {name}"
        )
    # Which of the published sets it is, if any.
    known = next((known for known, reader in TEST_SETS.items() if name.startswith(reader)), args.test_svm)
    model = build_pretraining_model(run)
    run.log.info(f"{args.ckpts}: {load_weights(model, args.ckpts)}")
    usual = DATASET_C.get(known, PRETRAINING_C)
    C = model.svm_C.get(known, usual) if config.svm.C is None else config.svm.C
    probe = LinearProbe(run, C, sets)
    started = time.perf_counter()
    features = probe.features(model)
    run.log.info(
        f"features of {len(features[0])} + {len(features[2])} clouds extracted; fitting the linear SVM, C {C:g}"
    )
    result = probe.evaluate_features(features, choose=True)
    run.log.info(probe.describe(result))
    others = {}
    for name in track(args.probe, "other probes"):
        others[f"{name} on {probe.name}"], setting = PROBES[name](*features)
        run.log.info(f"{name} accuracy: {others[f'{name} on {probe.name}']:.4f} ({probe.name}, {setting})")
    results = {f"linear SVM on {probe.name}, C {result.C:g}": 100 * result.accuracy}
    shown = {f"Accuracy of {name}": f"{100 * value:.2f} %" for name, value in others.items()}
    if probe.held_out is not None:
        found = probe.choose(features)
        shown[f"Accuracy at C {SELECTED_HELD_OUT}"] = f"{100 * found.test_accuracy:.2f} % (C {found.C:g})"
        results[f"linear SVM on {probe.name}, C {SELECTED_HELD_OUT}"] = 100 * found.test_accuracy
        run.log.info(f"C {found.C:g}, {SELECTED_HELD_OUT}: {100 * found.test_accuracy:.2f} % on {probe.name}")
    _write(run, probe, result, shown, time.perf_counter() - started)
    if result.chosen_C is not None:
        results[f"linear SVM on {probe.name}, cross-validated C"] = 100 * result.chosen_accuracy
    return results | {name: 100 * value for name, value in others.items()}


def _sets(entries: DatasetsConfig) -> SVMDatasets:
    """Return the two sets that features are evaluated on: those of `svm`, else what a recipe trains and evaluates on.

    Raises:
        UserError: the recipe has no set to train on, or none that is held out.
    """
    held_out = entries.test or entries.val
    if entries.svm is not None or entries.train is None or held_out is None:
        if entries.svm is None:
            raise UserError(
                "--test_svm: the recipe has no dataset.svm, and no train and test entry instead; add them, or use one of cfgs/linear-svm/"
            )
        return entries.svm
    return SVMDatasets(entries.train, held_out)


def _command(run: RunContext) -> str:
    """Return the command that evaluates a checkpoint on the set of --test_svm."""
    args, method = run.args, MODELS.entry(run.config.model.NAME).target.method
    recipe = f"cfgs/linear-svm/{method}/{RECIPES.get(args.test_svm, args.test_svm)}.yaml"
    return f"python main.py --config {recipe} --test_svm {args.test_svm} --ckpts {args.ckpts}"


def _write(run: RunContext, probe: LinearProbe, result: SVMResult, shown: dict[str, str], seconds: float) -> None:
    folder = open_output(run, f"svm_{run.args.test_svm}")
    write_predictions(folder, probe.test, result.predictions)
    summary = {
        "Linear SVM accuracy": f"{100 * result.accuracy:.2f} %",
        "C": f"{result.C:g}",
        "Accuracy at cross-validated C": f"{100 * result.chosen_accuracy:.2f} % (C {result.chosen_C:g})"
        if result.chosen_C
        else "not computed",
        **shown,
        "Test clouds": str(len(probe.test)),
        "Checkpoint": str(run.args.ckpts),
        "Seconds": f"{seconds:.1f}",
    }
    path = write_report(
        folder,
        config=run.config_dict(),
        confusion=probe.confusion(),
        summary=summary,
        title=f"Linear SVM on {probe.name}: {run.args.exp_name}",
    )
    run.log.info(f"report: {path}")
