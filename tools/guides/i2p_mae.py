"""The guide of I2P-MAE: an image teacher says of every batch what stays visible and what visible tokens should mean.

Where points are the same at each visit its features are kept on disk, in half precision, one row a cloud.

Shapes: `B` batch, `N` points, `W` = 3 views, `P` patches along the edge of an image, `C` channels of the teacher.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batches import Batch, Batches
from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet
from models.i2p_mae import I2PMAE, Guidance, encode_views, guide
from models.images.projection import VIEWS
from models.images.teacher import ImageFeatures, ImageTeacher, TeacherConfig, build_teacher
from models.layers.group import Pyramid
from tools.context import RunContext
from tools.guides.base import Guide, teacher_file
from utils.config.merge import to_dict
from utils.config.yaml import save_config
from utils.device import send
from utils.dist import is_main
from utils.errors import UserError
from utils.files import read_checkpoint

CHUNK = 32  # clouds that the teacher sees at a time when the cache is filled
HASHED_CLOUDS = 64  # spread over the set, whose points say which set the cache is of


def build(run: RunContext, model: I2PMAE, clouds: CloudSet) -> "ImageGuide":
    """Build the guide of a run.

    Raises:
        UserError: weights of the teacher are missing, of another architecture or not those that a resumed run began
            with; its features are not as wide as the head; or a cache is asked for where points change.
    """
    config = run.config.model
    teacher = _build_teacher(config.teacher).to(run.device)
    if teacher.width != config.clip_config.feat_dim:
        raise UserError(
            f"model.clip_config.feat_dim: is {config.clip_config.feat_dim}, and features of {config.teacher.name} have {teacher.width} "
            f"channels; set it to {teacher.width}"
        )
    _check_resumed(run)
    if is_main():
        save_config(run.config, run.folder / "config.yaml")  # with the SHA-256 of the weights
    if config.teacher.weights == "random":
        run.log.warning("model.teacher.weights: random: what the teacher sees means nothing; only to try things")
    run.log.info(f"teacher {config.teacher.name}, weights {config.teacher.weights}, {teacher.width} channels")
    store = None
    if config.teacher.cache:
        _check_fixed(run, clouds)
        store = keep_features(teacher, clouds, config.teacher, run.device)
        size = sum(array.nbytes for array in store.values()) / 2**20
        run.log.info(f"features of {len(clouds)} clouds in {len(VIEWS)} views are in the cache, {size:.0f} MB")
    return ImageGuide(model, teacher, clouds, run, store)


class ImageGuide(Guide):
    """Show each batch to the teacher, or take what it said from the store, and carry it to the groups.

    Args:
        store: "features" (M, W, C, P, P) and "saliency" (M, W, P, P) of all clouds of the set, or None.
    """

    def __init__(
        self,
        model: I2PMAE,
        teacher: ImageTeacher,
        clouds: CloudSet,
        run: RunContext,
        store: dict[str, np.ndarray] | None,
    ):
        self.model, self.teacher, self.clouds, self.run, self.store = model, teacher, clouds, run, store

    @torch.no_grad()
    def prepare(
        self, points: Tensor, batch: Batch, *, epoch: int, draw: Callable, pyramid: Pyramid | None = None
    ) -> dict:
        """Return the mask that follows the teacher's attention, the groups, and its features as targets."""
        # Which pixel a point falls into is decided in fp32, whatever the model computes in.
        with torch.autocast(points.device.type, enabled=False):
            pyramid = self.model.group(points) if pyramid is None else pyramid
            views = self.encode_views(points) if self.store is None else self._recall(batch.indices, points.device)
            guidance = self.guide(points, pyramid, views)
            masked = self.model.mask_by_saliency(guidance.saliency, generator=draw("mask"))
        return {"masked": masked, "pyramid": pyramid, "targets": guidance.targets}

    def encode_views(self, points: Tensor) -> ImageFeatures:
        """Show points (B, N, 3) to the teacher."""
        keys = self.model.config.teacher
        return encode_views(points, self.teacher, size=keys.image_size, depth=keys.depth)

    def guide(self, points: Tensor, pyramid, views: ImageFeatures) -> Guidance:
        """Carry the features of the views of points to their groups."""
        return guide(points, pyramid, views, size=self.model.config.teacher.image_size, scale=self.model.decoded_scale)

    def _recall(self, indices: Tensor, device: torch.device) -> ImageFeatures:
        rows = indices.numpy()
        return ImageFeatures(
            *(
                send(torch.from_numpy(self.store[key][rows]), device).float().transpose(0, 1).flatten(0, 1)
                for key in ("features", "saliency")
            )
        )

    def pages(self, model: I2PMAE) -> dict[str, Any]:
        """Return what the teacher says of some clouds, as keyword arguments of `write_report`."""
        from tools.guides.i2p_mae_sections import teacher_pages

        return teacher_pages(self, model)


