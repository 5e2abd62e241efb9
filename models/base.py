"""What all models share: configuration, grouping, and what tells their checkpoints; and what all masked autoencoders share.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `C` channels, `L` hidden patches of the batch; scale index 0 = finest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from models.hub import HubModel
from models.layers.group import Pyramid, group_pyramid
from models.layers.packing import Packing, Rows, plan_packing
from models.layers.transformer import Stack
from models.losses import ReconstructionLoss
from models.masking import back_project, capacities
from utils.device import send
from utils.errors import UserError

WEIGHT_DTYPES = (torch.float32, torch.float64)
LARGEST = 1 << 16  # width, number of groups or of heads: a larger one is a mistake, found before memory is asked for
DEEPEST = 1024  # blocks


def legacy_names(legacy: bool | Sequence[str], known: Sequence[str]) -> frozenset[str]:
    """Resolve a `legacy` key: False = none, True = all names of the component, a list = those.

    Raises:
        ValueError: a listed name is not one of `known`.
    """
    if isinstance(legacy, bool):
        return frozenset(known if legacy else ())
    unknown = sorted(set(legacy) - set(known))
    if unknown:
        raise ValueError(f"legacy: {', '.join(unknown)} is unknown here; choose from {', '.join(known) or 'nothing'}")
    return frozenset(legacy)


def check_ranges(config: Any, *, counts: Sequence[str], depths: Sequence[str] = (), where: str = "") -> None:
    """Check numbers, or lists of numbers, among the keys of a model, and `drop_path_rate`.

    Args:
        counts: keys whose values must be 1 to 65,536.
        depths: keys of numbers of blocks, 0 to 1,024.
        where: what stands before a key in messages.

    Raises:
        ValueError: naming the key, its value and what is possible.
    """
    limits = {**dict.fromkeys(counts, (1, LARGEST)), **dict.fromkeys(depths, (0, DEEPEST))}
    for key, (low, high) in limits.items():
        value = getattr(config, key)
        if not all(low <= number <= high for number in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{where}{key}: {value} must be {low} to {high}")
    if not 0 <= config.drop_path_rate < 1:
        raise ValueError(f"{where}drop_path_rate: {config.drop_path_rate} must be at least 0 and below 1")


class PointModel(HubModel):
    """A model of one method: its autoencoder, its classifier or its part segmenter.

    Class attributes:
        method: its name, as in `--method`.
        LEGACY: published bugs, fixed by default, that the key `legacy` switches back on.
        own_keys: prefixes of keys that only checkpoints of this method have.
        shared_keys: prefixes that methods built upon this one have too; they count where no method's `own_keys` are present.
        starts_from: further methods whose pre-training checkpoints hold this model's encoder.
        missing_keys: prefixes of keys that a checkpoint may lack.
        ignored_keys: prefixes of keys that a checkpoint may hold and that are skipped.
        renamed_keys: pairs, a prefix in a checkpoint and what it is called here; the first that fits counts.
        refused_keys: pairs, a prefix that a checkpoint must not have and what such a checkpoint is.
        skips_origin: whether sampling passes over points near the origin, as published.

    Attributes:
        tuning: what freezes its encoder and inserts parts into it (`models/tuning/`), or None.
    """

    method: ClassVar[str]
    LEGACY: ClassVar[tuple[str, ...]] = ()
    own_keys: ClassVar[tuple[str, ...]] = ()
    shared_keys: ClassVar[tuple[str, ...]] = ()
    starts_from: ClassVar[tuple[str, ...]] = ()
    missing_keys: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()
    renamed_keys: tuple[tuple[str, str], ...] = ()
    refused_keys: tuple[tuple[str, str], ...] = ()
    tuning: Any = None
    skips_origin: ClassVar[bool] = True

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.legacy = legacy_names(config.legacy, self.LEGACY)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which points are grouped."""
        return next(self.parameters()).dtype

    @property
    def data_dependent(self) -> str | None:
        """Why shapes or control flow follow the data on every device, or None."""
        return None

    @property
    def subsamples(self) -> bool:
        """Whether `transform` chooses the points that a classifier trains on."""
        return False

    @property
    def later_key_wins(self) -> bool:
        """Where a renamed key of a checkpoint meets one that had this name already: take the later, as published programs do."""
        return False

    def stacks(self) -> list[Stack]:
        """Return the transformer blocks of the encoder, finest scale first, that tuning acts on."""
        return []

    def transform(self, points: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return points (B, N, 3) as the method wants them: with a generator as in training, else as in evaluation; here as they are."""
        return points

    def begin_epoch(self, epoch: int) -> bool:
        """Follow the epoch of training that begins; return whether other parameters train now."""
        return False

    def group(self, points: Tensor, *, generator: torch.Generator | None = None) -> Pyramid:
        """Group points (B, N, 3) at every scale; no weight takes part. Gradients reach the points through their coordinates.

        Args:
            generator: of what is random in it while a method trains; here nothing is.

        Raises:
            ValueError: not such a tensor, no clouds in it, too few points for the groups, or weights in half precision.
        """
        self.check_dtype()
        return group_pyramid(points, self.config.num_groups, self.config.group_sizes, dtype=self.dtype)

    def patch_tokens(self, points: Tensor | None, pyramid: Pyramid | None = None) -> Tensor:
        """Encode points (B, N, 3), or their pyramid, with nothing hidden as normed tokens (B, G, C) of the coarsest scale."""
        raise NotImplementedError(f"{type(self).__name__}.patch_tokens")

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3) as one feature a cloud, (B, C)."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def reconstruct(
        self, points: Tensor, masked: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> "Reconstruction":
        """Hide a part of points (B, N, 3) and rebuild it.

        Raises:
            UserError: the model rebuilds nothing; masked autoencoders do.
        """
        raise UserError(
            f"{type(self).__name__}.reconstruct: rebuilds nothing; take a masked autoencoder, such as point_m2ae.pretrain"
        )

    def check_dtype(self) -> None:
        """Raise a ValueError where weights are in half precision."""
        if self.dtype not in WEIGHT_DTYPES:
            raise ValueError(
                f"{type(self).__name__}: weights are {self.dtype}, which batch statistics and coordinates do not survive; keep them in "
                "float32 (.float()) and compute in half precision by torch.autocast, which is --precision bf16 or fp16"
            )


class Reconstruction(NamedTuple):
    """Clouds that a model rebuilt from the part that it was shown."""

    clouds: list[Tensor]  # (n, 3) a sample: the points that it was shown and those that it made of the rest
    rebuilt: list[Tensor]  # (m, 3) a sample: the latter alone
    hidden: Tensor  # (B, N) bool, True = a point in no visible patch
    masked: Tensor  # (B, G) bool, the mask of the coarsest scale, True = hidden


class PretrainingModel(PointModel):
    """A model that learns without labels, of whole clouds whose groups it is shown in part.

    `forward(points, masked=None, *, pyramid=None, targets=None, generator=None)` returns a dict with the scalar "loss", "loss_<part>" if it
    is a sum, and scalars for the log, "log_<name>".

    Class attributes:
        taught: whether `forward` takes targets of a teacher.
        svm_C: published C of the linear SVM by the data set that `--test_svm` names.
        picture_hint: what to know of pictures of what the model rebuilds, or None.
        epoch_loss: the loss whose mean over an epoch is `Loss/Epoch/Loss_1` in TensorBoard, as published.
    """

    taught: ClassVar[bool] = False
    svm_C: ClassVar[Mapping[str, float]] = {}
    picture_hint: str | None = None
    epoch_loss: ClassVar[str] = "loss"

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Any:
        """Draw what a step shows and hides: what `forward` takes as `masked`."""
        raise NotImplementedError(f"{type(self).__name__}.draw_mask")

    def pool(self, tokens: Tensor) -> Tensor:
        """Sum tokens (B, G, C) of a cloud up as features (B, C) for a linear SVM: their mean plus their maximum."""
        return tokens.mean(1) + tokens.amax(1)

    def encode(self, points: Tensor) -> Tensor:
        """Encode points (B, N, 3), transformed as in evaluation, as features for a linear SVM: the coarsest tokens, pooled."""
        return self.pool(self.patch_tokens(self.transform(points)))


class MaskedAutoencoder(PretrainingModel):
    """Hide groups, encode the visible ones, rebuild the hidden ones.

    A method says what it learns in `autoencode`; `HierarchicalMAE` and `SingleScaleMAE` hold encoders and decoders.

    Attributes:
        masked_count: groups of the coarsest scale that are hidden in each sample, the same number in all.
        decoded_scale: the scale whose hidden patches are rebuilt.
        criterion: compares rebuilt patches with hidden ones.
    """

    masked_count: int
    decoded_scale: int = 0

    def __init__(self, config: Any):
        super().__init__(config)
        self.criterion = ReconstructionLoss(config.loss)
        self.flat_token = "flat_token" in self.legacy
        self.near_padding = "near_padding" in self.legacy and any(radius > 0 for radius in config.local_radius)

    @property
    def data_dependent(self) -> str | None:
        """Why shapes or control flow follow the data on every device, or None."""
        if self.criterion.kind == "emd":
            return "the loss emd runs until all points are matched"
        return "with legacy near_padding, shapes follow the mask" if self.near_padding else None

    def forward(
        self,
        points: Tensor,
        masked: Tensor | None = None,
        *,
        pyramid: Pyramid | None = None,
        targets: Any = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Mask, encode, decode, compare.

        Args:
            points: (B, N, 3).
            masked: (B, G_coarsest) bool, True = hidden, to replay a mask; default: drawn from `generator`.
            pyramid: what `group` makes of these points, if it is known.
            targets: what the teacher of a method that has one says of them.

        Returns:
            dict with the scalar "loss", "loss_<part>" if it is a sum, "masked" (B, G_coarsest) and "masked_finest" (B, G_0) bool, and for
            the L hidden patches of the decoded scale "rebuilt" (L, n, 3) and "target" (L, K, 3), relative to "centers" (L, 3), sample after
            sample in index order; "samples" (L,) says whose each is. Where shapes must not follow the mask there are more than L rows, and
            "valid" (L,) bool says which are hidden patches; else it is all True.

        Raises:
            ValueError: bad points or mask, or targets that the method does not take.
        """
        if targets is not None and not self.taught:
            raise ValueError(f"{self.method}: targets are for methods with a teacher; pass None")
        pyramid = self.group(points) if pyramid is None else pyramid
        return self.autoencode(pyramid, self.mask(pyramid, masked, generator=generator), targets)

    def autoencode(self, pyramid: Pyramid, masks: list[Packing], targets: Any) -> dict[str, Tensor]:
        """Encode the visible groups of a pyramid, rebuild the hidden ones, compare: what `forward` returns."""
        raise NotImplementedError(f"{type(self).__name__}.autoencode")

    def draw_mask(self, pyramid: Pyramid, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the groups of the coarsest scale to hide: (B, G) bool, True = hidden, `masked_count` in each sample."""
        raise NotImplementedError(f"{type(self).__name__}.draw_mask")

    def mask(
        self, pyramid: Pyramid, masked: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> list[Packing]:
        """Choose what to hide at the coarsest scale and carry it down: the visible groups of every scale, finest first.

        Args:
            masked: (B, G_coarsest) bool to replay, True = hidden; default: `draw_mask`. It must hide `masked_count` groups in each
                sample, which is checked where the counts are known without waiting for a device.

        Raises:
            ValueError: another shape or dtype, or it shows more groups.
        """
        centers = pyramid.centers[-1]
        if masked is None:
            masked = self.draw_mask(pyramid, generator=generator)
        if masked.shape != centers.shape[:2] or masked.dtype != torch.bool:
            raise ValueError(
                f"{self.method}: masked must be {tuple(centers.shape[:2])} bool, got {tuple(masked.shape)} {masked.dtype}"
            )
        masks = self._plan(pyramid, send(masked, centers.device), shown=centers.shape[1] - self.masked_count)
        if masks[-1].order.shape[1] == 0:
            raise ValueError(f"{self.method}: masked hides every group; hide {self.masked_count} in each sample")
        return masks

    def mask_nothing(self, pyramid: Pyramid) -> list[Packing]:
        """Plan a pyramid whose coarsest groups are all visible.

        Finer groups that belong to no neighbourhood of the scale above are not visible, as published.
        """
        centers = pyramid.centers[-1]
        nothing = torch.zeros(centers.shape[:2], dtype=torch.bool, device=centers.device)
        return self._plan(pyramid, nothing, shown=centers.shape[1])

    def _plan(self, pyramid: Pyramid, masked: Tensor, shown: int) -> list[Packing]:
        groups = [centers.shape[1] for centers in pyramid.centers]
        scales = back_project(masked, pyramid.idx, groups, flat_token=self.flat_token)
        # That bug shows a group that no visible group holds, beyond what the members of the visible ones can be.
        rooms = [*groups[:-1], shown] if self.flat_token else capacities(pyramid, shown)
        # What tokens attend to depends on how much padding there is with `near_padding`.
        return [
            plan_packing(~hidden, room, tight=self.near_padding) for hidden, room in zip(scales, rooms, strict=True)
        ]

    def compare(self, rebuilt: Tensor, pyramid: Pyramid, masks: list[Packing], hidden: Rows) -> dict[str, Tensor]:
        """Compare what a head made of the hidden groups with these groups.

        Args:
            rebuilt: (L, 3 * n), n points a group, relative to its centre.
            hidden: the groups of the decoded scale that these are.

        Returns:
            what `forward` returns.
        """
        out = self.pair(rebuilt, pyramid, masks, hidden)
        return {"loss": self.criterion(out["rebuilt"], out["target"], out["valid"]), **out}

    def pair(self, rebuilt: Tensor, pyramid: Pyramid, masks: list[Packing], hidden: Rows) -> dict[str, Tensor]:
        """Return what a head made of the hidden groups, (L, 3 * n) or (L, n, 3), with these groups: `compare` without the loss."""
        scale = self.decoded_scale
        return {
            "masked": ~masks[-1].visible,
            "masked_finest": ~masks[0].visible,
            "rebuilt": rebuilt.flatten(1).unflatten(1, (-1, 3)),  # (L, n, 3); L may be 0
            "target": hidden.take(pyramid.neighborhoods[scale]),  # (L, K, 3)
            "centers": hidden.take(pyramid.centers[scale]),
            "samples": hidden.samples(),
            "valid": hidden.valid,
        }

    @torch.no_grad()
    def reconstruct(
        self, points: Tensor, masked: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """Hide a part of points (B, N, 3) and rebuild it, in evaluation mode; `masked` and `generator` as in `forward`."""
        was_training = self.training
        self.eval()
        pyramid = self.group(points)
        out = self(points, masked, pyramid=pyramid, generator=generator)
        self.train(was_training)
        idx, visible = pyramid.idx[0], ~out["masked_finest"]  # (B, G, K), (B, G)
        votes = visible.unsqueeze(-1).expand_as(idx).flatten(1).float()
        shown = votes.new_zeros(points.shape[:2]).scatter_add_(1, idx.flatten(1), votes) > 0  # (B, N)
        made, valid = out["rebuilt"] + out["centers"].unsqueeze(1), out["valid"]
        rebuilt = [made[valid & (out["samples"] == sample)].flatten(0, 1) for sample in range(len(points))]
        clouds = [
            torch.cat([cloud[kept].to(new), new]) for cloud, kept, new in zip(points, shown, rebuilt, strict=True)
        ]
        return Reconstruction(clouds, rebuilt, ~shown, out["masked"])
