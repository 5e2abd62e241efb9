"""What `tools.doctor` runs in processes of their own: every op on fixed inputs, and a few steps of every method.

    python -m tools.self_test OUT.pt [--device cuda] [--no_ops] [--methods a,b] [--graph] [--side] [--flags OF MAIN.PY ...]

Results go to a file as tensors on the CPU, by name.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import extensions as ops
from models import build_model
from models.layers.embed import PatchEmbed
from tools import accelerate, pretrain
from tools.launch import load_recipe, open_run
from utils import ROOT
from utils.config.cli import parse_args
from utils.seed import seed_everything

RECIPES = ROOT / "cfgs" / "debug"
SETTINGS = (
    "dataset.svm=null",
    "max_epoch_inclusive=false",
    "max_epoch=1",
    "total_bs=4",
    "dataset.train.clouds=32",
    "log_every=1",
)
TIMED = {
    "FPS, 32 x 2048 -> 512": lambda: (ops.fps, _cloud(32, 2048), 512),
    "kNN, 32 x 512 in 2048, k = 16": lambda: (ops.knn, _cloud(32, 512, seed=1), _cloud(32, 2048), 16),
    "Chamfer distance, 32 x (2048 x 2048), forward": lambda: (
        ops.chamfer_distance,
        _cloud(32, 2048),
        _cloud(32, 2048, seed=1),
    ),
}
"""Rows of benchmarks/results/ops-*.json, by their titles, and how to repeat them."""


def _cloud(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _indices(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(2))


def op_calls() -> dict[str, tuple[Callable, tuple]]:
    """Return a call of every op: its name, the function, and its arguments; gradients of floating arguments are checked too."""
    torch.manual_seed(0)
    embed, norm = PatchEmbed(3, 24, widths=(16, 32, 64)), nn.BatchNorm1d(24)
    visible = torch.rand(3, 20, generator=torch.Generator().manual_seed(3)) > 0.6
    points, others, small = _cloud(3, 700), _cloud(3, 90, seed=1), _cloud(8, 30, seed=2)
    weights = torch.rand(3, 90, 3, generator=torch.Generator().manual_seed(4))
    return {
        "fps": (lambda p: ops.fps(p, 64), (points,)),
        "fps, published rules": (lambda p: ops.fps(p, 64, skip_near_origin=True), (points,)),
        "knn": (lambda q, s: ops.knn(q, s, 16), (others, points)),
        "knn, many": (lambda q, s: ops.knn(q, s, 100), (others, points)),
        "three_nn": (ops.three_nn, (others, points)),
        "ball_query": (lambda q, s: ops.ball_query(q, s, 0.3, 16), (others, points)),
        "gather": (ops.gather, (_values(3, 50, 20), _indices(50, 3, 40, 8))),
        "group": (ops.group, (points, others, _indices(700, 3, 90, 16))),
        "three_interpolate": (ops.three_interpolate, (_values(3, 50, 20), _indices(50, 3, 90, 3), weights)),
        "chamfer_distance": (lambda a, b: ops.chamfer_distance(a, b)[:2], (points, others)),
        "chamfer_loss, cdl1, patches": (lambda a, b: ops.chamfer_loss(a, b, "cdl1"), (small, small.flip(0))),
        "chamfer_loss, cdl2, patches": (ops.chamfer_loss, (small, small.flip(0))),
        "chamfer_loss, clouds": (ops.chamfer_loss, (points, others)),
        "emd": (lambda a, b: ops.emd(a, b, eps=0.01, iters=100), (others, others.flip(0) + 0.1)),
        "attention": (ops.attention, (_values(2, 37, 3, 4, 16),)),
        "batch_norm": (lambda x: ops.batch_norm(x, norm.to(x.device)), (_values(300, 24),)),
        "batch_norm, ReLU": (lambda x: ops.batch_norm(x, norm.to(x.device), relu=True), (_values(300, 24),)),
        "patch_embed": (embed, (_cloud(4, 30, 16),)),
        "peak_and_mean": (ops.peak_and_mean, (_values(3, 64, 24),)),
        "visible_first": (lambda v: ops.visible_first(v, 20, tight=True), (visible,)),
    }


def run_ops(device: torch.device) -> dict[str, list[Tensor]]:
    """Return what every op gives, and its gradients."""
    found = {}
    for name, (function, arguments) in op_calls().items():
        placed = [argument.to(device) for argument in arguments]
        if isinstance(function, nn.Module):
            function.to(device)
        leaves = [argument.requires_grad_() for argument in placed if argument.is_floating_point()]
        result = function(*placed)
        outputs = [result] if isinstance(result, Tensor) else list(result)
        smooth = [output for output in outputs if output.requires_grad]
        if smooth:
            parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
            total = sum((output * _values(*output.shape).to(output)).sum() for output in smooth)
            gradients = torch.autograd.grad(total, [*leaves, *parameters], allow_unused=True)
            outputs += [gradient for gradient in gradients if gradient is not None]
        found[name] = [output.detach().cpu() for output in outputs]
    return found


def run_method(method: str, device: torch.device, flags: list[str]) -> list[Tensor] | str:
    """Return the losses of a few steps of pre-training by the smallest recipe of a method; later ones depend on the updates before.

    Where the flags ask for a CUDA graph of steps that cannot be captured, say why instead.
    """
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    recipe = RECIPES / f"{method}.yaml"
    argv = ["--config", str(recipe), "--exp_name", "self-test", "--device", str(device)]
    if parse_args([*argv, *flags]).cuda_graph == "on" and (reason := why_never_captured(recipe)):
        return reason
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run = open_run(parse_args([*argv, *settings, *flags]), device)
        seed_everything(run.seed, run.args.deterministic)
        with run.lock, run.log, patch.object(pretrain.Pretraining, "report", lambda self: None):
            pretrain.run_pretrain(run)
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [torch.tensor([row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"])]


def why_never_captured(recipe: Path) -> str | None:
    """Return why steps of a recipe can be captured on no device, or None."""
    with torch.device("meta"):
        model = build_model(load_recipe(recipe).model)
    return accelerate.data_dependent(model, torch.device("meta"))


def time_ops(device: torch.device) -> dict[str, list[Tensor]]:
    """Return the milliseconds of a few calls, by the title of their row."""
    found = {}
    for title, make in TIMED.items():
        function, *arguments = make()
        arguments = [x.to(device) if isinstance(x, Tensor) else x for x in arguments]
        times = []
        for _ in range(5):
            _wait(device)
            began = time.perf_counter()
            function(*arguments)
            _wait(device)
            times.append(1000 * (time.perf_counter() - began))
        found[title] = [torch.tensor(times[1:])]
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    """Run what the flags ask for and write the results; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools.self_test")
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", type=lambda text: text.split(",") if text else [], default=[])
    parser.add_argument("--no_ops", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--side", action="store_true", help="use the side stream, confirmed or not")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of main.py, last")
    args = parser.parse_args(arguments)
    device, out = torch.device(args.device), args.out.resolve()
    found = {"ops": {} if args.no_ops else run_ops(device), "methods": {}, "speed": {}}
    with patch.object(accelerate, "uses_side_stream", lambda run: args.side and device.type == "cuda"):
        for method in args.methods:
            found["methods"][method] = run_method(method, device, args.flags)
    if args.speed:
        found["speed"] = time_ops(device)
    torch.save(found, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