def keep_features(teacher: ImageTeacher, clouds: CloudSet, keys, device: torch.device) -> dict[str, np.ndarray]:
    """Return what a teacher makes of all clouds of a set, in float16: from the cache, or computed now and kept there.

    Args:
        keys: the teacher's keys; what decides its features is part of the name of the entry.
    """
    side, views = teacher.patches, len(VIEWS)
    deciding = ("name", "sha256", "arguments", "image_size", "depth", "statistics")
    key = {name: value for name, value in to_dict(keys).items() if name in deciding}
    key |= {"random": keys.weights == "random", "precision": str(teacher.dtype(device)), "clouds": _identity(clouds)}

    def chunks() -> Iterator[dict[str, np.ndarray]]:
        batches = Batches(clouds, batch_size=CHUNK, seed=0, device=device, shuffle=False, drop_last=False)
        for batch in batches.evaluation():
            encoded = encode_views(batch.points, teacher, size=keys.image_size, depth=keys.depth)
            yield {
                name: value.unflatten(0, (views, -1)).transpose(0, 1).half().cpu().numpy()
                for name, value in encoded._asdict().items()
            }

    fields = {"features": ("<f2", (views, teacher.width, side, side)), "saliency": ("<f2", (views, side, side))}
    return cached(Recipe("image-features", key, [], fields, len(clouds), chunks, version="1"))


def _identity(clouds: CloudSet) -> dict:
    """Say which points these are: where they are from, how they are taken, and a digest of some of them."""
    spread = np.linspace(0, len(clouds) - 1, min(HASHED_CLOUDS, len(clouds))).astype(int)
    digest = hashlib.sha256(np.ascontiguousarray(clouds.points[spread])).hexdigest()
    taken = {name: getattr(clouds, name) for name in ("name", "subset", "source", "npoints", "sampling", "normalize")}
    return {**taken, "clouds": len(clouds), "digest": digest}


def _build_teacher(keys: TeacherConfig) -> ImageTeacher:
    """Build the teacher of keys, whose file may have a name of weights, and fill in their SHA-256."""
    weights = keys.weights
    if weights not in ("hub", "random"):
        weights = teacher_file("model.teacher.weights", weights)
    own = replace(keys, weights=weights)
    teacher = build_teacher(own)
    keys.sha256 = own.sha256
    return teacher


def _check_fixed(run: RunContext, clouds: CloudSet) -> None:
    """Raise where the points of a cloud are not the same at each visit."""
    if run.config.augmentation != "none" or clouds.sampling == "random":
        raise UserError(
            "model.teacher.cache: features can be kept only where points stay the same; "
            f"augmentation is {run.config.augmentation} and the sampling of {clouds.name} is {clouds.sampling}: "
            "set augmentation to none and dataset.train.sampling to first, or cache to false"
        )


def _check_resumed(run: RunContext) -> None:
    """Raise where a run that goes on began with another teacher."""
    last = run.folder / "ckpt-last.pth"
    if not (run.args.resume and last.exists()):
        return
    began = read_checkpoint(last).get("config", {}).get("model", {}).get("teacher", {})
    now = to_dict(run.config.model.teacher)
    differing = [name for name in now if name not in ("weights", "cache") and began.get(name, now[name]) != now[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"model.teacher.{name}: is {now[name]}, and the run began with {began[name]}; resume with the run's own config.yaml"
        )
