"""What a model costs: parameters by part, FLOPs, memory and speed, next to the published figures.

    python -m tools.cost --config cfgs/fine-tuning/point-m2ae/modelnet40.yaml
    python -m tools.cost --all --no_time --format markdown

FLOPs are those of matrix products and convolutions as PyTorch's counter sees them, two for a multiply-add; GMACs are half of that, and
papers call either of them FLOPs. They are counted on the layers as the papers have them; the ones that run need fewer, because the patch
embedding shares work between members of a group. Teachers and image branches are not part of it.

Memory and speed are those of training steps with AdamW, with `--all` each recipe in a process of its own. On one thread of a CPU, speed is
by seconds of the processor, which other programs do not lengthen; memory there is that of the whole process, with program and libraries.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datasets import build_dataset
from datasets.scenes import sample, targets, whole
from extensions.m2ae_ops.reference import attention as plain_attention
from extensions.m2ae_ops.reference import layers as plain_layers
from models import build_model
from models.detection import backbone as scene_backbone
from models.detection import layers as scene_layers
from models.layers import attention as attention_layer
from models.layers import embed as embed_layer
from tools.launch import load_recipe, methods
from tools.published.cost import PARAMETERS, flops_of
from tools.report.tables import FORMS
from utils import ROOT
from utils.config.schema import RunConfig
from utils.device import choose_device, peak_memory_mb
from utils.errors import UserError, run_command, say
from utils.files import write_atomic
from utils.reading import read_json

# Recipes of the table of all methods; a method need not have all of them.
RECIPES = (
    "pre-training/{}.yaml",
    "fine-tuning/{}/modelnet40.yaml",
    "segmentation/{}/shapenet_part.yaml",
)
SCENES = (
    "pre-training/point-m2ae/scannet.yaml",
    "detection/3detr/scannet.yaml",
    "detection/3detr-m/scannet.yaml",
)
COUNTED = 2  # clouds that FLOPs are counted on: batch norms train on more than one


@dataclass(frozen=True)
class Cost:
    """What one model costs, a sample where nothing else is said.

    Args:
        parts: parameters by the name of the part.
        published_parameters: of the authors' code, or None where it is not known.
        forward, step: GFLOPs, two a multiply-add: of the forward pass in evaluation, and of forward and backward in training.
        features: of the encoder alone, GFLOPs, as the linear SVM takes it; None for a model that is not pre-trained.
        published_forward: GFLOPs or GMACs that the authors say, or None.
        memory_mb, samples_per_second: of training steps; None where nothing was timed.
    """

    model: str
    points: int
    parameters: int
    parts: dict[str, int]
    published_parameters: int | None
    forward: float
    step: float
    features: float | None
    published_forward: float | None
    batch: int | None = None
    device: str | None = None
    memory_mb: float | None = None
    samples_per_second: float | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the cost of a recipe, or of all; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="YAML", help="recipe")
    what.add_argument("--all", action="store_true", help="the published recipes of all methods")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a key of the recipe"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clouds of a timed step (default: 8)")
    parser.add_argument(
        "--steps", type=int, default=3, metavar="N", help="that are timed, after one that is not (default: 3)"
    )
    parser.add_argument("--no_time", action="store_true", help="count only, train nothing")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there, else cpu)")
    parser.add_argument("--format", choices=FORMS, default="terminal", help="of the table (default: terminal)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="JSON",
        help="file that receives all numbers as well; with --all, what it has is kept",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    for name in ("batch", "steps"):
        if getattr(args, name) < (2 if name == "batch" else 1):
            raise UserError(f"--{name} {getattr(args, name)}: is too few; give 2 clouds and 1 step at least")
    device = choose_device(args.device)
    timed = None if args.no_time else (args.batch, args.steps)
    known, found = _known(args.out, args.set, args.batch if timed else None) if args.all else {}, {}
    with _processes(args.all and timed is not None) as compute:
        for recipe in all_recipes() if args.all else [args.config]:
            path = ROOT / "cfgs" / recipe if args.all else recipe
            found[recipe] = known.get(recipe) or compute(_of_recipe, path, args.set, device, timed)
            _write(args.out, args.set, known | found)
            if args.all:
                say(f"{recipe}: done")
    headers, rows = table(found)
    sys.stdout.write(FORMS[args.format](headers, rows))
    if not args.all:
        [only] = found.values()
        sys.stdout.write(
            "\n"
            + FORMS[args.format](["part", "parameters"], [[part, f"{count:,}"] for part, count in only.parts.items()])
        )


def _known(path: Path | None, settings: Sequence[str], batch: int | None) -> dict[str, Cost]:
    """Return what a file of an earlier command has, of the recipes that were timed with as many clouds.

    Raises:
        UserError: it is another file, or one of other settings, which would be overwritten.
    """
    if path is None or not path.is_file():
        return {}
    content = read_json(path, "what tools.cost --all has written")
    try:
        rows = {name: Cost(**row) for name, row in content["recipes"].items()}
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"--out {path}: was not written by tools.cost --all; give another file") from None
    before = content.get("settings", [])
    if before != list(settings):
        given = " ".join(f"--set {setting}" for setting in before) or "without --set"
        raise UserError(f"--out {path}: holds numbers of other settings ({given}); give another file")
    return {name: row for name, row in rows.items() if row.batch == batch}


def _write(path: Path | None, settings: Sequence[str], rows: Mapping[str, Cost]) -> None:
    if path is None:
        return
    recipes = {name: asdict(row) for name, row in rows.items()}
    content = {"unit": "GFLOPs a sample, two a multiply-add", "threads": torch.get_num_threads()}
    content |= {"settings": list(settings), "recipes": recipes}
    write_atomic(path, lambda file: file.write(f"{json.dumps(content, indent=1)}\n".encode()))


@contextlib.contextmanager
def _processes(apart: bool) -> Iterator[Any]:
    """Yield what calls a function, each time in a new process where they are to be apart: the most memory is that of a process."""
    if not apart:
        yield lambda function, *args: function(*args)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def _of_recipe(
    recipe: str | Path, overrides: Sequence[str], device: torch.device, timed: tuple[int, int] | None
) -> Cost:
    return cost(load_recipe(recipe, overrides=overrides), device, timed=timed)


def all_recipes() -> list[str]:
    """Return the published recipes of all methods that there are, below cfgs/, task by task."""
    named = [recipe.format(method) for recipe in RECIPES for method in methods()]
    return [name for name in [*named, *SCENES] if (ROOT / "cfgs" / name).is_file()]


def cost(config: RunConfig, device: torch.device, *, timed: tuple[int, int] | None = None) -> Cost:
    """Count, and where `timed` says (clouds, steps), time the model of a configuration."""
    torch.manual_seed(0)
    model = build_model(config.model).to(device)
    points = _points(config)
    measured = {} if timed is None else _time(model, _inputs(model, points, timed[0], device), device, timed[1])
    counted = _inputs(model, points, COUNTED, device)
    encodes = hasattr(model, "draw_mask")
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(
        model=config.model.NAME,
        points=points,
        parameters=parameters,
        parts={name: sum(p.numel() for p in part.parameters()) for name, part in _parts(model)},
        published_parameters=PARAMETERS.get((config.model.NAME, _variant(config))),
        forward=_flops(lambda: _evaluate(model, counted)),
        step=_flops(lambda: _train(model, counted)),
        features=_flops(lambda: _encode(model, counted)) if encodes else None,
        published_forward=flops_of(config.model.NAME),
        **measured,
    )


def table(rows: dict[str, Cost]) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of costs by recipe; columns that nothing is known of are left out."""
    columns = {
        "recipe": lambda name, row: name.removeprefix("cfgs/").removesuffix(".yaml"),
        "points": lambda name, row: str(row.points),
        "parameters": lambda name, row: f"{row.parameters:,}",
        "published": lambda name, row: "" if row.published_parameters is None else f"{row.published_parameters:,}",
        "GFLOPs forward": lambda name, row: f"{row.forward:.2f}",
        "GMACs forward": lambda name, row: f"{row.forward / 2:.2f}",
        "GFLOPs step": lambda name, row: f"{row.step:.2f}",
        "GFLOPs encoder": lambda name, row: "" if row.features is None else f"{row.features:.2f}",
        "published G": lambda name, row: "" if row.published_forward is None else f"{row.published_forward:g}",
        "batch": lambda name, row: "" if row.batch is None else str(row.batch),
        "memory, MB": lambda name, row: "" if row.memory_mb is None else f"{row.memory_mb:.0f}",
        "samples/s": lambda name, row: "" if row.samples_per_second is None else f"{row.samples_per_second:.3g}",
    }
    shown = {name: cell for name, cell in columns.items() if any(cell(*item) for item in rows.items())}
    return list(shown), [[cell(*item) for cell in shown.values()] for item in rows.items()]


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a model by name; parameters that are its own are one part each."""
    own = [(name, nn.ParameterList([p])) for name, p in model.named_parameters(recurse=False)]
    return [*own, *((name, part) for name, part in model.named_children() if any(True for _ in part.parameters()))]


def _points(config: RunConfig) -> int:
    """Return how many points of a cloud the network takes."""
    sets = config.dataset
    entry = sets.train or (sets.svm and sets.svm.train)
    if entry is None and config.npoints is None:
        raise UserError("npoints: is missing, and there is no data set that says it; give --set npoints=1024")
    named = (getattr(entry, key, 0) for key in ("npoints", "num_points", "N_POINTS"))
    return config.npoints or next(count for count in named if count)


def _variant(config: RunConfig) -> str:
    guidance = getattr(config.model, "guidance", None)
    return guidance.mode if guidance is not None else str(getattr(config.model, "cls_dim", ""))


class Inputs(NamedTuple):
    """Points (B, N, 3), what `forward` takes besides, and what the loss compares with."""

    points: Tensor
    others: tuple[Tensor, ...] = ()
    labels: Any = None


def _inputs(model: nn.Module, points: int, count: int, device: torch.device) -> Inputs:
    """Return built-in clouds as a model takes them: a part segmenter with the category of each, a detector rooms with their boxes."""
    config = model.config
    if hasattr(config, "preenc_npoints"):
        rooms = build_dataset({"NAME": "SyntheticScenes", "scenes": count, "N_POINTS": points, "npoints": points})
        scenes = [whole(rooms.points[row], rooms.boxes[row, : rooms.box_counts[row]]) for row in range(count)]
        drawn = [sample(scene, points, np.random.RandomState(0)) for scene in scenes]
        wanted = [targets(scene) for scene in drawn]
        labels = {key: torch.from_numpy(np.stack([own[key] for own in wanted])).to(device) for key in wanted[0]}
        return Inputs(torch.from_numpy(np.stack([scene.points for scene in drawn])).to(device), labels=labels)
    clouds = build_dataset({"NAME": "Synthetic", "clouds": 20, "N_POINTS": points}).points
    chosen = torch.from_numpy(clouds[[row % len(clouds) for row in range(count)]]).to(device)
    zeros = torch.zeros((count, points), dtype=torch.long, device=device)
    return Inputs(chosen, (zeros[:, 0],), zeros) if hasattr(config, "num_parts") else Inputs(chosen, labels=zeros[:, 0])


def _loss(model: nn.Module, inputs: Inputs) -> Tensor:
    if hasattr(model, "draw_mask"):
        return model(inputs.points, generator=torch.Generator().manual_seed(0))["loss"]
    loss = model.loss(model(model.transform(inputs.points), *inputs.others), inputs.labels)
    return loss["loss"] if isinstance(loss, dict) else loss


def _train(model: nn.Module, inputs: Inputs) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    _loss(model, inputs).backward()


@torch.no_grad()
def _evaluate(model: nn.Module, inputs: Inputs) -> None:
    model.eval()
    _loss(model, inputs)


@torch.no_grad()
def _encode(model: nn.Module, inputs: Inputs) -> None:
    model.eval()
    model.encode(inputs.points)


def _flops(compute) -> float:
    """Return the GFLOPs of one cloud."""
    with _plain(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / COUNTED / 1e9


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Let layers be what the papers have, in operations that PyTorch's counter knows, while FLOPs are counted."""

    def attend(qkv: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        return plain_attention.attention(qkv, None if valid is None else valid.sum(1), attend)[0]

    plain = {
        (attention_layer, "attention"): attend,
        (scene_layers, "attention"): attend,
        (scene_backbone, "FEW"): 0,  # masks, no lists of neighbours
        (embed_layer, "patch_embed"): plain_layers.patch_embed,
    }
    kept = {place: getattr(*place) for place in plain}
    try:
        for place, value in plain.items():
            setattr(*place, value)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for place, value in kept.items():
            setattr(*place, value)


def _time(model: nn.Module, inputs: Inputs, device: torch.device, steps: int) -> dict:
    """Return memory and speed of training steps: forward, backward and AdamW."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent = []
    for _ in range(steps + 1):
        started = clock()
        _train(model, inputs)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(clock() - started)
    batch = len(inputs.points)
    speed = batch / min(spent[1:])
    return {"batch": batch, "device": device.type, "memory_mb": peak_memory_mb(device), "samples_per_second": speed}


if __name__ == "__main__":
    sys.exit(main())
