"""Point-JEPA: predict in latent space what a teacher says of parts of a cloud (arXiv 2404.16432, WACV 2025).

Tokens are put into an order in which neighbours in the sequence are neighbours in space. A teacher, the moving average of the student's
transformer, encodes all of them; contiguous blocks of its output are the targets. The student encodes one contiguous block of what these
leave over, the context. A narrow predictor is given the context and the centres of a target block, and predicts the teacher's features.
Nothing is rebuilt.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `C` channels, `D` of the predictor, `M` target blocks of `k` positions,
`n` positions of the context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ball_query, gather
from models.base import PretrainingModel
from models.classifier import HEAD_DROPOUT, HEAD_WIDTH, POOLINGS, Classifier, ClassifierKeys, Pooling
from models.layers.drop import Dropout
from models.layers.embed import PatchEmbed, position_embed
from models.layers.group import Pyramid, group_pyramid
from models.layers.norm import BatchNorm, PointwiseConv
from models.layers.propagate import PointPropagation
from models.layers.transformer import Blocks, Stack, drop_path_rates
from models.losses import at_least_float
from models.registry import MODELS
from models.segmenter import LEAK, LINEAR, PartSegmenter, SegmenterKeys, Tokens
from models.single_scale import POSITION_HIDDEN, PatchesConfig, SingleScaleConfig, check_heads
from models.teachers import EmaTeacher, feature_spread
from models.transforms import TransformKeys, draw_starts, sample_from, transform
from utils.device import send

METHOD = "point-jepa"
MORTON_BITS = 21
COPIES = 2  # first updates of the teacher, which copy the student
LOSSES = ("smooth_l1", "mse")
# Over which dimensions of features (B, G, C) a norm without weights runs.
NORMS = {"layer": (2,), "instance": (1,), "group": (1, 2), "batch": (0, 1)}
# Of a pre-training checkpoint, without a place in what is fine-tuned.
PRETRAINING_KEYS = ("mask_token", "predictor.", "teacher.", "regressor.", "decoder.")

POOLINGS |= {
    "max,mean": Pooling(lambda tokens: torch.cat([tokens.amax(1), tokens.mean(1)], dim=-1), widths=2),
    "class": Pooling(lambda tokens: tokens[:, 0]),
    "class,max,mean": Pooling(
        lambda tokens: torch.cat([tokens[:, 0], tokens[:, 1:].amax(1), tokens[:, 1:].mean(1)], dim=-1), widths=3
    ),
}


# Tokens.


@dataclass
class JEPAEncoderConfig(SingleScaleConfig, PatchesConfig, TransformKeys):
    """Keys of tokeniser and encoder, wherever they are; defaults as published for pre-training."""

    # What tells a task and not the encoder: fine-tuning does not take these from a checkpoint.
    task_keys: ClassVar[tuple[str, ...]] = (
        "dropout",
        "attention_dropout",
        *(name for name in TransformKeys.__dataclass_fields__),
    )

    drop_path_rate: float = 0.25
    dropout: float = 0.1
    attention_dropout: float = 0.05
    group_radius: float | None = None  # members within it, divided by it, in place of the nearest ones

    def __post_init__(self):
        super().__post_init__()
        self.check_patches()
        self.check_transforms()
        for key in ("drop_path_rate", "dropout", "attention_dropout"):
            check_share(f"model.{key}", getattr(self, key))
        if self.group_radius is not None and self.group_radius <= 0:
            raise ValueError(f"model.group_radius: {self.group_radius} must be above 0, or null for nearest neighbours")


def check_share(key: str, value: float) -> None:
    """Raise a ValueError unless a number lies between 0 and 1, 1 excepted."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}: {value} must be at least 0 and below 1")


class UnbiasedConv(PointwiseConv):
    """A 1x1 convolution before a norm whose bias is zero and no parameter, as the kernels take one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, bias=False, before_norm=True)
        del self.bias
        self.register_buffer("bias", torch.zeros(out_channels), persistent=False)


class Tokenizer(nn.Module):
    """The mini-PointNet under its published name, without biases before its norms."""

    def __init__(self, config: JEPAEncoderConfig):
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.encoder = embed = PatchEmbed(3, config.trans_dim, widths=tuple(config.embed_widths))
        for layers in (embed.first_conv, embed.second_conv):
            layers[0] = UnbiasedConv(layers[0].in_channels, layers[0].out_channels)

    def forward(self, members: Tensor) -> Tensor:
        """Embed members (B, G, K, 3) as tokens (B, G, C)."""
        return self.embedding.encoder(members)


class Transformer(Blocks):
    """Blocks and a norm behind them; the position is added before every block.

    Args:
        ramp: drop paths that rise over the blocks; else the same rate in all.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        drop_path: float,
        dropout: float,
        attention_dropout: float,
        ramp: bool = True,
    ):
        rates = drop_path_rates(drop_path, depth) if ramp else [drop_path] * depth
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        super().__init__(width, num_heads, drop_paths=rates, attention_first=True, qkv_bias=True, **drops)
        self.norm = nn.LayerNorm(width)

    def encode(self, x: Tensor, position: Tensor) -> Tensor:
        """Run tokens (B, L, C) with positions of this shape, or that broadcast to it, through blocks and norm."""
        return self.norm(self(x, position))


