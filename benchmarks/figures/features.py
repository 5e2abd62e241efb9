"""What the small weights know, without any training: colours, similarity, attention, neighbours, a map, reconstructions."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image

from benchmarks.figures.canvas import GREY, HIDDEN, INK, Block, Cell, block, picture, side_by_side, stacked
from benchmarks.figures.shapes import Shape, shapes
from extensions import fps
from models import build_model
from models.base import PointModel
from tools.embedder import open_embedder
from tools.launch import weights_file
from tools.look.capture import Scale, observe
from tools.look.projection import cosine, interpolate, neighbours, principal_axes
from tools.look.rebuild import Rebuilt, rebuild
from tools.look.sheets import ramp
from tools.report.clouds import CATEGORIES, HEIGHT_SCALE, scale_colors
from utils.seed import seed_everything

M2AE, MAE = "mini", "mini-point-mae"
SHOWN = ("chair", "airplane", "table", "lamp")
SCALES = ("fine", "middle", "coarse")
WALL = ("airplane", "chair", "guitar", "mug", "sofa", "table")  # whose first clouds ask for their neighbours
ON_MAP = ("airplane", "bottle", "car", "chair", "guitar", "lamp", "monitor", "mug", "rocket", "table")
# Where the patches of `similarity` are, as shares of the half extent: number of the cloud among `SHOWN`, words, place.
ASKED = (
    (0, "a front leg\nof the chair", (0.35, -0.9, 0.35)),
    (1, "a wing\nof the plane", (-0.9, 0.0, 0.0)),
    (3, "the shade\nof the lamp", (0.0, 1.0, 0.0)),
)
FRONT_LEG = np.array([0.5, -2.0, 0.7])  # direction of the foot that asks in `attention`
PINK, WRONG = (0.93, 0.18, 0.46), "#b5402f"
SPARSE = 0.02  # ball of a cloud of 1,024 points


@cache
def model_of(name: str) -> PointModel:
    """Return the small model of a name, in evaluation mode."""
    return open_embedder(str(weights_file(name, None))).model


def untrained(name: str) -> PointModel:
    """Return a model of the same size with random weights of seed 0."""
    seed_everything(0)
    return build_model(model_of(name).config).eval()


def encode(model: PointModel, clouds: Sequence[Shape]) -> list[list[Scale]]:
    """Return the patches of every cloud at every scale: scale, cloud."""
    return [list(column) for column in zip(*(observe(model, cloud.given)[1] for cloud in clouds), strict=True)]


def features_of(model: PointModel, clouds: Sequence[Shape]) -> np.ndarray:
    """Return the features (M, C) of whole clouds."""
    with torch.inference_mode():
        return model.encode(torch.stack([cloud.given for cloud in clouds])).numpy()


def on_points(cloud: Shape, patches: Scale, values: np.ndarray) -> np.ndarray:
    """Carry values (P,) or (P, C) of patches over to the points."""
    return interpolate(cloud.points, patches.centers, values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])


def principal_colors(clouds: Sequence[Shape], patches: Sequence[Scale]) -> list[np.ndarray]:
    """Return a colour for each point of the clouds: the first three axes of all patches together."""
    axes = principal_axes([one.features for one in patches])
    return [on_points(cloud, one, axes.colors(one.features)) for cloud, one in zip(clouds, patches, strict=True)]


def heights(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return colours (n, 3) of points by their height in a cloud."""
    low, high = frame[:, 1].min(), frame[:, 1].max()
    return scale_colors(HEIGHT_SCALE, (points[:, 1] - low) / max(high - low, 1e-6)) / 255


def marked(cloud: Shape, patches: Scale, row: int, colors: np.ndarray, radius: float = 0.13) -> np.ndarray:
    """Return colours with the surroundings of a patch in pink."""
    near = np.linalg.norm(cloud.points - patches.centers[row], axis=1) < radius
    return np.where(near[:, None], PINK, colors)


