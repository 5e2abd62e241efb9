"""What the notebooks of the tour share: the package, built-in clouds, commands and pictures.

In a clone they run its code, without installation; copied elsewhere, that of the installed package `m2ae`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

_CLONE = Path(__file__).resolve().parent.parent.parent
if (_CLONE / "api" / "__init__.py").is_file():
    sys.path.insert(0, str(_CLONE))
    import api as m2ae
    from datasets import build_dataset
    from tools.cli import main as _main
    from tools.report.clouds import unit_frame
    from tools.report.splat import draw
else:
    import m2ae
    from m2ae.datasets import build_dataset
    from m2ae.tools.cli import main as _main
    from m2ae.tools.report.clouds import unit_frame
    from m2ae.tools.report.splat import draw

__all__ = ["built_in", "command", "m2ae", "show"]
BLUE, ORANGE = np.array([31.0, 91.0, 168.0]), np.array([224.0, 108.0, 20.0])


def built_in(count: int, *, subset: str = "train", points: int = 1024, only: tuple[str, ...] = ()):
    """Draw clouds of the built-in set: points (count, points, 3), labels (count,), the names of the classes.

    Args:
        subset: "train" or "test".
        only: names of classes, which then take turns; none = all twenty.
    """
    clouds = build_dataset(
        {"NAME": "Synthetic", "subset": subset, "clouds": count, "N_POINTS": points, "categories": list(only)}
    )
    return torch.from_numpy(np.array(clouds.points)), np.array(clouds.labels), list(clouds.class_names)


def command(line: str) -> int:
    """Run `m2ae LINE`, as a terminal does; returns its exit status, 0 where all is well."""
    print(f"$ m2ae {line}")
    return _main(line.split())


def show(clouds, titles=(), *, colors=None, columns: int = 6, size: int = 150) -> None:
    """Show clouds, each (n, 3) with y up, in rows.

    Args:
        clouds: any number of them.
        titles: one a cloud.
        colors: one a cloud: (n, 3) RGB in 0-1, or (n,) bool, True = orange; none = blue.
        columns: clouds in a row.
        size: pixels of a picture.
    """
    rows = -(-len(clouds) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.65 * rows), squeeze=False, dpi=100)
    for number, axis in enumerate(axes.flat):
        axis.axis("off")
        if number >= len(clouds):
            continue
        cloud = np.asarray(clouds[number], np.float32)
        color = np.zeros(len(cloud), bool) if colors is None else np.asarray(colors[number])
        color = np.where(color[:, None], ORANGE, BLUE) if color.dtype == bool else 255 * color
        axis.imshow(draw(unit_frame(cloud, cloud, "y"), color, size))
        axis.set_title(titles[number] if number < len(titles) else "", fontsize=8)
    figure.tight_layout(pad=0.3)
    plt.show()
