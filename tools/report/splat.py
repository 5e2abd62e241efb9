"""Draw a cloud as small shaded balls into an image array, the same way the page's viewer does."""

import numpy as np

YAW, PITCH = 0.65, 0.38  # radians; the view that every cloud starts from
CAMERA = 4.0  # distance of the eye from the centre, in radii of the cloud: a gentle perspective
MARGIN = 0.92  # share of the image that the unit sphere fills
LIGHT = np.array([-0.45, 0.62, 0.64], np.float32)


def view(points: np.ndarray, yaw: float = YAW, pitch: float = PITCH) -> np.ndarray:
    """Turn `points` (n, 3), y up, to (n, 3) screen coordinates: x right, y up, z towards the eye."""
    cos_y, sin_y, cos_p, sin_p = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    tilt = np.array([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]])
    return points @ (tilt @ turn).T.astype(np.float32)


def draw(points: np.ndarray, colors: np.ndarray, size: int, *, ball: float = 0.014, clear: bool = False) -> np.ndarray:
    """Return a (size, size, 3) uint8 image on white, or, with `clear`, one of (size, size, 4) on nothing.

    Args:
        points: (n, 3) inside the unit sphere, y up.
        colors: (n, 3) RGB in 0-255.
        ball: radius of a ball at the centre, as a share of `size`.
    """
    image = np.full((size * size, 3), 255.0, np.float32)
    nearest = np.full(size * size, -np.inf, np.float32)
    seen = view(points)
    seen = seen[order := np.argsort(seen[:, 2])]  # far to near: of several writes to one pixel the last one counts
    zoom = CAMERA / np.maximum(CAMERA - seen[:, 2], 0.1)
    half = size * MARGIN / 2
    column = np.rint(size / 2 + seen[:, 0] * zoom * half).astype(np.int64)
    row = np.rint(size / 2 - seen[:, 1] * zoom * half).astype(np.int64)
    radius = np.maximum(1.0, ball * size * zoom)
    fog = np.clip(0.5 - 0.5 * seen[:, 2], 0, 1)[:, None] * 0.42
    paint = colors[order] * (1 - fog) + 255 * fog
    reach = int(np.ceil(radius.max(initial=1.0)))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy >= reach * reach:
                continue
            height = 1 - (dx * dx + dy * dy) / radius**2
            x, y = column + dx, row + dy
            depth = seen[:, 2] + np.sqrt(np.maximum(height, 0)) * radius / half
            inside = (height > 0) & (x >= 0) & (x < size) & (y >= 0) & (y < size)
            pixel = np.where(inside, y * size + x, 0)
            inside &= depth > nearest[pixel]
            normal_z = np.sqrt(np.maximum(height, 0))
            diffuse = np.maximum(0, (LIGHT[0] * dx - LIGHT[1] * dy) / radius + LIGHT[2] * normal_z)
            shade = (0.58 + 0.5 * diffuse)[:, None]
            # A far point with a larger z offset cannot stand after a nearer one here: radii shrink with distance.
            image[pixel[inside]] = (paint * shade)[inside]
            nearest[pixel[inside]] = depth[inside]
    if clear:
        image = np.concatenate([image, np.where(np.isfinite(nearest), 255, 0)[:, None]], axis=1)
    return np.clip(image, 0, 255).astype(np.uint8).reshape(size, size, -1)
