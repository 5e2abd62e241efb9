"""Airplane, car, rocket, guitar and knife. Vehicles drive towards +z."""

import numpy as np

from datasets.synthetic.primitives import box, cushion, cylinder, lathe, prism, sphere
from datasets.synthetic.sketch import Sketch, beam, rod, turn
from datasets.synthetic.vessels import smooth

LYING = turn("x", np.pi / 2)  # takes +y to +z


def airplane(sketch: Sketch, rng: np.random.Generator) -> None:
    """Fuselage, swept wings, tail; mostly engines."""
    radius = rng.uniform(0.05, 0.12)
    along, out = smooth([-0.5, -0.2, 0.3, 0.5], [rng.uniform(0.1, 0.4), 1, 1, rng.uniform(0.05, 0.4)], 14)
    closed = lathe(np.concatenate([[0], out * radius, [0]]), np.concatenate([along[:1], along, along[-1:]]))
    sketch.add("fuselage", closed, (1, 1.0, rng.uniform(0.9, 1.2)), turn=LYING)
    span, chord, sweep = rng.uniform(0.35, 0.75), rng.uniform(0.12, 0.3), rng.uniform(-0.02, 0.35)
    level, place = rng.choice([-0.6, 0, 0.7]) * radius, rng.uniform(-0.05, 0.15)
    _wings(sketch, "wing", span, chord, sweep, (0, level, place), rng.uniform(-0.05, 0.15), rng.uniform(0.25, 1.0))
    tail = rng.uniform(0.14, 0.28)
    fin = box(top=(1.0, rng.uniform(0.3, 0.8)), shift=(0, -rng.uniform(0, 0.6)))
    sketch.add("tail", fin, (0.015, tail, chord * 0.7), (0, tail / 2 + radius * 0.3, -0.43))
    height = tail if rng.random() < 0.3 else radius * 0.4
    _wings(sketch, "tail", tail, chord * 0.5, sweep * 0.4, (0, height, -0.45), 0.0, 0.6)
    style = rng.choice(["none", "jets", "propellers", "rear", "nose"], p=[0.15, 0.4, 0.15, 0.15, 0.15])
    if style in ("jets", "propellers"):
        for share in [0.35] if rng.random() < 0.6 else [0.3, 0.6]:
            for i in (-1, 1):
                x, y, z = i * span * share, level - 0.05, place + chord * 0.3 - sweep * share
                sketch.add("engine", cylinder(0.8), (0.07, 0.16, 0.07), (x, y, z), LYING)
                if style == "propellers":
                    sketch.add("engine", box(), (0.24, 0.02, 0.01), (x, y, z + 0.1), turn("z", rng.uniform(0, 3)))
    elif style == "rear":
        for i in (-1, 1):
            sketch.add("engine", cylinder(0.8), (0.08, 0.18, 0.08), (i * (radius + 0.04), 0.04, -0.28), LYING)
    elif style == "nose":
        sketch.add("engine", box(), (0.35, 0.03, 0.015), (0, 0, 0.5), turn("z", rng.uniform(0, 3)))
        sketch.add("engine", sphere(8), (0.06, 0.06, 0.08), (0, 0, 0.5))


def _wings(sketch: Sketch, part: str, span: float, chord: float, sweep: float, at, rise: float, taper: float) -> None:
    """A pair of swept, tapered plates; `rise` is the dihedral in radians."""
    for i in (-1, 1):
        wing = box(top=(1.0, taper), shift=(0.0, -sweep / chord))
        matrix = turn("z", -i * (np.pi / 2 - rise))
        across = matrix @ (0, span / 2, 0)
        sketch.add(part, wing, (0.02, span, chord), np.asarray(at) + across, matrix)


