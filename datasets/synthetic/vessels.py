"""Bottle, vase, mug, bathtub, toilet and lamp: mostly turned shapes. The floor is y = 0."""

import numpy as np

from datasets.synthetic.primitives import arc, box, cushion, cylinder, lathe, sphere, sweep, torus
from datasets.synthetic.sketch import Sketch, beam, rod


def smooth(knots, values, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Sample a curve through (`knots`, `values`) with cosine easing between them: heights (count,), radii (count,)."""
    at = np.linspace(knots[0], knots[-1], count)
    piece = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    knots, values = np.asarray(knots, float), np.asarray(values, float)
    share = (at - knots[piece]) / (knots[piece + 1] - knots[piece])
    share = (1 - np.cos(np.pi * share)) / 2
    return at, values[piece] + share * (values[piece + 1] - values[piece])


def _hollow(height: np.ndarray, radius: np.ndarray, wall: float, floor: float):
    """Outer profile, then the inner one back down to a closed floor: heights and radii for `lathe`."""
    inner = np.maximum(radius[::-1] - wall, 0.005)
    inside = np.maximum(height[::-1], height[0] + floor)
    return np.concatenate([height, inside, inside[-1:]]), np.concatenate([radius, inner, [0.0]])


def handle(sketch: Sketch, part: str, rng, x: float, y: float, wide: float, tall: float, thick: float) -> None:
    """Add a bow that stands out from (x, y) towards +x."""
    if rng.random() < 0.7:
        path = arc(-np.pi / 2, np.pi / 2, 12) * (wide, tall / 2, 1)
    else:
        path = np.array([[0, -0.5, 0], [0.8, -0.5, 0], [1, -0.35, 0], [1, 0.35, 0], [0.8, 0.5, 0], [0, 0.5, 0]])
        path = path * (wide, tall, 1)
    sketch.add(part, sweep(path, thick, 8), (1, 1, rng.uniform(0.8, 1.8)), (x, y, 0))


def bottle(sketch: Sketch, rng: np.random.Generator) -> None:
    """Body, shoulder with neck, mostly a cap; sometimes a handle."""
    radius, tall = rng.uniform(0.13, 0.28), rng.uniform(0.45, 0.8)
    neck, rise = radius * rng.uniform(0.2, 0.6), rng.uniform(0.12, 0.4)
    waist = rng.uniform(0.75, 1.1)
    height, width = smooth([0, 0.3, 0.6, 1], [rng.uniform(0.85, 1), 1, waist, rng.uniform(0.85, 1)])
    square = (1.0, 1.0, 1.0) if rng.random() < 0.75 else (1.0, 1.0, rng.uniform(0.45, 0.75))
    segments = 20 if rng.random() < 0.75 else 4
    body = lathe(np.concatenate([[0], width * radius]), np.concatenate([[0], height * tall]), segments)
    sketch.add("body", body, square)
    share = rng.uniform(0.3, 0.8)
    up, slope = smooth([0, share, 1], [width[-1] * radius, neck, neck * rng.uniform(0.9, 1.1)])
    sketch.add("neck", lathe(slope, tall + up * rise, segments), square)
    if rng.random() < 0.75:
        size = neck * rng.uniform(2.1, 2.8)
        cap = rng.uniform(0.03, 0.12)
        sketch.add("cap", cylinder(round(rng.uniform(0.7, 1), 1)), (size, cap, size), (0, tall + rise + cap / 2, 0))
    else:
        sketch.add("neck", lathe([neck * 1.15, neck * 1.15], [tall + rise - 0.03, tall + rise], segments), square)
    if rng.random() < 0.2:
        handle(sketch, "handle", rng, radius * 0.85, tall * 0.75, radius * 0.8, tall * 0.5, 0.02)


def vase(sketch: Sketch, rng: np.random.Generator) -> None:
    """Foot, belly and rim with an open mouth; sometimes one or two handles."""
    tall, radius = rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.34)
    foot, mouth = rng.uniform(0.35, 0.9), rng.uniform(0.3, 1.2)
    low, high = rng.uniform(0.25, 0.5), rng.uniform(0.7, 0.9)
    throat = mouth * rng.uniform(0.55, 0.95)
    height, width = smooth([0, low, high, 1], [foot, 1, throat, mouth], 16)
    split = 13  # the last rows are the rim
    wall = 0.02
    up, out = height * tall + 0.04, width * radius
    sketch.add("belly", lathe(out[:split], up[:split]))
    inner = np.maximum(out[::-1] - wall, 0.005)
    inside = np.maximum(up[::-1], up[0] + 0.02)
    sketch.add("belly", lathe(np.append(inner[2:], 0), np.append(inside[2:], inside[-1])))
    sketch.add("rim", lathe(np.append(out[split - 1 :], inner[:3]), np.append(up[split - 1 :], inside[:3])))
    base = out[0] * rng.uniform(1.0, 1.3) * 2
    sketch.add("foot", cylinder(), (base, rng.uniform(0.04, 0.09), base), (0, 0.03, 0))
    for side in range(rng.choice([0, 1, 2], p=[0.65, 0.1, 0.25])):
        level = rng.uniform(0.55, 0.65) * tall
        part = Sketch()
        handle(part, "handle", rng, radius * 0.8, level, radius * 0.6, tall * 0.4, 0.018)
        sketch.merge(part, turned=side == 1)


def mug(sketch: Sketch, rng: np.random.Generator) -> None:
    """Open cup with floor and handle; sometimes a saucer or a lid."""
    radius, tall = rng.uniform(0.2, 0.4), rng.uniform(0.35, 0.8)
    height, width = smooth([0, 0.5, 1], [rng.uniform(0.6, 1), rng.uniform(0.9, 1.1), 1], 8)
    wall = rng.uniform(0.015, 0.04)
    up, out = _hollow(height * tall, width * radius, wall, 0.03)
    sketch.add("wall", lathe(out[:-1], up[:-1]))
    size = 2 * width[0] * radius
    sketch.add("floor", cylinder(), (size * 0.98, 0.03, size * 0.98), (0, 0.016, 0))
    if rng.random() < 0.92:
        out, high, thick = radius * rng.uniform(0.4, 0.9), tall * rng.uniform(0.4, 0.75), rng.uniform(0.02, 0.045)
        handle(sketch, "handle", rng, radius * 0.95, tall * 0.5, out, high, thick)
    if rng.random() < 0.2:
        reach = radius * rng.uniform(1.5, 2.0)
        sketch.add("saucer", lathe([0, reach * 0.5, reach, reach * 0.97, 0], [-0.03, -0.03, 0.05, 0.06, 0.0]))
    if rng.random() < 0.15:
        sketch.add("lid", cylinder(), (radius * 2.1, 0.05, radius * 2.1), (0, tall + 0.02, 0))
        sketch.add("lid", sphere(8), (0.1, 0.1, 0.1), (0, tall + 0.08, 0))


def bathtub(sketch: Sketch, rng: np.random.Generator) -> None:
    """Long open basin; mostly a thick rim, sometimes feet, a tap or a plinth."""
    width, depth, tall = rng.uniform(1.2, 1.7), rng.uniform(0.55, 0.85), rng.uniform(0.35, 0.65)
    lift = rng.uniform(0.06, 0.16) if rng.random() < 0.4 else 0.0
    floor, wall = rng.uniform(0.5, 0.9), rng.uniform(0.03, 0.1)
    if rng.random() < 0.6:
        height, out = smooth([0, 0.4, 1], [floor, rng.uniform(0.85, 0.98), 1.0], 8)
        up, out = _hollow(height * tall, 0.5 * out, wall * 0.7, 0.06)
        up, out = np.append(up[0], up), np.append(0.0, out)  # closes the underside
        sketch.add("basin", lathe(out, up), (width, 1, depth), (0, lift, 0))
        sketch.add("rim", torus(rng.uniform(0.02, 0.05)), (width, 1.2, depth), (0, lift + tall, 0))
    else:
        _box_tub(sketch, rng, width, depth, tall, wall, lift)
    if lift:
        for x in (-1, 1):
            for z in (-1, 1):
                start = (x * width * 0.3, lift + 0.05, z * depth * 0.27)
                rod(sketch, "foot", start, (x * width * 0.34, 0, z * depth * 0.32), 0.04, 0.6)
    if rng.random() < 0.4:
        x = -width / 2 + 0.03
        rod(sketch, "tap", (x, lift + tall, 0), (x, lift + tall + 0.2, 0), 0.025)
        rod(sketch, "tap", (x, lift + tall + 0.19, 0), (x + 0.16, lift + tall + 0.17, 0), 0.02)


def _box_tub(sketch: Sketch, rng, width: float, depth: float, tall: float, wall: float, lift: float) -> None:
    """Four walls, a floor, and a rim that stands out."""
    over, top = rng.uniform(1.0, 1.2), lift + tall
    for side in (-1, 1):
        x, z = side * width / 2, side * depth / 2
        beam(sketch, "basin", (-width / 2, lift, z - wall / 2), (width / 2, top, z + wall / 2))
        beam(sketch, "basin", (x - wall / 2, lift, -depth / 2), (x + wall / 2, top, depth / 2))
        sketch.add("rim", box(), (width * over, 0.04, wall * 2), (0, top, z))
        sketch.add("rim", box(), (wall * 2, 0.04, depth * over), (x, top, 0))
    sketch.add("basin", box(), (width, 0.05, depth), (0, lift + 0.05, 0))


def toilet(sketch: Sketch, rng: np.random.Generator) -> None:
    """Pedestal, bowl with seat, and tank; sometimes a lid, open or closed, or no tank."""
    width, depth, height = rng.uniform(0.36, 0.5), rng.uniform(0.48, 0.68), rng.uniform(0.35, 0.48)
    up, out = smooth([0, 0.35, 1], [rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.6), 1.0], 8)
    sketch.add("pedestal", lathe(out[:4] * 0.5, up[:4] * height), (width, 1, depth))
    rise, ring = _hollow(up[3:] * height, out[3:] * 0.5, 0.09, 0.04)
    sketch.add("bowl", lathe(ring, rise), (width, 1, depth))
    sketch.add("seat", torus(rng.uniform(0.05, 0.09)), (width * 0.95, 0.5, depth * 0.95), (0, height + 0.02, 0))
    rear = -depth / 2
    if rng.random() < 0.85:
        wide, deep, tall = width * rng.uniform(0.9, 1.3), rng.uniform(0.14, 0.22), rng.uniform(0.25, 0.45)
        back, front = rear - deep * 0.7, rear + deep * 0.3
        beam(sketch, "tank", (-wide / 2, height - 0.06, back), (wide / 2, height + tall, front))
        sketch.add("tank", box(), (wide * 1.06, 0.04, deep * 1.1), (0, height + tall, rear - deep * 0.2))
    if rng.random() < 0.6:
        if rng.random() < 0.5:
            sketch.add("lid", cylinder(), (width, 0.03, depth), (0, height + 0.07, 0))
        else:
            sketch.add("lid", cushion(0.6), (width, depth * 0.9, 0.04), (0, height + depth * 0.45, rear + 0.12))


def lamp(sketch: Sketch, rng: np.random.Generator) -> None:
    """Base, pole and shade: floor, table, desk-arm or hanging lamp; half of them show the bulb."""
    style = rng.choice(["floor", "table", "arm", "hanging"], p=[0.35, 0.3, 0.2, 0.15])
    low, high = {"floor": (1.1, 1.7), "table": (0.4, 0.7), "arm": (0.6, 0.95), "hanging": (0.4, 1.0)}[style]
    tall = rng.uniform(low, high)
    wide, cover, taper = rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.4), rng.uniform(0.25, 1.0)
    _lamp_base(sketch, rng, hanging=style == "hanging", tall=tall)
    top = np.array([0.0, 0.0 if style == "hanging" else tall, 0.0])
    if style == "arm":
        elbow = np.array([rng.uniform(-0.35, -0.1), rng.uniform(0.4, 0.6), 0])
        top[0] = rng.uniform(0.1, 0.5)
        rod(sketch, "pole", (0, 0.03, 0), elbow, 0.02)
        rod(sketch, "pole", elbow, top, 0.02)
        wide, cover = wide * 0.6, cover * 0.8
    elif style == "table":
        up, out = smooth([0, 0.4, 1], [rng.uniform(0.05, 0.15), rng.uniform(0.05, 0.2), 0.04], 10)
        sketch.add("pole", lathe(out, up * tall))
    else:
        rod(sketch, "pole", (0, 0, 0), (0, tall, 0), rng.uniform(0.012, 0.03))
    if rng.random() < 0.8:
        sketch.add("shade", lathe([0.5, 0.5 * taper], [-0.5, 0.5]), (wide, cover, wide), top - [0, cover * 0.2, 0])
    else:
        sketch.add("shade", sphere(), (wide * 0.8, wide * rng.uniform(0.6, 0.9), wide * 0.8), top)
    if rng.random() < 0.5:
        sketch.add("bulb", sphere(8), (0.1, 0.14, 0.1), top - [0, cover * 0.25, 0])


def _lamp_base(sketch: Sketch, rng, *, hanging: bool, tall: float) -> None:
    """A rose at the ceiling, a plate on the floor, or three feet."""
    plinth = rng.uniform(0.25, 0.45)
    if hanging:
        sketch.add("base", cylinder(), (plinth * 0.5, 0.05, plinth * 0.5), (0, tall, 0))
    elif rng.random() < 0.7:
        plate = cylinder(round(rng.uniform(0.2, 1), 1))
        sketch.add("base", plate, (plinth, rng.uniform(0.03, 0.12), plinth), (0, 0.03, 0))
    else:
        for angle in np.arange(3) * 2 * np.pi / 3:
            tip = (np.cos(angle) * plinth * 0.7, 0, np.sin(angle) * plinth * 0.7)
            rod(sketch, "base", (0, 0.2, 0), tip, 0.02)
