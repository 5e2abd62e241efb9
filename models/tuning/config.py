"""Keys of tuning: which part of a classifier or part segmenter trains, and what is inserted into its encoder."""

from dataclasses import dataclass
from typing import Any, Literal

from utils.errors import UserError

Kind = Literal["full", "mlp3", "linear", "lora", "gst", "dapt", "prompt"]
Target = Literal["qkv", "proj", "fc1", "fc2"]

# Kinds that freeze the encoder and insert nothing: the published head trains, or one linear layer.
FROZEN = ("mlp3", "linear")
# The keys of each kind, with their defaults; those that no paper states are marked in docs/peft.md.
DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mlp3": {},
    "linear": {},
    "lora": {"rank": 8, "alpha": None, "dropout": 0.0, "targets": ["qkv", "proj"]},
    "gst": {"rank": 36, "graphs": [1, 4], "scale": 1.0},
    "dapt": {"rank": 64, "scale": 1.0, "transform": True, "internal_prompts": True},
    "prompt": {"prompts": 10, "dropout": 0.0},
}
MOST = 4096  # rank, prompts, parts of a graph: a larger number is a mistake


@dataclass
class TuneConfig:
    """The kind of tuning and its keys; what is None takes the default of the kind."""

    kind: Kind = "full"
    rank: int | None = None  # lora, gst, dapt: width of what is inserted
    alpha: float | None = None  # lora: what is added is multiplied by alpha / rank; by default alpha is the rank
    dropout: float | None = None  # lora: of the input of what is added; prompt: of the prompts
    targets: list[Target] | None = None  # lora: linear layers of each block
    graphs: list[int] | None = None  # gst: parts of the patch graph at each of its scales; 1 = one graph of all patches
    scale: float | None = None  # gst, dapt: factor of what is added
    transform: bool | None = None  # dapt: scale and shift what each layer gives
    internal_prompts: bool | None = None  # dapt: hand a summary of what was added to the next block, as a token
    prompts: int | None = None  # prompt: tokens of each block

    def __post_init__(self):
        known = DEFAULTS[self.kind]
        for key in (key for key in vars(self) if key != "kind"):
            value = getattr(self, key)
            if key not in known:
                if value is not None:
                    raise UserError(self._foreign(key, value))
            elif value is None:
                default = known[key]
                setattr(self, key, list(default) if isinstance(default, list) else default)
        if "alpha" in known and self.alpha is None:
            self.alpha = float(self.rank)
        self._check()

    def check_head(self, head: str) -> str:
        """Return the head of a model whose key says `head`: kind linear has one layer.

        Raises:
            ValueError: kind mlp3 trains the published head, and the model has another one.
        """
        if self.kind == "mlp3" and head != "mlp3":
            raise ValueError(
                f"model.head: {head} does not go with model.tune.kind mlp3, the published head; leave it out"
            )
        return "linear" if self.kind == "linear" else head

    def _foreign(self, key: str, value: Any) -> str:
        owners = " and ".join(kind for kind, keys in DEFAULTS.items() if key in keys)
        return (
            f"model.tune.{key}: {value} is a key of {owners}, and model.tune.kind is {self.kind}; leave it out, or choose "
            "the kind with --tune"
        )

    def _check(self) -> None:
        for key, low in (("rank", 1), ("prompts", 1)):
            value = getattr(self, key)
            if value is not None and not low <= value <= MOST:
                raise UserError(f"model.tune.{key}: {value} must be {low} to {MOST}")
        for key in ("alpha", "scale"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise UserError(f"model.tune.{key}: {value} must be above 0")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"model.tune.dropout: {self.dropout} must be at least 0 and below 1")
        if self.targets is not None and (not self.targets or len(set(self.targets)) < len(self.targets)):
            raise UserError(f"model.tune.targets: {self.targets} must be one or more of qkv, proj, fc1, fc2, each once")
        if self.graphs is not None and (not self.graphs or not all(1 <= parts <= MOST for parts in self.graphs)):
            raise UserError(f"model.tune.graphs: {self.graphs} must be one or more numbers of parts, 1 to {MOST}")
