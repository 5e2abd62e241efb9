"""The table of categories: how each is drawn and which parts it may have."""

from collections.abc import Callable
from typing import NamedTuple

from datasets.synthetic import machines, seats, surfaces, vessels


class Category(NamedTuple):
    """A procedure that draws one random shape, and the parts that it may use."""

    draw: Callable
    parts: tuple[str, ...]


CATEGORIES = {
    "airplane": Category(machines.airplane, ("fuselage", "wing", "tail", "engine")),
    "bathtub": Category(vessels.bathtub, ("basin", "rim", "foot", "tap")),
    "bed": Category(seats.bed, ("frame", "mattress", "leg", "headboard", "pillow")),
    "bench": Category(seats.bench, ("seat", "leg", "back", "arm")),
    "bottle": Category(vessels.bottle, ("body", "neck", "cap", "handle")),
    "car": Category(machines.car, ("body", "cabin", "wheel", "bed", "spoiler")),
    "chair": Category(seats.chair, ("seat", "leg", "back", "arm")),
    "desk": Category(surfaces.desk, ("top", "leg", "drawer", "panel", "hutch")),
    "guitar": Category(machines.guitar, ("body", "neck", "head", "bridge")),
    "knife": Category(machines.knife, ("blade", "handle", "guard")),
    "lamp": Category(vessels.lamp, ("base", "pole", "shade", "bulb")),
    "monitor": Category(surfaces.monitor, ("screen", "frame", "housing", "stand", "foot")),
    "mug": Category(vessels.mug, ("wall", "floor", "handle", "saucer", "lid")),
    "rocket": Category(machines.rocket, ("stage", "nose", "fin", "booster", "nozzle")),
    "shelf": Category(surfaces.shelf, ("side", "board", "back", "divider", "door", "foot")),
    "sofa": Category(seats.sofa, ("base", "cushion", "back", "arm", "foot")),
    "stool": Category(seats.stool, ("seat", "leg", "ring", "back")),
    "table": Category(surfaces.table, ("top", "leg", "board", "apron")),
    "toilet": Category(vessels.toilet, ("pedestal", "bowl", "seat", "tank", "lid")),
    "vase": Category(vessels.vase, ("foot", "belly", "rim", "handle")),
}

# Global part ids count through the categories in this order, whatever subset of them a run uses.
PART_NAMES = [f"{name} {part}" for name, category in CATEGORIES.items() for part in category.parts]
PART_IDS = {
    name: {part: PART_NAMES.index(f"{name} {part}") for part in category.parts} for name, category in CATEGORIES.items()
}
