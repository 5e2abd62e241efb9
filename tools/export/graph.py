"""A model as a graph that other programs run: `torch.export`, with the ops of this project as standard operators.

By default grouping stays outside: a graph takes what an encoder reads of a pyramid, `inputs_of`. Shapes: `B` batch, which is dynamic, `N`
points, `G` groups, `K` neighbours per group, `C` channels; scale index 0 = finest.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from extensions.m2ae_ops.exporting import decompositions
from models.base import PointModel
from models.classifier import Classifier
from models.layers.group import Pyramid
from tools.embedder import Embedder
from utils.errors import UserError
from utils.reading import reason

PARTS = ("encoder", "classifier")
OUTPUTS = {"encoder": ("features", "tokens"), "classifier": ("logits",)}
METADATA = "m2ae"  # where a file says what it is, as JSON
CLOUDS = 2  # of the batch that is traced
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.__trace")


def input_names(model: PointModel) -> list[str]:
    """Name the tensors of `inputs_of`."""
    scales = len(model.config.num_groups)
    if scales == 1:
        return ["neighborhoods", "centers"]
    centers = [f"centers_{scale}" for scale in range(scales)]
    return ["neighborhoods", *centers, *(f"members_{scale}" for scale in range(1, scales))]


def inputs_of(pyramid: Pyramid) -> list[Tensor]:
    """Return what an encoder reads of a pyramid.

    The neighbourhoods of the finest scale (B, G, K, 3), relative to their centres; the centres of each scale (B, G, 3); and for each
    scale but the finest which groups of the scale below are its members, (B, G, K) int64.
    """
    return [pyramid.neighborhoods[0], *pyramid.centers, *pyramid.idx[1:]]


class Graph(nn.Module):
    """A part of a model with tensors for arguments.

    Args:
        part: "encoder", which gives features (B, C) and tokens (B, G, C), or "classifier", which gives logits.
        with_grouping: take points (B, N, 3) in place of `inputs_of`.
    """

    def __init__(self, model: PointModel, part: str, *, with_grouping: bool):
        super().__init__()
        self.model, self.part, self.with_grouping = model, part, with_grouping
        self.scales = len(model.config.num_groups)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run the part of the model."""
        if self.with_grouping:
            pyramid = self.model.group(self.model.transform(inputs[0]))
        else:
            members, centers = inputs[0], list(inputs[1 : 1 + self.scales])
            # Encoders read neither which points the finest groups have nor the neighbourhoods of coarser ones.
            pyramid = Pyramid(centers, [members, *inputs[1 + self.scales :]], [members])
        tokens = self.model.patch_tokens(None, pyramid)
        features = self.model.pool(tokens)
        return self.model.head(features) if self.part == "classifier" else (features, tokens)


class Traced(NamedTuple):
    """A graph and what belongs to it."""

    program: torch.export.ExportedProgram
    module: Graph
    inputs: list[Tensor]  # of a batch to try it with
    names: list[str]  # of the inputs
    about: dict[str, Any]


def trace(embedder: Embedder, part: str, *, with_grouping: bool, npoints: int | None, onnx: bool) -> Traced:
    """Trace a part of a model for batches of any size.

    Args:
        npoints: points of a cloud, where grouping is inside; default: those that the model was trained with.
        onnx: the graph becomes ONNX.

    Raises:
        UserError: the model has no such part, or does what no graph can.
    """
    model = embedder.model
    if part == "classifier" and not isinstance(model, Classifier):
        raise UserError(
            f"--part classifier: {type(model).__name__} has no classes; give a fine-tuned checkpoint, or --part encoder"
        )
    count = npoints or embedder.npoints or max(1024, embedder.needed)
    if count < embedder.needed:
        raise UserError(f"--points {count}: {type(model).__name__} groups at least {embedder.needed} points")
    graph = Graph(model, part, with_grouping=with_grouping).eval().requires_grad_(False)
    points = torch.randn(CLOUDS, count, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    inputs = [points] if with_grouping else inputs_of(model.group(model.transform(points)))
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        with quietly(), torch.no_grad():
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=((batch,) * len(inputs),), strict=False)
            program = program.run_decompositions(decompositions(onnx=onnx))
    except Exception as error:  # the tracer meets what it cannot trace with anything
        raise cannot(graph, error) from error
    names = ["points"] if with_grouping else input_names(model)
    return Traced(program, graph, inputs, names, about(embedder, graph, names, count))


def about(embedder: Embedder, graph: Graph, names: Sequence[str], npoints: int) -> dict[str, Any]:
    """Return what a file says of itself: which model it is, what it takes and gives, and how clouds become that."""
    model, config = graph.model, graph.model.config
    steps = list(getattr(config, "val_transformations", ()))
    grouping = {"num_groups": list(config.num_groups), "group_sizes": list(config.group_sizes)}
    grouping |= {"skip_near_origin": model.skips_origin, "group_radius": getattr(config, "group_radius", None)}
    return {
        "model": config.NAME,
        "part": graph.part,
        "with_grouping": graph.with_grouping,
        "inputs": list(names),
        "outputs": list(OUTPUTS[graph.part]),
        "points": npoints,
        "placing": embedder.placing,
        "up": "y",
        "transform": steps,
        **grouping,
        "class_names": embedder.config.class_names if graph.part == "classifier" else None,
    }


def pack_program(traced: Traced) -> bytes:
    """Return the file of `torch.export.save`, which `torch.export.load` reads without this project."""
    file = BytesIO()
    with quietly():
        torch.export.save(traced.program, file, extra_files={f"{METADATA}.json": json.dumps(traced.about)})
    return file.getvalue()


def run_program(traced: Traced, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Run a traced model as PyTorch does."""
    with torch.no_grad():
        found = traced.program.module()(*inputs)
    return [output.numpy() for output in (found if isinstance(found, tuple) else (found,))]


def difference(traced: Traced, inputs: Sequence[Tensor], found: Sequence[np.ndarray]) -> float:
    """Return the largest difference of what a graph gives from what the model does, as a share of the largest value."""
    with torch.no_grad():
        wanted = traced.module(*inputs)
    pairs = zip(wanted if isinstance(wanted, tuple) else (wanted,), found, strict=True)
    return max(float(np.abs(want.numpy() - got).max() / max(1.0, want.abs().max())) for want, got in pairs)


def cannot(graph: Graph, error: Exception) -> UserError:
    """Return the message for a model that cannot become a graph."""
    follows = getattr(graph.model, "near_padding", False)
    why = "with legacy near_padding, shapes follow the data" if follows else reason(error)
    return UserError(
        f"{type(graph.model).__name__}: its {graph.part} cannot be exported: {why}; nothing was written. Use an encoder without what "
        "this names, or run it in PyTorch"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Keep warnings and logs of the exporters, which are about themselves, off the terminal."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    try:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