def car(sketch: Sketch, rng: np.random.Generator) -> None:
    """Body, cabin and four wheels; sedan, van, pick-up or roadster; sometimes a spoiler."""
    style = rng.choice(["sedan", "van", "pickup", "roadster"], p=[0.4, 0.2, 0.25, 0.15])
    width, length = rng.uniform(0.4, 0.5), rng.uniform(0.9, 1.25)
    wheel = rng.uniform(0.16, 0.28)
    floor, tall = wheel * 0.4, rng.uniform(0.16, 0.26)
    body = cushion(rng.uniform(0.15, 0.4)) if rng.random() < 0.6 else box(top=(0.95, 0.96))
    sketch.add("body", body, (width, tall, length), (0, floor + tall / 2, 0))
    top = {"sedan": 0.5, "van": 0.85, "pickup": 0.35, "roadster": 0.2}[style] * rng.uniform(0.85, 1.1)
    back = {"sedan": -0.05, "van": -0.04, "pickup": 0.1, "roadster": 0.0}[style]
    rise = rng.uniform(0.13, 0.22) * {"sedan": 1, "van": 1.6, "pickup": 1.1, "roadster": 0.6}[style]
    cabin = box(top=(rng.uniform(0.75, 0.95), rng.uniform(0.55, 0.9)), shift=(0, -rng.uniform(0, 0.1)))
    sketch.add("cabin", cabin, (width * 0.94, rise, top * length), (0, floor + tall + rise / 2 - 0.01, back * length))
    for i in (-1, 1):
        for k in (-1, 1):
            at = (i * width * 0.48, wheel / 2, k * length * rng.uniform(0.29, 0.33))
            sketch.add("wheel", cylinder(), (wheel, 0.08, wheel), at, turn("z", np.pi / 2))
    level = floor + tall
    if style == "pickup":
        for i in (-1, 1):
            x = i * width * 0.46
            beam(sketch, "bed", (x - 0.015, level, -length * 0.48), (x + 0.015, level + 0.1, -length * 0.1))
        beam(sketch, "bed", (-width * 0.46, level, -length * 0.48), (width * 0.46, level + 0.1, -length * 0.46))
    elif rng.random() < 0.3:
        rise = rng.uniform(0.04, 0.1)
        sketch.add("spoiler", box(), (width * 0.9, 0.02, 0.08), (0, level + rise, -length * 0.46))
        for i in (-1, 1):
            x = i * width * 0.3
            beam(sketch, "spoiler", (x - 0.01, level - 0.03, -length * 0.47), (x + 0.01, level + rise, -length * 0.44))


def rocket(sketch: Sketch, rng: np.random.Generator) -> None:
    """Stage, nose and fins; sometimes boosters and a nozzle."""
    radius, tall, nose = rng.uniform(0.07, 0.2), rng.uniform(0.5, 1.0), rng.uniform(0.15, 0.4)
    up, out = smooth([0, 0.5, 1], [rng.uniform(0.7, 1.1), 1.0, rng.uniform(0.75, 1.0)], 8)
    sketch.add("stage", lathe(np.append(0, out * radius), np.append(0, up * tall)))
    share = np.linspace(0, 1, 8)
    power = rng.uniform(0.5, 1.0)  # 1 = cone, less = rounder
    sketch.add("nose", lathe(out[-1] * radius * (1 - share) ** power, tall + share * nose))
    count, reach, height = rng.integers(3, 6), radius * rng.uniform(0.6, 1.8), rng.uniform(0.15, 0.35)
    fin = box(top=(rng.uniform(0.1, 0.7), 1.0), shift=(-rng.uniform(0.0, 0.4), 0))
    for angle in np.arange(count) * 2 * np.pi / count:
        matrix = turn("y", angle)
        at = matrix @ (radius * 0.6 + reach / 2, height * 0.35, 0)
        sketch.add("fin", fin, (reach + radius * 0.4, height, 0.015), at, matrix)
    if rng.random() < 0.35:
        size, high = radius * rng.uniform(0.6, 1.1), tall * rng.uniform(0.4, 0.8)
        for angle in np.arange(4) * np.pi / 2 + 0.4:
            x, y, z = turn("y", angle) @ (radius + size / 2, high / 2, 0)
            sketch.add("booster", cylinder(), (size, high, size), (x, y, z))
            sketch.add("booster", cylinder(0.0), (size, size * 1.4, size), (x, y + high / 2 + size * 0.7, z))
    if rng.random() < 0.5:
        sketch.add("nozzle", lathe([radius * 0.9, radius * 0.4], [-0.12, 0.0]))


