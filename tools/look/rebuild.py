"""Mask and rebuild one cloud: what is hidden at every scale, and how far each point is from what was made of it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extensions import chamfer_distance
from models.base import MaskedAutoencoder, PointModel
from utils.seed import generator


class Rebuilt(NamedTuple):
    """A cloud that a model rebuilt from the visible part; distances are in the unit of the cloud."""

    cloud: np.ndarray  # (n, 3) float32, the points of visible patches and those that were made
    made: np.ndarray  # (n,) bool, True = made by the model
    hidden: np.ndarray  # (N,) bool, True = a point of the input in no visible patch
    masks: list[np.ndarray]  # (G,) bool a scale, finest first, True = a hidden patch
    error: np.ndarray  # (N,) float32, distance of each point of the input to the nearest rebuilt one
    cloud_error: np.ndarray  # (n,) float32, distance of each rebuilt point to the nearest of the input


@torch.inference_mode()
def rebuild(model: PointModel, points: Tensor, seed: int) -> Rebuilt | None:
    """Mask and rebuild a cloud (N, 3) with a masked autoencoder; None with any other model."""
    if not isinstance(model, MaskedAutoencoder):
        return None
    points = points[None]
    out = model.reconstruct(points, generator=generator(seed, 0, 0, "look"))
    masks = model.mask(model.group(points), out.masked)
    cloud = out.clouds[0]
    there, back = (part[0].clamp(min=0).sqrt() for part in chamfer_distance(points.float(), cloud[None].float())[:2])
    made = np.arange(len(cloud)) >= len(cloud) - len(out.rebuilt[0])
    arrays = (part.cpu().numpy() for part in (cloud.float(), out.hidden[0], there, back))
    cloud, hidden, error, cloud_error = arrays
    return Rebuilt(cloud, made, hidden, [~mask.visible[0].cpu().numpy() for mask in masks], error, cloud_error)
