"""The pictures of README and documentation, drawn from the small weights that ship and from built-in clouds: `make figures`.

`shapes` draws the clouds, `canvas` lays pictures out, `features` draws what frozen encoders know, `tasks` what tasks and
methods do, `trained` what methods without small weights learn in runs of seconds. `FIGURES` names them all.
"""

from collections.abc import Callable

from PIL.Image import Image

from benchmarks.figures import features, tasks, trained

# File in docs/figures without its ending -> what draws it, given the side of a cell in pixels.
FIGURES: dict[str, Callable[[int], Image]] = {
    "overview": features.overview,
    "features": features.scales,
    "similarity": features.similarity,
    "attention": features.attention,
    "neighbours": features.nearest,
    "map": features.map_of_set,
    "rebuilt": features.rebuilt,
    "parts": tasks.parts,
    "ordering": tasks.ordering,
    "scene": tasks.scene,
    "difficulty": trained.difficulty,
    "depth": trained.depth_maps,
    "retrieval": trained.retrieval,
}
