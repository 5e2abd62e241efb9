"""The keys of a recipe: names, types, defaults and what they mean. The nesting is the published one."""

from dataclasses import dataclass, field
from typing import Any, Literal

from utils.errors import UserError, suggest

# Bugs of the published runners that are fixed by default and can be switched back on (`legacy`).
RUNNER_LEGACY = ("undivided_accumulation", "double_step")


@dataclass
class OptimizerKwargs:
    """Arguments of the optimizer; what is None is left to the optimizer's own default."""

    lr: float  # highest learning rate
    weight_decay: float = 0.0  # of the group that decays
    betas: list[float] | None = None  # AdamW and Adam
    eps: float | None = None  # AdamW and Adam
    momentum: float | None = None  # SGD
    nesterov: bool | None = None  # SGD

    def __post_init__(self):
        for key in ("lr", "weight_decay", "eps", "momentum"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"kwargs.{key}: is {value}; it must not be negative")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"kwargs.betas: are {self.betas}; expected two numbers from 0 to below 1")


@dataclass
class OptimizerConfig:
    """The optimizer and which parameters decay."""

    kwargs: OptimizerKwargs
    type: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    # Learning rate of encoder block n of D, times this to the power of D - 1 - n; of a class token to that of D; of all else, whole.
    layer_decay: float | None = None
    decay_all: bool = False  # decay biases, norms and tokens too, as published for Point-JEPA
    encoder_lr: float | None = None  # with decay_all: highest learning rate of `encoder.`; None: that of all else
    token_rule: bool = (
        True  # as published: names that contain "token" do not decay, token_embed and token_prop among them
    )

    # Of class token, its position and the head of a classifier: factor of their learning rate; all of them decay then, as published.
    head_scale: float | None = None

    def __post_init__(self):
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: is {self.layer_decay}; it must lie above 0 and not above 1")
        if self.head_scale is not None and self.head_scale <= 0:
            raise ValueError(f"head_scale: is {self.head_scale}; it must be above 0")
        if self.head_scale is not None and self.layer_decay is not None:
            raise ValueError("head_scale: does not go with layer_decay, which has groups of its own; give one of them")
        if self.decay_all and (self.layer_decay is not None or self.head_scale is not None):
            raise ValueError("decay_all: does not go with layer_decay and head_scale; leave one of them out")
        if self.encoder_lr is not None and self.encoder_lr <= 0:
            raise ValueError(f"encoder_lr: is {self.encoder_lr}; it must be above 0")
        if self.encoder_lr is not None and (not self.decay_all or self.kwargs.lr == 0):
            raise ValueError("encoder_lr: is Point-JEPA's and goes with decay_all: true and a kwargs.lr above 0")


@dataclass
class SchedulerKwargs:
    """Arguments of the schedule, in epochs; each type needs some of them."""

    epochs: int | None = None  # CosLR, HalfCosine, WarmupCosine: length of the curve
    initial_epochs: int | None = None  # CosLR, HalfCosine, WarmupCosine: length of the warm-up, part of `epochs`
    min_lr: float = 0.0  # HalfCosine, WarmupCosine: where it ends
    start_lr: float = 0.0  # WarmupCosine: where the warm-up begins
    lr_decay: float | None = None  # LambdaLR: factor each `decay_step` epochs
    decay_step: float | None = None  # LambdaLR
    lowest_decay: float | None = None  # LambdaLR: smallest total factor
    step_size: int | None = None  # StepLR: factor `gamma` each `step_size` epochs
    gamma: float | None = None  # StepLR

    def __post_init__(self):
        for key in ("epochs", "decay_step", "step_size"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"kwargs.{key}: is {value}; it must be above 0")
        for key in ("initial_epochs", "min_lr", "start_lr"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"kwargs.{key}: is {value}; it must not be negative")


@dataclass
class SchedulerConfig:
    """The learning rate by epoch."""

    # "HalfCosine" is GM3D's (warm-up from 0, the cosine over what is left of `epochs`), "function" is constant.
    # "WarmupCosine" is Point-JEPA's: the warm-up begins at `start_lr` and its last epoch has the highest rate already.
    type: Literal["CosLR", "HalfCosine", "WarmupCosine", "LambdaLR", "StepLR", "function"] = "CosLR"
    kwargs: SchedulerKwargs = field(default_factory=SchedulerKwargs)
    lag: int = (
        1  # as published: epoch e runs at the rate of epoch e - lag, so epochs 0 and 1 at the same; 0 = its own rate
    )

    per_step: bool = False  # follow the curve within an epoch; published schedules are constant there

    def __post_init__(self):
        if self.lag < 0:
            raise ValueError(f"lag: is {self.lag}; it must not be negative")


@dataclass
class BNMomentumKwargs:
    """Arguments of the batch-norm momentum: max(bn_momentum * bn_decay ** (epoch / decay_step), lowest_decay)."""

    bn_decay: float
    bn_momentum: float
    decay_step: float
    lowest_decay: float


@dataclass
class BNMomentumConfig:
    """An optional schedule of the batch-norm momentum; no published recipe has one."""

    kwargs: BNMomentumKwargs
    type: Literal["Lambda"] = "Lambda"


@dataclass
class SVMDatasets:
    """The two labelled sets of the linear SVM."""

    train: Any
    test: Any


