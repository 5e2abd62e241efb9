"""Chair, stool, bench, sofa and bed: things with a seat or a mattress. Front is +z, the floor is y = 0."""

import numpy as np

from datasets.synthetic.primitives import arc, box, cushion, sweep, torus
from datasets.synthetic.sketch import Sketch, beam, legs, plate, rod, turn


def chair(sketch: Sketch, rng: np.random.Generator) -> None:
    """Seat, back and legs; sometimes arms."""
    width, depth = rng.uniform(0.38, 0.62), rng.uniform(0.38, 0.58)
    height, thick = rng.uniform(0.32, 0.55), rng.uniform(0.03, 0.12)
    plate(sketch, "seat", rng, rng.choice(["square", "square", "soft", "round"]), (width, thick, depth), (0, height, 0))
    style = rng.choice(["square", "round", "splayed", "sled", "pedestal", "star", "panels"])
    legs(sketch, "leg", rng, style, width=width, depth=depth, height=height - thick / 2)
    _back(sketch, rng, width, height, depth / 2, rng.uniform(0.3, 0.65), rng.uniform(0, 0.35))
    if rng.random() < 0.4:
        _arms(sketch, rng, width, depth, height)


def _back(sketch: Sketch, rng, width: float, height: float, rear: float, tall: float, lean: float) -> None:
    """A back that leans by `lean` radians from the rear edge of the seat."""
    matrix = turn("x", -lean)
    thick = rng.uniform(0.025, 0.07)

    def put(mesh, size, x: float, y: float) -> None:
        sketch.add("back", mesh, size, np.array([x, height, -rear + thick / 2]) + matrix @ (0, y, 0), matrix)

    style = rng.choice(["panel", "soft", "slats", "ladder", "hoop"])
    if style == "panel":
        put(box(top=(rng.uniform(0.6, 1.1), 1.0)), (width, tall, thick), 0, tall / 2)
    elif style == "soft":
        put(cushion(0.4), (width, tall, thick * 2.2), 0, tall / 2)
    elif style == "hoop":
        curve = arc(0, np.pi, 14) * (width / 2, tall, 1)
        put(sweep(curve, thick * 0.5), (1, 1, 1), 0, 0)
        for x in np.linspace(-0.3, 0.3, rng.integers(2, 6)) * width:
            put(box(), (thick * 0.5, tall * 0.9, thick * 0.5), x, tall * 0.45)
    else:
        for i in (-1, 1):
            put(box(), (thick, tall, thick), i * (width - thick) / 2, tall / 2)
        if style == "slats":
            put(box(), (width, thick * 1.5, thick), 0, tall - thick)
            for x in np.linspace(-0.35, 0.35, rng.integers(2, 7)) * width:
                put(box(), (thick * 0.7, tall, thick * 0.5), x, tall / 2)
        else:
            for y in np.linspace(0.35, 0.95, rng.integers(2, 5)) * tall:
                put(box(), (width, thick * 1.6, thick * 0.5), 0, y)


def _arms(sketch: Sketch, rng, width: float, depth: float, height: float) -> None:
    rise, thick = rng.uniform(0.12, 0.25), rng.uniform(0.02, 0.05)
    closed = rng.random() < 0.35
    for i in (-1, 1):
        x = i * width / 2
        if closed:
            beam(sketch, "arm", (x - thick, height, -depth / 2), (x + thick, height + rise, depth / 2))
        else:
            beam(sketch, "arm", (x - thick, height + rise - thick, -depth / 2), (x + thick, height + rise, depth / 2))
            rod(sketch, "arm", (x, height, depth * 0.35), (x, height + rise, depth * 0.35), thick * 0.6)


def stool(sketch: Sketch, rng: np.random.Generator) -> None:
    """Seat and legs; sometimes a foot ring, seldom a low back."""
    width = rng.uniform(0.3, 0.5)
    depth = width * rng.uniform(0.75, 1.1)
    height, thick = rng.uniform(0.35, 0.85), rng.uniform(0.03, 0.12)
    plate(sketch, "seat", rng, rng.choice(["round", "round", "square", "soft"]), (width, thick, depth), (0, height, 0))
    style = rng.choice(["round", "splayed", "square", "pedestal", "star", "sled"])
    legs(sketch, "leg", rng, style, width=width, depth=depth, height=height - thick / 2)
    if rng.random() < 0.5:
        level, reach = height * rng.uniform(0.25, 0.5), rng.uniform(0.85, 1.05)
        sketch.add("ring", torus(rng.uniform(0.03, 0.06)), (width * reach, width, depth * reach), (0, level, 0))
    if rng.random() < 0.25:
        _back(sketch, rng, width * 0.9, height, depth / 2, rng.uniform(0.1, 0.25), rng.uniform(0, 0.3))