def overview(side: int) -> Image.Image:
    """Draw what the features know next to what the model rebuilds."""
    rows = shapes(SHOWN[:3], 4)
    clouds = [cloud for row in rows for cloud in row]
    colors = iter(principal_colors(clouds, encode(model_of(MAE), clouds)[0]))
    lines = [
        [*(Cell(cloud.points, next(colors)) for cloud in row), *_rebuilding(row[0], model_of(MAE))] for row in rows
    ]
    titles = {0: "What the features know: equal colours, similar features", 4: "What the model rebuilds"}
    return block(Block(lines, titles, ["", "", "", "", "input", "visible", "rebuilt"]), side)


def _rebuilding(cloud: Shape, model: PointModel) -> list[Cell]:
    """Draw input, points of visible patches, and the rebuilt cloud with what was made in orange."""
    points = cloud.given.numpy()
    made = rebuild(model, cloud.given, seed=0)
    assert made is not None
    visible = points[~made.hidden]
    whole, colors = thinned(made, len(points))
    return [
        Cell(points, heights(points, points), frame=points, ball=SPARSE),
        Cell(visible, heights(visible, points), frame=points, ball=SPARSE),
        Cell(whole, colors, frame=points, ball=SPARSE),
    ]


def thinned(made: Rebuilt, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return evenly chosen points (count, 3) of a rebuilt cloud, grey where they were visible, orange where they were made."""
    keep = fps(torch.from_numpy(made.cloud)[None], count)[0].numpy()
    return made.cloud[keep], np.where(made.made[keep, None], HIDDEN, GREY)


def scales(side: int) -> Image.Image:
    """Draw the colours of every scale of both models, and those of random weights."""
    clouds = [cloud for row in shapes(SHOWN, 2) for cloud in row]
    lines = {"Point-M2AE": model_of(M2AE), "Point-MAE": model_of(MAE), "random": untrained(MAE)}
    rows, sides = [], []
    for title, model in lines.items():
        for scale, patches in enumerate(encode(model, clouds)):
            colors = principal_colors(clouds, patches)
            rows.append([Cell(cloud.points, color) for cloud, color in zip(clouds, colors, strict=True)])
            name = f"Point-M2AE\n{SCALES[scale]}" if title == "Point-M2AE" else title
            name = "Point-MAE,\nuntrained" if title == "random" else name
            sides.append(f"{name}\n{len(patches[0].centers)} patches")
    return block(Block(rows, sides=sides), round(side * 0.8))


def similarity(side: int) -> Image.Image:
    """Draw how similar all patches are to one of a cloud."""
    clouds = [cloud for row in shapes(SHOWN, 2) for cloud in row]
    patches = encode(model_of(MAE), clouds)[0]
    mean = np.concatenate([one.features for one in patches]).mean(0)
    rows = []
    for category, _, place in ASKED:
        number = 2 * category
        low, high = clouds[number].points.min(0), clouds[number].points.max(0)
        row = patches[number].nearest((low + high) / 2 + np.array(place) * (high - low) / 2)
        query, line = patches[number].features[row] - mean, []
        for other, (cloud, one) in enumerate(zip(clouds, patches, strict=True)):
            colors = ramp(on_points(cloud, one, cosine(query, one.features - mean)), -1, 1)
            line.append(Cell(cloud.points, marked(cloud, one, row, colors) if other == number else colors))
        rows.append(line)
    sides = [words for _, words, _ in ASKED]
    return block(Block(rows, {0: "Similarity to the pink patch"}, sides=sides, scale=("-1", "1")), round(side * 0.8))


def attention(side: int) -> Image.Image:
    """Draw what a patch attends to, by scale or layer, and head."""
    cloud = shapes(["chair"], 1)[0][0]
    images = []
    for title, name in (("Point-M2AE, by scale and head", M2AE), ("Point-MAE, by layer and head", MAE)):
        rows, sides = [], []
        found = observe(model_of(name), cloud.given)[1]
        for scale, one in enumerate(found):
            patch = one.nearest(cloud.points[(cloud.points @ FRONT_LEG).argmax()])
            for layer, heads in enumerate(one.attention(patch)):
                rows.append([_attended(cloud, one, patch, weights[one.extra :]) for weights in heads])
                sides.append(SCALES[scale] if len(found) > 1 else f"layer {layer}")
        images.append(block(Block(rows, {0: title}, sides=sides), round(side * 0.8)))
    return side_by_side(images, side // 3)


def _attended(cloud: Shape, patches: Scale, patch: int, weights: np.ndarray) -> Cell:
    colors = ramp(on_points(cloud, patches, weights), 0, float(weights.max()))
    return Cell(cloud.points, marked(cloud, patches, patch, colors), f"0 to {weights.max():.2f}")


def nearest(side: int) -> Image.Image:
    """Draw clouds and those whose features are most similar to theirs; grey where the class is another."""
    categories = sorted({*WALL, *ON_MAP})
    clouds = [cloud for row in shapes(categories, 12, turned=True) for cloud in row]
    near, _ = neighbours(features_of(model_of(MAE), clouds), 5)
    rows = []
    for name in WALL:
        number = next(index for index, cloud in enumerate(clouds) if cloud.category == name)
        line = []
        for other in (number, *near[number]):
            points, category = clouds[other].points, clouds[other].category
            colors = heights(points, points) if category == name else np.tile(GREY, (len(points), 1))
            line.append(Cell(points, colors, category, ink=INK if category == name else WRONG))
        rows.append(line)
    heads = ["cloud", *(f"neighbour {rank}" for rank in range(1, 6))]
    return block(Block(rows, heads=heads), round(side * 0.8))


def map_of_set(side: int) -> Image.Image:
    """Draw clouds where t-SNE puts their features, with random and with trained weights."""
    clouds = [cloud for row in shapes(ON_MAP, 15, turned=True) for cloud in row]
    size = 4 * side
    marks = [picture(Cell(cloud.points[:500], _class_colors(cloud), ball=0.035), size // 13) for cloud in clouds]
    maps = [
        _map(marks, features_of(model, clouds), size, title)
        for model, title in ((untrained(MAE), "Random weights"), (model_of(MAE), "Pre-trained weights"))
    ]
    firsts = [row[0] for row in shapes(ON_MAP, 1)]
    legend = Block([[Cell(cloud.points, _class_colors(cloud), cloud.category) for cloud in firsts]])
    return stacked([side_by_side(maps, side // 4), block(legend, round(0.8 * side))], side // 8)


def _class_colors(cloud: Shape) -> np.ndarray:
    color = CATEGORIES[ON_MAP.index(cloud.category)]
    return np.tile([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)], (len(cloud.points), 1))


def _map(marks: Sequence[Image.Image], features: np.ndarray, size: int, title: str) -> Image.Image:
    from sklearn.manifold import TSNE

    places = TSNE(perplexity=15, init="pca", random_state=0).fit_transform(features)
    low, high = places.min(0), places.max(0)
    corners = ((places - low) / (high - low) * (size - marks[0].width)).round().astype(int)
    image = block(Block([[None]], {0: title}), size, size // 44)
    for (x, y), mark in zip(corners, marks, strict=True):
        drawn = Image.fromarray(np.where(np.asarray(mark).min(2) > 250, 0, 255).astype(np.uint8))
        image.paste(mark, (int(x), int(image.height - size + y)), drawn)
    return image


def rebuilt(side: int) -> Image.Image:
    """Draw the masks of all scales, what is visible, what is rebuilt, and the error of each point."""
    model, rows = model_of(M2AE), []
    for (cloud,) in shapes(SHOWN[:3], 1):
        points = cloud.given.numpy()
        made = rebuild(model, cloud.given, seed=0)
        assert made is not None
        masks = []
        for scale, centers in enumerate(model.group(cloud.given[None]).centers):
            mask = made.masks[scale]
            owner = ((points[:, None] - centers[0].numpy()) ** 2).sum(2).argmin(1)
            colors = np.where(mask[owner, None], HIDDEN, GREY)
            masks.append(Cell(points, colors, f"{mask.sum()} of {len(mask)} hidden", points, SPARSE))
        whole, visible, last = _rebuilding(cloud, model)
        most = float(np.quantile(made.error, 0.99))
        error = Cell(points, ramp(made.error, 0, most), f"0 to {most:.2f}", points, SPARSE)
        rows.append([whole, *masks[::-1], visible, last, error])
    heads = ["input", *(f"{name} patches" for name in SCALES[::-1]), "visible", "rebuilt", "error"]
    return block(Block(rows, heads=heads), round(side * 0.9))