@dataclass
class DatasetsConfig:
    """Data-set entries; each becomes the dataclass of its NAME.

    In a file an entry is `{_base_: file, others: {keys}}` or has NAME and its other keys directly.
    """

    train: Any = None  # what is trained on
    val: Any = None  # evaluated during fine-tuning
    test: Any = None  # evaluated by --test
    svm: SVMDatasets | None = (
        None  # the linear SVM; GM3D's extra_train_svm and extra_test_svm are read as its two entries
    )


@dataclass
class SVMConfig:
    """How the linear SVM evaluates features."""

    # None: 0.01 while pre-training; with --test_svm what was published for method and data set, else 0.01, and 0.042 for scan.
    C: float | None = None
    cross_validate: bool = True  # also report the accuracy at a C chosen on the training features
    random_weights: bool = True  # evaluate the untrained encoder before pre-training, for comparison
    batch_size: int = 128  # clouds encoded at a time

    def __post_init__(self):
        if self.C is not None and self.C <= 0:
            raise ValueError(f"C: is {self.C}; it must be above 0")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: is {self.batch_size}; it must be at least 1")


@dataclass
class RunConfig:
    """A resolved recipe. Blocks that a task does not use may be there or not."""

    model: Any  # dataclass of the model's NAME
    dataset: DatasetsConfig = field(default_factory=DatasetsConfig)
    optimizer: OptimizerConfig | None = None  # None in recipes that do not train
    scheduler: SchedulerConfig | None = None
    bnmscheduler: BNMomentumConfig | None = None
    npoints: int | None = None  # points that the network sees in fine-tuning; pre-training takes dataset.train.npoints
    total_bs: int = 128  # clouds of a step, over all processes
    step_per_update: int = 1  # batches whose gradients are added up for one update
    max_epoch: int | None = None  # index of the last epoch
    max_epoch_inclusive: bool = True  # as published: epoch max_epoch itself still runs; false stops before it
    grad_norm_clip: float | None = None  # largest L2 norm of the gradient; None = not clipped
    # What training does to clouds: datasets/transforms.py. A model may have been published with another one.
    augmentation: Literal[
        "scale_translate",
        "uniform_scale_translate",
        "scale_translate_rotate",
        "rotate",
        "batch_rotate",
        "scale_rotate",
        "scene",
        "cuboid",
        "none",
    ] = "scale_translate"
    # What of a classifier trains: all of it, or only its head on a frozen encoder in evaluation mode: the published head (mlp3)
    # or one linear layer, which needs model.head: linear. --transfer sets both.
    transfer: Literal["full", "mlp3", "linear"] = "full"
    # Mode of an encoder that `transfer` freezes. In training, as published for PCP-MAE, batch statistics move and paths drop.
    frozen_mode: Literal["evaluation", "training"] = "evaluation"
    # Names of the classes by label. Fine-tuning fills it in from the training set, so that checkpoints can name what they predict.
    class_names: list[str] | None = None
    # Names of the parts by id, and the ids that each category has. Part segmentation fills them in, likewise.
    part_names: list[str] | None = None
    category_parts: dict[str, list[int]] | None = None
    svm: SVMConfig = field(default_factory=SVMConfig)
    # Which epoch counts, and which C of a linear SVM: the last one, the best on the test set, as published, or the best on clouds of the
    # training set that are held out; then the test set is evaluated once, in the end.
    select: Literal["best_test", "last", "held_out"] = "best_test"
    held_out: float | None = None  # share of each class that is held out; None: 0.1 with select: held_out, else none
    legacy: bool | list[str] = (
        False  # bugs of published runners to repeat (RUNNER_LEGACY); true = all; the model has its own
    )
    log_every: int = 20  # steps between lines of the log and rows of metrics.jsonl
    keep_from: int = 250  # from this epoch on a checkpoint is kept ...
    keep_every: int = 25  # ... whenever the epoch divides by this
    imports: list[str] = field(default_factory=list)  # Python files that register further NAMEs; --import adds to them
    seed: int = 0  # --seed sets it
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # --precision sets it
    # Dead keys of published files that were left out; not a key itself.
    ignored: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        lowest = {
            "npoints": 1,
            "total_bs": 1,
            "step_per_update": 1,
            "max_epoch": 0,
            "log_every": 1,
            "keep_from": 0,
            "keep_every": 1,
            "seed": 0,
        }
        for key, low in lowest.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise ValueError(f"{key}: is {value}; it must be at least {low}")
        if self.select == "held_out" and self.held_out is None:
            self.held_out = 0.1
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out: is {self.held_out}; it must lie above 0 and below 1, for example 0.1")
        if self.grad_norm_clip is not None and self.grad_norm_clip <= 0:
            raise ValueError(
                f"grad_norm_clip: is {self.grad_norm_clip}; it must be above 0, leave it out to switch clipping off"
            )
        for name in self.legacy if isinstance(self.legacy, list) else ():
            if name not in RUNNER_LEGACY:
                hint = suggest(name, RUNNER_LEGACY, what="known to the runner")
                raise UserError(f"legacy: {name!r} is unknown; {hint}. Names of the model go to model.legacy")

    def legacy_names(self) -> frozenset[str]:
        """Return the names of the runner's bugs that are switched on."""
        if isinstance(self.legacy, bool):
            return frozenset(RUNNER_LEGACY if self.legacy else ())
        return frozenset(self.legacy)