def guitar(sketch: Sketch, rng: np.random.Generator) -> None:
    """Waisted body, neck, head; mostly a bridge."""
    length, half = rng.uniform(0.4, 0.6), rng.uniform(0.13, 0.24)
    waist, upper = rng.uniform(0.5, 0.95), rng.uniform(0.65, 1.0)
    knots, widths = [0, 0.07, 0.3, 0.6, 0.83, 0.95, 1], [0.35, 0.75, 1, waist * upper, upper, upper * 0.7, 0.2]
    if rng.random() < 0.4:  # an electric one with horns
        knots, widths = [0, 0.07, 0.3, 0.6, 0.8, 1], [0.35, 0.75, 1, waist * upper, upper * 0.9, upper]
    up, out = smooth(knots, widths, 18)
    right = np.stack([out * half, (up - 0.5) * length], -1)
    left = np.stack([-out * half * rng.uniform(0.85, 1.0), (up - 0.5) * length * rng.uniform(0.9, 1.0)], -1)
    outline = np.concatenate([left, right[::-1]])  # seen from the front it runs clockwise, as `prism` wants it below
    thick = rng.uniform(0.04, 0.16)
    sketch.add("body", prism(outline), (1, thick, 1), turn=turn("x", -np.pi / 2) @ turn("y", np.pi))
    reach, wide = rng.uniform(0.4, 0.65), rng.uniform(0.04, 0.065)
    start = length * 0.35
    beam(sketch, "neck", (-wide / 2, start, thick / 2 - 0.02), (wide / 2, start + reach, thick / 2 + 0.02))
    tip = start + reach
    head = box(top=(rng.uniform(0.7, 1.3), 1.0))
    tilt = turn("x", -rng.uniform(0, 0.3))
    sketch.add("head", head, (wide * 1.8, rng.uniform(0.1, 0.18), 0.03), (0, tip + 0.05, thick / 2), tilt)
    for y in (0.02, 0.06, 0.1):
        for i in (-1, 1):
            rod(sketch, "head", (i * wide, tip + y, thick / 2), (i * wide * 1.5, tip + y, thick / 2), 0.01)
    if rng.random() < 0.7:
        beam(sketch, "bridge", (-0.09, -length * 0.25, thick / 2), (0.09, -length * 0.2, thick / 2 + 0.03))


def knife(sketch: Sketch, rng: np.random.Generator) -> None:
    """Blade and handle; often a guard."""
    length, wide, grip = rng.uniform(0.45, 0.8), rng.uniform(0.06, 0.16), rng.uniform(0.25, 0.45)
    share = np.linspace(0, 1, 8)
    if rng.random() < 0.25:  # double-edged
        back = wide / 2 * (1 - share ** rng.uniform(1.5, 5))
        edge = -back
    else:
        back = wide * rng.uniform(-0.08, 0.2) * share**2
        edge = back - wide * (1 - share ** rng.uniform(1.5, 5))
    outline = np.concatenate([np.stack([share * length, back], -1), np.stack([share * length, edge], -1)[-2::-1]])
    sketch.add("blade", prism(outline[::-1] * (1, -1)), (1, rng.uniform(0.012, 0.03), 1))
    middle = float(outline[[0, -1], 1].mean())
    height = wide * rng.uniform(0.5, 0.9)
    at, size = (-grip / 2, 0, -middle), (grip, rng.uniform(0.03, 0.07), height)
    if rng.random() < 0.5:
        sketch.add("handle", cushion(rng.uniform(0.2, 0.7)), size, at)
    else:
        sketch.add("handle", box(), size, at)
    if rng.random() < 0.45:
        sketch.add("guard", box(), (0.03, 0.05, wide * rng.uniform(1.2, 2.2)), (0, 0, -middle))
    if rng.random() < 0.2:
        sketch.add("guard", sphere(8), (0.07, 0.07, 0.07), (-grip, 0, -middle))
