"""Table, desk, shelf and monitor: things made of plates. Front is +z, the floor y = 0."""

import numpy as np

from datasets.synthetic.primitives import box, cylinder
from datasets.synthetic.sketch import Sketch, beam, legs, plate, rod, turn


def table(sketch: Sketch, rng: np.random.Generator) -> None:
    """Top on legs, from coffee to bar height; sometimes a lower board or a rail."""
    width = rng.uniform(0.6, 1.6)
    depth = width * rng.uniform(0.5, 1.0)
    height, thick = rng.uniform(0.3, 1.0), rng.uniform(0.03, 0.08)
    round_top = rng.random() < 0.35
    plate(sketch, "top", rng, "round" if round_top else "square", (width, thick, depth), (0, height, 0))
    styles = ["pedestal", "splayed", "round", "star"] if round_top else ["square", "round", "splayed", "panels", "sled"]
    style = rng.choice(styles)
    inset = 0.72 if round_top else rng.uniform(0.8, 1.0)
    legs(sketch, "leg", rng, style, width=width * inset, depth=depth * inset, height=height - thick / 2)
    if rng.random() < 0.3:
        level = height * rng.uniform(0.2, 0.6)
        kind = "round" if round_top else "square"
        plate(sketch, "board", rng, kind, (width * inset, thick * 0.7, depth * inset), (0, level, 0))
    elif not round_top and rng.random() < 0.4:
        low, high = height - thick / 2 - rng.uniform(0.05, 0.12), height - thick / 2
        reach = width * inset / 2
        for k in (-1, 1):
            z = k * depth * inset / 2 * 0.9
            beam(sketch, "apron", (-reach, low, z - 0.01), (reach, high, z + 0.01))


def desk(sketch: Sketch, rng: np.random.Generator) -> None:
    """Top on panels or legs; mostly drawers, often a back panel, sometimes a hutch or an L."""
    width, depth = rng.uniform(0.9, 1.6), rng.uniform(0.45, 0.75)
    height, thick = rng.uniform(0.55, 0.85), rng.uniform(0.03, 0.07)
    sketch.add("top", box(), (width, thick, depth), (0, height, 0))
    under = height - thick / 2
    legs(sketch, "leg", rng, rng.choice(["panels", "square", "round", "sled"]), width=width, depth=depth, height=under)
    sides = rng.choice(["none", "left", "right", "both"], p=[0.2, 0.3, 0.3, 0.2])
    wide, low = width * rng.uniform(0.2, 0.34), under * rng.uniform(0.0, 0.6)
    for i in {"none": (), "left": (-1,), "right": (1,), "both": (-1, 1)}[sides]:
        x = i * (width / 2 - wide / 2)
        beam(sketch, "drawer", (x - wide / 2, low, -depth * 0.45), (x + wide / 2, under, depth * 0.42))
        count = rng.integers(1, 4)
        for y in low + (np.arange(count) + 0.5) / count * (under - low):
            sketch.add("drawer", box(), (wide * 0.35, 0.02, 0.04), (x, y, depth * 0.44))
    if rng.random() < 0.5:
        z = -depth * 0.48
        beam(sketch, "panel", (-width / 2, under * rng.uniform(0.0, 0.5), z), (width / 2, under, z + 0.02))
    if rng.random() < 0.25:
        _hutch(sketch, rng, width, height + thick / 2, -depth / 2, depth * rng.uniform(0.25, 0.45))
    if rng.random() < 0.2:
        side, reach = rng.choice([-1, 1]), rng.uniform(0.4, 0.8)
        x = side * (width / 2 - depth / 2)
        sketch.add("top", box(), (depth, thick, reach), (x, height, depth / 2 + reach / 2))
        beam(sketch, "leg", (x - depth / 2, 0, depth / 2 + reach - 0.05), (x + depth / 2, under, depth / 2 + reach))


def _hutch(sketch: Sketch, rng, width: float, level: float, rear: float, deep: float) -> None:
    tall = rng.uniform(0.25, 0.5)
    for x in np.linspace(-width / 2, width / 2 - 0.03, rng.integers(2, 5)):
        beam(sketch, "hutch", (x, level, rear), (x + 0.03, level + tall, rear + deep))
    for y in (level + tall * rng.uniform(0.4, 0.7), level + tall):
        beam(sketch, "hutch", (-width / 2, y - 0.03, rear), (width / 2, y, rear + deep))