class JEPAParts:
    """What all models of the method share: how clouds are transformed and grouped, and the encoder's parts.

    Class attributes:
        encoder_name: what the transformer is called.
    """

    encoder_name: ClassVar[str] = "encoder"
    skips_origin: ClassVar[bool] = False

    def build_tokenizer(self, config: JEPAEncoderConfig) -> None:
        """Create `tokenizer`."""
        self.tokenizer = Tokenizer(config)

    def build_position(self, config: JEPAEncoderConfig) -> None:
        """Create `positional_encoding`."""
        self.positional_encoding = position_embed(config.trans_dim, POSITION_HIDDEN)

    def build_transformer(self, config: JEPAEncoderConfig) -> None:
        """Create the transformer."""
        transformer = Transformer(
            config.trans_dim,
            config.depth,
            config.num_heads,
            drop_path=config.drop_path_rate,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        setattr(self, self.encoder_name, transformer)

    def transform(self, points: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Transform points (B, N, 3): with a generator as in training, else as in evaluation."""
        config = self.config
        names = config.val_transformations if generator is None else config.train_transformations
        return transform(points, names, config, generator=self._global(generator))

    def group(
        self, points: Tensor, *, generator: torch.Generator | None = None, starts: Tensor | None = None
    ) -> Pyramid:
        """Group points (B, N, 3): farthest point sampling that knows no origin, nearest neighbours or those within a radius.

        Args:
            generator: draws where sampling begins in each cloud; without one it begins at index 0, so that evaluation can be repeated,
                or, with `random_starts` in `legacy`, wherever PyTorch's own generator says.
            starts: (B,) int64 to replay.
        """
        self.check_dtype()
        config = self.config
        starts = draw_starts(points, self._global(generator)) if starts is None else starts
        pyramid = group_pyramid(
            points,
            config.num_groups,
            config.group_sizes,
            dtype=self.dtype,
            sample=lambda members, counts: [sample_from(members, counts[0], starts)],
        )
        return pyramid if config.group_radius is None else self._within(points.to(self.dtype), pyramid)

    def _global(self, generator: torch.Generator | None) -> torch.Generator | None:
        """Return a generator, or PyTorch's own in place of none where evaluation is random, as published."""
        return torch.default_generator if generator is None and "random_starts" in self.legacy else generator

    def _within(self, points: Tensor, pyramid: Pyramid) -> Pyramid:
        """Return groups of the same centres whose members lie within the radius, as shares of it."""
        centers, radius, size = pyramid.centers[0], self.config.group_radius, self.config.group_size
        with torch.no_grad():
            idx = ball_query(centers, points, radius, size)  # (B, G, K)
        members = gather(points, idx.flatten(1)).unflatten(1, idx.shape[1:])
        return Pyramid([centers], [idx], [(members - centers.unsqueeze(2)) / radius])

    def embed(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Return tokens and positions (B, G, C) of all groups."""
        return self.tokenizer(pyramid.neighborhoods[0]), self.positional_encoding(pyramid.centers[0])


# The order.


@torch.no_grad()
def greedy_order(centers: Tensor, *, from_minimum: bool = True) -> Tensor:
    """Order centers (B, G, 3): always the nearest one that is left, the lowest index of several; (B, G) int64.

    Args:
        from_minimum: begin with the smallest sum of coordinates; else with index 0.
    """
    B, G, _ = centers.shape
    distances = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")  # (B, G, G)
    current = centers.sum(-1).argmin(1) if from_minimum else torch.zeros(B, dtype=torch.int64, device=centers.device)
    order, used = [current], torch.zeros(B, G, dtype=torch.bool, device=centers.device)
    for _ in range(G - 1):
        used = used.scatter(1, current.unsqueeze(1), True)
        row = distances.gather(1, current.view(B, 1, 1).expand(B, 1, G)).squeeze(1)
        current = row.masked_fill(used, math.inf).argmin(1)
        order.append(current)
    return torch.stack(order, dim=1)


@torch.no_grad()
def morton_order(centers: Tensor) -> Tensor:
    """Order centers (B, G, 3) along Morton's curve, large coordinates first, as published: (B, G) int64."""
    lowest = (centers.amin((1, 2), keepdim=True) - 0.5).abs()
    cells = (2**MORTON_BITS - 256 * (centers + lowest)).round().long()  # (B, G, 3)
    code = torch.zeros_like(cells[..., 0])
    for bit in range(MORTON_BITS):
        for axis in range(3):
            code |= ((cells[..., axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(dim=1, stable=True)


ORDERS = {
    "iterative_nearest_min_start": greedy_order,
    "iterative_nearest": lambda centers: greedy_order(centers, from_minimum=False),
    "morton": morton_order,
}


# Blocks.


class BlockArea(NamedTuple):
    """Positions in the order that are targets and context, the same in all clouds of a batch."""

    targets: Tensor  # (M, k) int64
    context: Tensor  # (n,) int64


@dataclass
class BlockKeys:
    """Keys of the blocks; names and defaults as published."""

    token_seq_method: Literal["iterative_nearest_min_start", "iterative_nearest", "morton"] = (
        "iterative_nearest_min_start"
    )
    target_sample_method: Literal["contiguous", "random"] = "contiguous"
    num_targets_per_sample: int = 4
    target_sample_ratio: list[float] = field(default_factory=lambda: [0.15, 0.2])
    context_sample_method: Literal["contiguous", "rest", "random"] = "contiguous"
    context_sample_ratio: list[float] = field(default_factory=lambda: [0.4, 0.75])

    def check_blocks(self, groups: int) -> None:
        """Raise a ValueError where blocks do not fit the groups, or may leave nothing for the context."""
        for key in ("target_sample_ratio", "context_sample_ratio"):
            ratio = getattr(self, key)
            if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] <= 1:
                raise ValueError(f"model.{key}: {ratio} must be two numbers, the lower first, above 0 and not above 1")
        low, high = self.target_sample_ratio
        blocks = self.num_targets_per_sample
        if blocks < 1:
            raise ValueError(f"model.num_targets_per_sample: {blocks} must be at least 1")
        if int(low * groups) < 1:
            raise ValueError(
                f"model.target_sample_ratio: {low} of {groups} groups is less than one; raise it, or model.num_group"
            )
        longest = int(high * groups) if low == high else max(math.ceil(high * groups) - 1, int(low * groups))
        if blocks * longest >= groups:
            raise ValueError(
                f"model.target_sample_ratio: {blocks} target blocks of up to {longest} may cover all {groups} groups and leave no context; "
                f"lower it, or model.num_targets_per_sample, or raise model.num_group"
            )


def draw_blocks(
    groups: int, keys: BlockKeys, *, faulty_random: bool = False, generator: torch.Generator | None = None
) -> BlockArea:
    """Draw targets and context among `groups` positions of the order, on the CPU.

    All target blocks have one length. The context is drawn from the positions that no target covers: so many that follow each other
    there, all, or any.

    Args:
        faulty_random: as published, context method "random" takes places among the positions that are left for positions themselves.
    """
    length = max(1, int(groups * _draw_ratio(keys.target_sample_ratio, generator)))
    if keys.target_sample_method == "contiguous":
        starts = [_draw_start(groups - length, generator) for _ in range(keys.num_targets_per_sample)]
        targets = torch.stack([torch.arange(start, start + length) for start in starts])
    else:
        drawn = [torch.randperm(groups, generator=generator) for _ in range(keys.num_targets_per_sample)]
        targets = torch.stack(drawn)[:, :length]
    left = torch.ones(groups, dtype=torch.bool).index_fill(0, targets.flatten(), False).nonzero()[:, 0]
    if keys.context_sample_method == "rest":
        return BlockArea(targets, left)
    count = max(1, int(_draw_ratio(keys.context_sample_ratio, generator) * len(left)))
    if keys.context_sample_method == "contiguous":
        start = _draw_start(len(left) - count, generator)
        return BlockArea(targets, left[start : start + count])
    places = torch.randperm(len(left), generator=generator)[:count]
    return BlockArea(targets, places if faulty_random else left[places])


def _draw_ratio(bounds: Sequence[float], generator: torch.Generator | None) -> float:
    return (bounds[0] + torch.rand(1, generator=generator) * (bounds[1] - bounds[0])).item()


def _draw_start(last: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(last + 1, (1,), generator=generator))


# Teacher and predictor.


@dataclass
class TeacherKeys:
    """Keys of the teacher and of what is made of its features; names and defaults as published."""

    target_layers: list[int] | None = None  # blocks, from 0; published [11], the last one
    target_layer_part: Literal["final", "ffn"] = "final"  # what a block gives, or its MLP alone
    target_layer_norm: Literal["layer", "instance", "group", "batch"] | None = "layer"  # of each of several layers
    target_norm: Literal["layer", "instance", "group", "batch"] | None = None  # of their mean
    ema_tau_min: float = 0.9995
    ema_tau_max: float = 0.99999
    ema_tau_epochs: int = 500  # over which the momentum rises from the one to the other

    def check_teacher(self, depth: int) -> None:
        """Raise a ValueError that names a key with a bad value."""
        if self.target_layers is None:
            self.target_layers = [depth - 1]
        if not self.target_layers or not all(0 <= layer < depth for layer in self.target_layers):
            raise ValueError(f"model.target_layers: {self.target_layers} must be blocks from 0 to {depth - 1}")
        for key in ("ema_tau_min", "ema_tau_max"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"model.{key}: the momentum {getattr(self, key)} must lie between 0 and 1")
        if self.ema_tau_min > self.ema_tau_max:
            raise ValueError(
                f"model.ema_tau_min: {self.ema_tau_min} must not be above model.ema_tau_max {self.ema_tau_max}"
            )
        if self.ema_tau_epochs < 1:
            raise ValueError(f"model.ema_tau_epochs: {self.ema_tau_epochs} must be at least 1")


def momentum(number: int, lowest: float, highest: float, steps: float) -> float:
    """Return the momentum of the teacher's update `number`, from 1: it rises linearly over `steps` updates; 0 at the first."""
    done = number - 1
    if done <= 0:
        return 0.0
    return min(max(lowest + (highest - lowest) * done / steps, lowest), highest) if done < steps else highest


class Teacher(EmaTeacher):
    """The moving average of the student's transformer, with its published names; `online_model` is the student itself.

    Note:
        As published the first two updates copy the student.
    """

    average_name = "ema_model"

    def __init__(self, student: Transformer):
        super().__init__(student)
        self.register_buffer("initted", torch.zeros(1))
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))
        average = self._modules.pop(self.average_name)
        self.online_model, self.ema_model = student, average  # in the published order
        self._updates: int | None = None  # `step` on the host

    @property
    def updates(self) -> int:
        """How often it has followed the student."""
        if self._updates is None:
            self._updates = int(self.step)
        return self._updates

    def follow(self, lowest: float, highest: float, steps: float) -> float:
        """Follow the student after a step of the optimizer; returns the momentum, see `momentum`."""
        number = self.updates + 1
        decay = momentum(number, lowest, highest, steps)
        self.update(self.online_model, 0.0 if number <= COPIES else decay)
        self.initted.fill_(1)
        self.step.fill_(number)
        self._updates = number
        return decay

    def copy_student(self) -> None:
        """Begin as the student is."""
        self.update(self.online_model, 0.0)

    def layers(self, x: Tensor, position: Tensor, wanted: Sequence[int], *, part: str = "final") -> list[Tensor]:
        """Return what the blocks `wanted` give of tokens (B, G, C), or with part "ffn" what their MLPs do, without the final norm."""
        found = {}
        for number, block in enumerate(self.average.blocks[: max(wanted) + 1]):
            if part == "ffn" and number in wanted:
                middle = x + position + block.attn(block.norm1(x + position))
                found[number] = block.mlp(block.norm2(middle))
                x = middle + found[number]
            else:
                x = block(x + position)
                found[number] = x
        return [found[number] for number in wanted]

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._updates = None
        super()._load_from_state_dict(*args, **kwargs)


def normalise(features: Tensor, kind: str | None) -> Tensor:
    """Give features (B, G, C) mean 0 and variance 1 over the dimensions of a kind of `NORMS`; None leaves them as they are."""
    if kind is None:
        return features
    mean = features.mean(NORMS[kind], keepdim=True)
    variance = features.var(NORMS[kind], keepdim=True, correction=0)
    return (features - mean) / (variance + 1e-5).sqrt()


@dataclass
class PredictorKeys:
    """Keys of the predictor; names and defaults as published."""

    predictor_embed_dim: int = 192
    predictor_depth: int = 6
    predictor_heads: int = 6
    predictor_drop_out: float = 0.1
    predictor_attention_dropout: float = 0.05
    predictor_drop_path_rate: float = 0.25
    predictor_add_target_pos: bool = True
    predictor_add_pos_at_every_layer: bool = False

    def check_predictor(self) -> None:
        """Raise a ValueError that names a key with a bad value."""
        if self.predictor_depth < 1:
            raise ValueError(f"model.predictor_depth: {self.predictor_depth} must be at least 1")
        check_heads(self.predictor_embed_dim, self.predictor_heads, "model.predictor_heads", "predictor_embed_dim")
        for key in ("predictor_drop_out", "predictor_attention_dropout", "predictor_drop_path_rate"):
            check_share(f"model.{key}", getattr(self, key))


class Predictor(nn.Module):
    """Predict the features of target blocks from the context and from where the targets are.

    Args:
        channels: C, of the encoder.
        ramp: as in `Transformer`.
    """

    def __init__(self, config: PredictorKeys, channels: int, *, ramp: bool):
        super().__init__()
        width = config.predictor_embed_dim
        self.knows_place, self.every_layer = config.predictor_add_target_pos, config.predictor_add_pos_at_every_layer
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predictor_embed = nn.Linear(channels, width)
        self.positional_encoding = position_embed(width, POSITION_HIDDEN)
        self.predictor_norm = nn.LayerNorm(width)  # unused, as published
        self.predictor_proj = nn.Linear(width, channels)
        self.predictor = Transformer(
            width,
            config.predictor_depth,
            config.predictor_heads,
            drop_path=config.predictor_drop_path_rate,
            dropout=config.predictor_drop_out,
            attention_dropout=config.predictor_attention_dropout,
            ramp=ramp,
        )

    def forward(self, context: Tensor, centers: Tensor, places: Tensor) -> Tensor:
        """Predict each block by itself, all of them in one batch.

        Args:
            context: (B, n, C) encoded, of the groups at centers (B, n, 3).
            places: (B, M, k, 3), the centres of the target blocks.

        Returns (M, B, k, C).
        """
        B, M, k, _ = places.shape
        shown = self.predictor_embed(context)  # (B, n, D)
        wanted = self.mask_token.to(shown.dtype).expand(B * M, k, -1)
        where = self.positional_encoding(centers)
        there = self.positional_encoding(places.flatten(0, 1))  # (B * M, k, D)
        there = there if self.knows_place else torch.zeros_like(there)
        tokens, position = (
            torch.cat([part.repeat_interleave(M, dim=0), rest.to(part.dtype)], dim=1)
            for part, rest in ((shown, wanted), (where, there))
        )  # (B * M, n + k, D)
        if not self.every_layer:
            tokens, position = tokens + position, position.new_zeros(())
        tokens = self.predictor.encode(tokens, position)[:, -k:]
        return self.predictor_proj(tokens).unflatten(0, (B, M)).transpose(0, 1)


# Pre-training.


@dataclass
class PointJEPAConfig(JEPAEncoderConfig, BlockKeys, TeacherKeys, PredictorKeys):
    """Keys of Point-JEPA pre-training; defaults as published."""

    NAME: str = "Point_JEPA"
    loss: str = "smooth_l1"
    loss_beta: float = 2.0  # of smooth_l1, where it changes from a square to a line

    def __post_init__(self):
        super().__post_init__()
        self.check_blocks(self.num_group)
        self.check_teacher(self.depth)
        self.check_predictor()
        if self.loss not in LOSSES:
            raise ValueError(f"model.loss: {self.loss!r} is unknown; choose from {', '.join(LOSSES)}")
        if self.loss_beta <= 0:
            raise ValueError(f"model.loss_beta: {self.loss_beta} must be above 0")


@MODELS.register("Point_JEPA", config=PointJEPAConfig)
class PointJEPA(JEPAParts, PretrainingModel):
    """Encode a context block, and predict from it what the teacher says of the target blocks.

    The teacher is a part of the model, as in published checkpoints; `tools/guides/point_jepa.py` lets it follow the student.

    Note:
        `mask_token` and `predictor.predictor_norm` are unused, as published.
    """

    method = METHOD
    LEGACY = ("random_context_positions", "constant_predictor_drop_path", "half_context", "random_starts")
    own_keys = ("tokenizer.embedding.encoder.",)
    missing_keys = ("teacher.",)
    svm_C: ClassVar = {"modelnet40": 0.012, "scan": 0.012}
    encoder_name = "student"

    def __init__(self, config: PointJEPAConfig):
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(config.trans_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.build_position(config)
        self.build_tokenizer(config)
        self.build_transformer(config)
        self.predictor = Predictor(config, config.trans_dim, ramp="constant_predictor_drop_path" not in self.legacy)
        self.teacher = Teacher(self.student)

    @property
    def data_dependent(self) -> str | None:
        """Why shapes follow what is drawn on every device."""
        return "the blocks have another length in each step"

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> BlockArea:
        """Draw the blocks of a batch; every process draws the same ones."""
        groups, faulty = pyramid.centers[0].shape[1], "random_context_positions" in self.legacy
        drawn = draw_blocks(groups, self.config, faulty_random=faulty, generator=generator)
        return BlockArea(*(send(positions, pyramid.centers[0].device) for positions in drawn))

    def forward(
        self,
        points: Tensor,
        masked: BlockArea | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Order, teach, encode, predict, compare.

        Args:
            points: (B, N, 3).
            masked: blocks to replay; default: drawn from `generator`.
            pyramid: what `group` makes of these points, if it is known.

        Returns:
            dict with the scalar "loss"; of it nothing but "log_pred_std", "log_target_std" and "log_target_rank", which tell a collapse;
            "order" (B, G), "prediction" and "target" (M, B, k, C), and the blocks, "targets" (M, k) and "context" (n,).

        Raises:
            ValueError: bad points, blocks that do not fit the groups, or targets, which this method makes itself.
        """
        if targets is not None:
            raise ValueError(f"{self.method}: its teacher is a part of it; pass None as targets")
        pyramid = self.group(points, generator=generator) if pyramid is None else pyramid
        blocks = self.draw_mask(pyramid, generator=generator) if masked is None else self._checked(masked, pyramid)
        centers = pyramid.centers[0]
        order = ORDERS[self.config.token_seq_method](centers)  # (B, G)
        tokens, position = self.embed(pyramid)
        centers, tokens, position = (gather(values, order) for values in (centers, tokens, position))
        taught = self.teach(tokens, position)  # (B, G, C)

        context = tokens[:, blocks.context]
        if "half_context" in self.legacy:
            context = context.half().to(context.dtype)
        encoded = self.student.encode(context, position[:, blocks.context])  # (B, n, C)
        prediction = self.predictor(encoded, centers[:, blocks.context], centers[:, blocks.targets])
        target = taught[:, blocks.targets].transpose(0, 1)  # (M, B, k, C)
        return {"loss": self.compare(prediction, target), **self._spread(prediction, target, taught)} | {
            "order": order, "prediction": prediction, "target": target, **blocks._asdict()
        }  # fmt: skip

    @torch.no_grad()
    def teach(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Return the targets (B, G, C) of all tokens: features of the teacher, whose layers are normed and averaged."""
        config = self.config
        layers = self.teacher.layers(tokens, position, config.target_layers, part=config.target_layer_part)
        layers = [normalise(at_least_float(layer), config.target_layer_norm) for layer in layers]
        return normalise(torch.stack(layers).mean(0), config.target_norm)

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compare predictions with targets (M, B, k, C): the mean over everything."""
        prediction, target = at_least_float(prediction), at_least_float(target)
        if self.config.loss == "mse":
            losses = F.mse_loss(prediction, target, reduction="none")
        else:
            losses = F.smooth_l1_loss(prediction, target, reduction="none", beta=self.config.loss_beta)
        return losses.mean()

    def _checked(self, blocks: BlockArea, pyramid: Pyramid) -> BlockArea:
        """Return blocks on the device of a pyramid.

        Raises:
            ValueError: they are none.
        """
        shaped = isinstance(blocks, BlockArea) and blocks.targets.dim() == 2 and blocks.context.dim() == 1
        if not shaped or not blocks.context.numel() or not blocks.targets.numel():
            raise ValueError(
                f"{self.method}: masked must be blocks, (M, k) targets and (n,) context, that are not empty; draw_mask makes them"
            )
        return BlockArea(*(send(positions, pyramid.centers[0].device) for positions in blocks))

    @torch.no_grad()
    def _spread(self, prediction: Tensor, target: Tensor, taught: Tensor) -> dict[str, Tensor]:
        """Return scalars of the log that tell a collapse."""
        return {
            "log_pred_std": feature_spread(prediction).deviation,
            "log_target_std": feature_spread(target).deviation,
            "log_target_rank": feature_spread(taught).rank,
        }

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as normed tokens (B, G, C), in the order of the groups."""
        return self.student.encode(*self.embed(self.group(points) if pyramid is None else pyramid))

    def pool(self, tokens: Tensor) -> Tensor:
        """Sum tokens (B, G, C) of a cloud up as features (B, 2 C) for a linear SVM: their maximum and mean."""
        return POOLINGS["max,mean"].pool(tokens)


# Fine-tuning.


@dataclass
class JEPATaskConfig(JEPAEncoderConfig):
    """Keys of encoder, tokens and transforms of what is fine-tuned; defaults as published for ModelNet40."""

    drop_path_rate: float = 0.2
    dropout: float = 0.0
    attention_dropout: float = 0.0
    train_transformations: list[str] = field(default_factory=lambda: ["subsample", "scale", "center", "unit_sphere"])
    val_transformations: list[str] = field(default_factory=lambda: ["center", "unit_sphere"])
    transformation_scale_min: float = 0.6
    transformation_scale_max: float = 1.4
    encoder_unfreeze_epoch: int = 0  # up to it the transformer is frozen; tokeniser and positions train from the start
    encoder_freeze_layers: list[int] | None = None  # blocks, from 0, that never train
    encoder_unfreeze_layers: list[int] | None = None  # the only blocks that thaw; None: all
    encoder_unfreeze_stepwise: bool = False  # thaw some blocks in each epoch from then on, from the last one backwards
    encoder_unfreeze_stepwise_num_layers: int = 2  # how many

    def __post_init__(self):
        super().__post_init__()
        for key, least in (("encoder_unfreeze_epoch", 0), ("encoder_unfreeze_stepwise_num_layers", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"model.{key}: {getattr(self, key)} must be at least {least}")
        for key in ("encoder_freeze_layers", "encoder_unfreeze_layers"):
            if not set(getattr(self, key) or ()) <= set(range(self.depth)):
                raise ValueError(f"model.{key}: {getattr(self, key)} must be blocks from 0 to {self.depth - 1}")
        both = set(self.encoder_freeze_layers or ()) & set(self.encoder_unfreeze_layers or ())
        if both:
            raise ValueError(f"model.encoder_freeze_layers: {sorted(both)} are in model.encoder_unfreeze_layers too")

    def trained_blocks(self, epoch: int) -> set[int]:
        """Return the transformer's blocks that train in an epoch."""
        thawed = epoch - self.encoder_unfreeze_epoch  # epochs before this one
        if thawed < 0:
            return set()
        chosen = range(self.depth) if self.encoder_unfreeze_layers is None else self.encoder_unfreeze_layers
        blocks = sorted(set(chosen) - set(self.encoder_freeze_layers or ()))
        if self.encoder_unfreeze_stepwise:
            blocks = blocks[max(len(blocks) - (thawed + 1) * self.encoder_unfreeze_stepwise_num_layers, 0) :]
        return set(blocks)


class JEPATask(JEPAParts):
    """What classifier and part segmenter share: `tokenizer`, `positional_encoding` and `encoder`, which may be frozen at first."""

    method = METHOD
    LEGACY = ("random_starts",)
    own_keys = ("tokenizer.embedding.encoder.",)
    ignored_keys = PRETRAINING_KEYS
    renamed_keys = (("student.", "encoder."),)

    @property
    def data_dependent(self) -> str | None:
        """Why what is computed changes within a run."""
        epoch = self.config.encoder_unfreeze_epoch
        if self.config.encoder_unfreeze_stepwise:
            return f"blocks of the encoder thaw one after the other from epoch {epoch} on"
        return f"the encoder is frozen until epoch {epoch}" if epoch else None

    @property
    def subsamples(self) -> bool:
        """Whether `transform` chooses the points that the model trains on."""
        return "subsample" in self.config.train_transformations

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks, one stack."""
        return [Stack(self.encoder, self.positional_encoding)]

    def build_parts(self, config: JEPATaskConfig) -> None:
        """Create the encoder's parts, in the published order."""
        self.build_tokenizer(config)
        self.build_position(config)
        self.build_transformer(config)

    def begin_epoch(self, epoch: int) -> bool:
        """Freeze or thaw blocks of the transformer, which stays in training mode; return whether that changed.

        Its norm trains with any of them.
        """
        trained = self.config.trained_blocks(epoch)
        parts = [(self.encoder.norm, bool(trained))]
        parts += [(block, number in trained) for number, block in enumerate(self.encoder.blocks)]
        changed = any(parameter.requires_grad != wanted for part, wanted in parts for parameter in part.parameters())
        for part, wanted in parts:
            part.requires_grad_(wanted)
        return changed


@dataclass
class PointJEPAClassifierConfig(JEPATaskConfig, ClassifierKeys):
    """Keys of Point-JEPA's classifier; defaults as published for ModelNet40."""

    NAME: str = "PointJepaClassification"
    pooling: str = "max,mean"
    smooth: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_classifier()


@MODELS.register("PointJepaClassification", config=PointJEPAClassifierConfig)
class PointJEPAClassifier(JEPATask, Classifier):
    """Fine-tune Point-JEPA's encoder to classify; with a pooling of `POOLINGS` that begins with "class", with a class token."""

    HEAD = ("cls_head.",)
    head_name = "cls_head"
    published_rounds = 300
    votes_by_groups = True
    missing_keys = (*HEAD, "cls_token", "cls_pos")

    def build_encoder_parts(self, config: PointJEPAClassifierConfig) -> int:
        """Create the encoder's parts, and the class token where it is pooled; return the width of the tokens."""
        if config.pooling.startswith("class"):
            self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(config.trans_dim)) for _ in range(2))
            for parameter in (self.cls_token, self.cls_pos):
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
        self.build_parts(config)
        return config.trans_dim

    def build_head(self, width: int, classes: int) -> nn.Sequential:
        """Return the published head: without biases before its norms."""
        return nn.Sequential(
            nn.Linear(width, HEAD_WIDTH, bias=False),
            BatchNorm(HEAD_WIDTH),
            nn.ReLU(),
            Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_WIDTH, HEAD_WIDTH, bias=False),
            BatchNorm(HEAD_WIDTH),
            nn.ReLU(),
            Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_WIDTH, classes),
        )

    def tokens(self, pyramid: Pyramid) -> Tensor:
        """Encode a pyramid as normed tokens (B, G, C), the class token first where there is one."""
        tokens, position = self.embed(pyramid)
        if self.config.pooling.startswith("class"):
            token, place = (part.expand(tokens.shape[0], 1, -1).to(tokens.dtype) for part in (self.cls_token, self.cls_pos))
            tokens, position = torch.cat([token, tokens], dim=1), torch.cat([place, position], dim=1)
        return self.encoder.encode(tokens, position)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (B, cls_dim) with labels (B,): the smoothed share goes to all classes alike, the true one too."""
        return F.cross_entropy(at_least_float(logits), labels, label_smoothing=self.config.smooth)


@dataclass
class PointJEPASegmenterConfig(JEPATaskConfig, SegmenterKeys):
    """Keys of Point-JEPA's part segmenter; defaults as published for ShapeNetPart."""

    NAME: str = "PointJepaPartSegmentation"
    num_group: int = 128
    drop_path_rate: float = 0.1
    train_transformations: list[str] = field(default_factory=lambda: ["scale", "center", "unit_sphere"])
    transformation_scale_min: float = 0.8
    transformation_scale_max: float = 1.25
    taps: list[int] = field(default_factory=lambda: [3, 7, 11])  # blocks, from 0, after which tokens are taken
    prop_widths: list[int] = field(default_factory=lambda: [384, 384])

    def __post_init__(self):
        super().__post_init__()
        if not self.taps or self.taps != sorted(set(self.taps)) or self.taps[0] < 0 or self.taps[-1] >= self.depth:
            raise ValueError(f"model.taps: {self.taps} must be ascending blocks from 0 to {self.depth - 1}")
        if len(self.head_widths) != 2:
            raise ValueError(f"model.head_widths: {self.head_widths} must be two widths, as published")
        self.check_segmenter(self.num_group)


class Upsampling(PointPropagation):
    """Propagation without biases before its norms; distances below rounding are as published."""

    epsilon = torch.finfo(torch.float32).eps

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__(in_channels, widths)
        self.mlp_convs = nn.ModuleList(UnbiasedConv(conv.in_channels, conv.out_channels) for conv in self.mlp_convs)


@MODELS.register("PointJepaPartSegmentation", config=PointJEPASegmenterConfig)
class PointJEPASegmenter(JEPATask, PartSegmenter):
    """Fine-tune Point-JEPA's encoder to segment parts: normed tokens of several depths are averaged.

    Note:
        `encoder.norm` is unused, as published.
    """

    HEAD = ("label_embedding.", "upsampling.", "seg_head.", LINEAR)
    missing_keys = HEAD
    refused_keys = (("cls_head.", "a fine-tuned classifier"),)
    summary_first = False

    def build_encoder_parts(self, config: PointJEPASegmenterConfig) -> list[int]:
        """Create the encoder's parts; return the width of the averaged tokens."""
        self.build_parts(config)
        return [config.trans_dim]

    def build_label(self, categories: int, width: int) -> None:
        """Create `label_embedding`."""
        linear = nn.Linear(categories, width, bias=False)
        self.label_embedding = nn.Sequential(linear, BatchNorm(width), nn.LeakyReLU(LEAK))

    def embed_label(self, category: Tensor) -> Tensor:
        """Embed one-hot categories (B, num_categories)."""
        return self.label_embedding(category)

    def build_propagation(self, widths: Sequence[int]) -> tuple[int, int]:
        """Create `upsampling`."""
        self.upsampling = Upsampling(widths[0], self.config.prop_widths)
        return self.config.prop_widths[-1], 2 * widths[0]

    def build_head(self, widths: Sequence[int]) -> None:
        """Create `seg_head`."""
        first, second, third = widths
        self.seg_head = nn.Sequential(
            UnbiasedConv(first, second),
            BatchNorm(second),
            nn.ReLU(),
            Dropout(HEAD_DROPOUT),
            UnbiasedConv(second, third),
            BatchNorm(third),
            nn.ReLU(),
            PointwiseConv(third, self.config.num_parts),
        )

    def tokens(self, pyramid: Pyramid) -> Tokens:
        """Encode a pyramid: the mean of the tokens after the blocks `taps`, each normed without weights."""
        tokens, position = self.embed(pyramid)
        taken, first = [], 0
        for tap in self.config.taps:
            tokens = self.encoder(tokens, position, first=first, stop=tap + 1)
            taken.append(F.layer_norm(tokens, tokens.shape[-1:]))
            first = tap + 1
        return [(pyramid.centers[0], torch.stack(taken).mean(0))]

    def carry(self, points: Tensor, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """Carry the tokens to the points; their maximum and mean sum the cloud up."""
        ((centers, averaged),) = tokens
        summary = torch.cat([averaged.amax(1), averaged.mean(1)], dim=-1)
        return [self.upsampling(points, centers, averaged)], summary

    def classify(self, features: Sequence[Tensor], constant: Tensor) -> Tensor:
        """Map features (B, N, F) and what is constant over a cloud (B, S') to logits (B, N, P)."""
        join, first, _, drop, narrow, second, _, last = self.seg_head
        own, shared = self._columns(join.weight.squeeze(-1))
        rows = F.linear(features[0], own) + F.linear(constant, shared).unsqueeze(1)  # (B, N, head_widths[0])
        B, N, _ = rows.shape
        rows = drop(first.relu(rows.flatten(0, 1)))
        return last(second.relu(narrow(rows))).view(B, N, -1)
