"""The guide of Inter-MAE: which pictures of a cloud a step takes, what encodes them, and what a run shows of the pairs."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets import build_dataset
from datasets.batches import Batch, Batches
from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet
from datasets.pictures.views import Views, choose_views, open_views
from models.images.branch import ImageBranch, ImageBranchConfig, build_image_branch, build_vit
from models.inter_mae import FEATURES
from models.layers.group import Pyramid
from models.layers.norm import convert_sync_batchnorm
from tools.context import RunContext
from tools.guides.base import Guide
from tools.guides.inter_mae_sections import SHOWN, Pairs, pair_sections, retrieval_items
from utils.device import send
from utils.errors import UserError
from utils.seed import generator

CHUNK = 64  # pictures or clouds encoded at once

# (numbers of pictures (B, n), their views, draw) -> what the model's forward takes as `targets`.
Targets = Callable[[Tensor, Views, Callable], Tensor]


@dataclass
class PictureGuide(Guide):
    """Give each cloud of a step pictures of it.

    Args:
        clouds, views: of the training set.
        targets: pictures by their numbers -> targets of the model.
    """

    run: RunContext
    clouds: CloudSet
    views: Views
    targets: Targets
    config: ImageBranchConfig

    def prepare(
        self, points: Tensor, batch: Batch, *, epoch: int, draw: Callable, pyramid: Pyramid | None = None
    ) -> dict[str, Any]:
        """Return the features of one picture of each cloud."""
        numbers = choose_views(self.views, batch.indices, self.config.n_imgs, generator=draw("views"))
        return {"targets": self.targets(numbers, self.views, draw)}

    def pages(self, model: nn.Module) -> dict[str, Any]:
        """Return what the report shows of clouds and their pictures, as keyword arguments of `write_report`."""
        pairs = self.pairs(model)
        return {"galleries": {"retrieval": retrieval_items(pairs)}, "sections": pair_sections(pairs)}

    def pairs(self, model: nn.Module, *, count: int = SHOWN) -> Pairs:
        """Compare up to `count` clouds of the held-out set, evenly spread, with one picture of each."""
        clouds, held_out = self._shown_set()
        chosen = np.unique(np.linspace(0, len(clouds) - 1, min(count, len(clouds))).astype(int))
        views = open_set_views(clouds, self.config)
        draw = lambda stream: generator(self.run.seed, 0, 0, stream)  # noqa: E731
        numbers = choose_views(views, torch.from_numpy(chosen), 1, generator=draw("report views"))
        shown = clouds.select(chosen)
        cloud_features, image_features = self._encode(model, shown, numbers, views, draw)
        return Pairs(shown, views.load(numbers[:, 0]), cloud_features, image_features, held_out=held_out)

    def _shown_set(self) -> tuple[CloudSet, bool]:
        """Return the first set of the recipe that was not trained on, else the training set."""
        entries = self.run.config.dataset
        held_out = [entries.val, entries.test, None if entries.svm is None else entries.svm.test]
        for entry in held_out:
            if entry is not None:
                clouds = build_dataset(entry)
                if not np.array_equal(clouds.points[0], self.clouds.points[0]):
                    return clouds, True
        return self.clouds, False

    @torch.inference_mode()
    def _encode(self, model, clouds: CloudSet, numbers: Tensor, views: Views, draw: Callable) -> tuple[Tensor, Tensor]:
        """Return the features (M, F) of clouds, from their visible patches as in training, and of their pictures."""
        was_training = model.training
        model.eval()
        found = []
        batches = Batches(
            clouds, batch_size=CHUNK, seed=self.run.seed, device=self.run.device, shuffle=False, drop_last=False
        )
        for batch in batches.evaluation():
            targets = self.targets(numbers[batch.indices], views, draw)
            out = model(batch.points, targets=targets, generator=draw(f"report mask {batch.step}"))
            found.append((out["features"].float().cpu(), out["image_features"].float().cpu()))
        model.train(was_training)
        clouds_found, images_found = zip(*found, strict=True)
        return torch.cat(clouds_found), torch.cat(images_found)


def open_set_views(clouds: CloudSet, config: ImageBranchConfig) -> Views:
    """Return the pictures of a set as the image branch sees them."""
    return open_views(clouds, size=config.size, views=config.views, kind=config.rendering)


def build(run: RunContext, model: nn.Module, clouds: CloudSet) -> PictureGuide:
    """Open the pictures of the training set, build the image side, and give the model what of it trains.

    Raises:
        UserError: pictures are missing or cannot be read, the image encoder cannot be had, or a batch of one.
    """
    config = model.config.image_branch
    if run.config.total_bs < 2:
        raise UserError(
            "total_bs: 1 leaves the contrastive loss without negatives; raise it to at least 2, or use a method without images"
        )
    views = open_set_views(clouds, config)
    if "fresh_image_branch" in model.legacy:
        run.log.info("images: a new random encoder at every step, as published (legacy fresh_image_branch)")
        return PictureGuide(run, clouds, views, FreshBranch(run, config), config)
    branch = build_image_branch(config, out=FEATURES).to(run.device)
    run.log.info(
        f"images: {describe_encoder(config)}, {int(views.counts.sum())} pictures of {len(clouds)} clouds, {config.n_imgs} a step"
    )
    if config.mode == "trained":
        model.image_branch = branch
        return PictureGuide(run, clouds, views, Images(run), config)
    frozen = FrozenFeatures(run, branch, config)
    model.image_branch = branch
    guide = PictureGuide(run, clouds, views, frozen, config)
    frozen.features(views)  # once, before training
    return guide


def describe_encoder(config: ImageBranchConfig) -> str:
    """Say what encodes the images, and whether it was pre-trained."""
    weights = {"none": "random weights, not pre-trained", "timm": "pre-trained weights of timm"}
    source = weights.get(config.weights, f"weights of {config.weights}")
    return f"{config.encoder} ({source}), {config.mode}"


@dataclass
class Images:
    """The pictures themselves, for an encoder that is part of the model."""

    run: RunContext

    def __call__(self, numbers: Tensor, views: Views, draw: Callable) -> Tensor:
        pictures = views.load(numbers.flatten().tolist())
        return send(pictures.view(*numbers.shape, *pictures.shape[1:]), self.run.device)  # (B, n, 3, S, S)


class FrozenFeatures:
    """Features of an encoder that does not train, computed once for each picture of a set and kept in the cache.

    Takes the encoder out of the branch, so that what is left trains.
    """

    def __init__(self, run: RunContext, branch: ImageBranch, config: ImageBranchConfig):
        self.run, self.config = run, config
        self.encoder = ImageBranch(
            branch.vit, branch.vit.num_features, mean=branch.mean.flatten().tolist(), std=branch.std.flatten().tolist()
        )
        self.encoder = self.encoder.to(run.device).eval().requires_grad_(False)
        del branch.vit
        digest = hashlib.sha256()
        for value in self.encoder.vit.state_dict().values():
            digest.update(np.ascontiguousarray(value.cpu().numpy()))
        self.digest = digest.hexdigest()
        self._known: list[tuple[Views, np.ndarray]] = []

    def __call__(self, numbers: Tensor, views: Views, draw: Callable) -> Tensor:
        rows = self.features(views)[numbers.flatten().numpy()]
        return send(torch.from_numpy(rows).view(*numbers.shape, -1), self.run.device)  # (B, n, W)

    def features(self, views: Views) -> np.ndarray:
        """Return the features of all pictures, (pictures, W)."""
        known = next((features for known, features in self._known if known is views), None)
        if known is not None:
            return known
        recipe = Recipe(
            name="image-features",
            key={
                "weights": self.digest,
                "encoder": self.config.encoder,
                "vit": asdict(self.config.vit),
                **views.origin,
            },
            sources=views.sources,
            fields={"features": ("<f4", (self.encoder.vit.num_features,))},
            count=int(views.counts.sum()),
            chunks=lambda: self._encode(views),
        )
        self._known.append((views, cached(recipe)["features"]))
        return self._known[-1][1]

    @torch.inference_mode()
    def _encode(self, views: Views) -> Iterator[dict[str, np.ndarray]]:
        total = int(views.counts.sum())
        self.run.log.info(f"images: encoding {total} pictures once")
        for begin in range(0, total, CHUNK):
            pictures = views.load(range(begin, min(begin + CHUNK, total)))
            features = self.encoder.encode(pictures.unsqueeze(1).to(self.run.device))[:, 0]
            yield {"features": features.float().cpu().numpy()}


@dataclass
class FreshBranch:
    """A random encoder and head, drawn anew at every step and never trained: the published bug `fresh_image_branch`."""

    run: RunContext
    config: ImageBranchConfig

    @torch.no_grad()
    def __call__(self, numbers: Tensor, views: Views, draw: Callable) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=draw("image branch")))  # the same on every process
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = build_vit(self.config.vit, self.config.size)
            branch = ImageBranch(encoder, encoder.num_features, hidden=self.config.hidden, out=FEATURES).train()
        if self.run.args.sync_bn:
            convert_sync_batchnorm(branch)
        return branch.to(self.run.device)(Images(self.run)(numbers, views, draw))  # (B, F)