def shelf(sketch: Sketch, rng: np.random.Generator) -> None:
    """Sides and boards; often a back, sometimes dividers, doors or feet."""
    width, depth, height = rng.uniform(0.4, 1.3), rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.6)
    thick = rng.uniform(0.02, 0.05)
    lift = rng.uniform(0.05, 0.15) if rng.random() < 0.35 else 0.0
    posts = rng.random() < 0.25
    for i in (-1, 1):
        x = i * (width / 2 - thick / 2)
        if posts:
            for k in (-1, 1):
                rod(sketch, "side", (x, lift, k * depth * 0.46), (x, lift + height, k * depth * 0.46), thick * 0.6)
        else:
            beam(sketch, "side", (x - thick / 2, lift, -depth / 2), (x + thick / 2, lift + height, depth / 2))
    levels = np.linspace(0, 1, rng.integers(3, 7))
    levels[1:-1] += rng.uniform(-0.05, 0.05, len(levels) - 2)
    for y in lift + thick / 2 + levels * (height - thick):
        sketch.add("board", box(), (width, thick, depth), (0, y, 0))
    if rng.random() < 0.5:
        beam(sketch, "back", (-width / 2, lift, -depth / 2 - 0.01), (width / 2, lift + height, -depth / 2 + 0.01))
    if rng.random() < 0.35:
        for x in np.linspace(-0.5, 0.5, rng.integers(3, 5))[1:-1] * width:
            sketch.add("divider", box(), (thick, height, depth * 0.95), (x, lift + height / 2, 0))
    if rng.random() < 0.3:
        top = lift + height * levels[rng.integers(1, len(levels))]
        beam(sketch, "door", (-width / 2, lift, depth / 2 - 0.01), (width / 2, top, depth / 2 + 0.01))
    if lift:
        legs(sketch, "foot", rng, rng.choice(["square", "round"]), width=width, depth=depth, height=lift)


def monitor(sketch: Sketch, rng: np.random.Generator) -> None:
    """Screen on a stand with a foot; sometimes curved-back (old), double, or with speakers."""
    width = rng.uniform(0.7, 1.3)
    tall = width * rng.uniform(0.5, 0.8)
    thick, lift = rng.uniform(0.03, 0.1), rng.uniform(0.08, 0.35)
    matrix = turn("x", rng.uniform(-0.25, 0.1))
    middle = np.array([0, lift + tall / 2, 0])
    sketch.add("screen", box(), (width, tall, thick), middle, matrix)
    rim = rng.uniform(0.02, 0.06)
    for i in (-1, 1):
        sketch.add("frame", box(), (rim, tall, thick * 1.5), middle + matrix @ (i * width / 2, 0, 0), matrix)
        sketch.add("frame", box(), (width, rim, thick * 1.5), middle + matrix @ (0, i * tall / 2, 0), matrix)
    if rng.random() < 0.3:
        deep = rng.uniform(0.2, 0.55)
        tube = box(top=(rng.uniform(0.35, 0.7),) * 2)
        rear = matrix @ turn("x", -np.pi / 2)
        sketch.add("housing", tube, (width * 0.9, deep, tall * 0.9), middle + matrix @ (0, 0, -deep / 2), rear)
    spread = width * rng.uniform(0.25, 0.7)
    if rng.random() < 0.2:
        for i in (-1, 1):
            rod(sketch, "stand", (i * width * 0.4, lift, 0), (i * width * 0.45, 0, 0.12), 0.025)
            rod(sketch, "stand", (i * width * 0.4, lift, 0), (i * width * 0.45, 0, -0.12), 0.025)
        return
    beam(sketch, "stand", (-0.06, 0.02, -thick - 0.06), (0.06, lift + tall * 0.3, -thick / 2))
    if rng.random() < 0.5:
        sketch.add("foot", cylinder(), (spread, 0.03, spread * 0.7), (0, 0.015, -0.05))
    else:
        sketch.add("foot", box(), (spread, 0.03, spread * rng.uniform(0.4, 0.8)), (0, 0.015, -0.05))