def bench(sketch: Sketch, rng: np.random.Generator) -> None:
    """Long seat on legs; often a back, sometimes arms."""
    width, depth = rng.uniform(0.9, 1.6), rng.uniform(0.3, 0.5)
    height, thick = rng.uniform(0.32, 0.5), rng.uniform(0.03, 0.09)
    if rng.random() < 0.5:
        plate(sketch, "seat", rng, rng.choice(["square", "soft"]), (width, thick, depth), (0, height, 0))
    else:
        count = rng.integers(2, 6)
        for z in (np.arange(count) + 0.5) / count - 0.5:
            sketch.add("seat", box(), (width, thick, depth / count * 0.8), (0, height, z * depth))
    style = rng.choice(["square", "panels", "sled", "splayed"])
    legs(sketch, "leg", rng, style, width=width * rng.uniform(0.75, 1), depth=depth, height=height - thick / 2)
    if rng.random() < 0.5:
        _back(sketch, rng, width, height, depth / 2, rng.uniform(0.25, 0.5), rng.uniform(0, 0.35))
        if rng.random() < 0.5:
            _arms(sketch, rng, width, depth, height)


def sofa(sketch: Sketch, rng: np.random.Generator) -> None:
    """Base, seat cushions and back; mostly arms, sometimes feet, sometimes an L."""
    width, depth = rng.uniform(0.8, 1.9), rng.uniform(0.5, 0.75)
    lift = rng.uniform(0.04, 0.14) if rng.random() < 0.6 else 0.0
    height = lift + rng.uniform(0.15, 0.28)
    back_thick, seats = rng.uniform(0.1, 0.2), int(rng.integers(1, 4))
    beam(sketch, "base", (-width / 2, lift, -depth / 2), (width / 2, height, depth / 2))
    soft = cushion(rng.uniform(0.15, 0.4))
    step, thick = width / seats, rng.uniform(0.08, 0.16)
    tall = rng.uniform(0.22, 0.5)
    for x in (np.arange(seats) + 0.5) * step - width / 2:
        room = (step * 0.98, thick, depth - back_thick)
        sketch.add("cushion", soft, room, (x, height + thick / 2, back_thick / 2))
    matrix = turn("x", -rng.uniform(0, 0.25))
    backs = 1 if rng.random() < 0.5 else seats
    for x in (np.arange(backs) + 0.5) * width / backs - width / 2:
        at = np.array([x, height, -depth / 2 + back_thick / 2]) + matrix @ (0, tall / 2, 0)
        sketch.add("back", soft, (width / backs, tall, back_thick), at, matrix)
    if rng.random() < 0.8:
        wide, rise = rng.uniform(0.06, 0.2), rng.uniform(0.12, 0.3)
        for i in (-1, 1):
            x = i * (width / 2 + wide / 2)
            beam(sketch, "arm", (x - wide / 2, lift, -depth / 2), (x + wide / 2, height + rise, depth / 2))
            if rng.random() < 0.5:
                rod(sketch, "arm", (x, height + rise, -depth / 2), (x, height + rise, depth / 2), wide * 0.6)
    if rng.random() < 0.2:
        side = rng.choice([-1, 1]) * (width - step) / 2
        beam(sketch, "base", (side - step / 2, lift, depth / 2), (side + step / 2, height, depth))
    if lift:
        legs(sketch, "foot", rng, rng.choice(["square", "round"]), width=width, depth=depth, height=lift)


def bed(sketch: Sketch, rng: np.random.Generator) -> None:
    """Mattress on a frame; mostly a headboard, often a footboard and pillows."""
    width, depth = rng.uniform(0.6, 1.4), rng.uniform(1.3, 1.7)
    height = rng.uniform(0.12, 0.4)
    slab, thick = rng.uniform(0.05, 0.15), rng.uniform(0.1, 0.22)
    sketch.add("frame", box(), (width, slab, depth), (0, height, 0))
    size = (width * rng.uniform(0.92, 1), thick, depth * 0.97)
    plate(sketch, "mattress", rng, rng.choice(["square", "soft"]), size, (0, height + slab / 2 + thick / 2, 0))
    style = rng.choice(["square", "round", "panels"])
    legs(sketch, "leg", rng, style, width=width, depth=depth, height=height - slab / 2)
    if rng.random() < 0.85:
        _board(sketch, rng, "headboard", width, height + rng.uniform(0.25, 0.7), -depth / 2)
    if rng.random() < 0.4:
        _board(sketch, rng, "headboard", width, height + rng.uniform(0.1, 0.35), depth / 2)
    if rng.random() < 0.6:
        count = 1 if width < 0.85 else 2
        for x in (np.arange(count) + 0.5) / count - 0.5:
            size = (width / count * 0.8, 0.12, depth * 0.2)
            sketch.add("pillow", cushion(0.6), size, (x * width, height + slab / 2 + thick + 0.03, -depth * 0.38))


def _board(sketch: Sketch, rng, part: str, width: float, tall: float, z: float) -> None:
    """A panel, or posts with rails, standing on the floor at `z`."""
    thick = rng.uniform(0.03, 0.07)
    if rng.random() < 0.6:
        beam(sketch, part, (-width / 2, 0, z - thick), (width / 2, tall, z))
        return
    for x in (-width / 2, width / 2):
        rod(sketch, part, (x, 0, z), (x, tall, z), thick * 0.7)
    rod(sketch, part, (-width / 2, tall * 0.95, z), (width / 2, tall * 0.95, z), thick * 0.5)
    for x in np.linspace(-0.4, 0.4, rng.integers(3, 8)) * width:
        rod(sketch, part, (x, tall * 0.3, z), (x, tall * 0.95, z), thick * 0.35)
