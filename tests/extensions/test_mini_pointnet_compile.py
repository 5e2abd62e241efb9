"""The Triton kernels compile to machine code for devices that are not here, at all sizes that the recipes ship.

What is compiled is what training runs: numbers of groups and of tiles are no part of a compiled kernel.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from extensions.m2ae_ops.private.fused.limits import LARGEST_GROUP
from models import build_model
from models.layers.embed import PatchEmbed
from tests.test_recipes import RECIPES, load

ROOT = Path(__file__).parents[2]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a block may have, by compute capability (CUDA C++ programming guide, technical specifications)."""
STACK = 512  # bytes a thread may keep outside of its registers
KERNELS = {"peak_kernel", "join_kernel", "winners_kernel", "join_backward_kernel", "members_backward_kernel"}
CAPABILITIES = pytest.mark.parametrize("capability", list(SHARED))


def compiled(capability: int, kinds: list, folder: Path) -> dict[str, dict[str, list[dict]]]:
    """Return what the kernels of each kind use, by kind and name; in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "tests.extensions.fused_compile", json.dumps([capability, kinds])]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-3000:]
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [row["kind"] for row in rows] == kinds
    return {json.dumps(row["kind"]): row["kernels"] for row in rows}


def shipped() -> list[list]:
    """Return the kinds of mini-PointNet of all recipes of full size: (dtype, (k, A, W, C, D), of points)."""
    kinds = set()
    for path in RECIPES:
        config = load(path).model
        with torch.device("meta"):
            model = build_model(config)
        sizes = getattr(config, "group_sizes", None) or [config.group_size]
        embeds = [module for module in model.modules() if type(module) is PatchEmbed]
        for embed, k in zip(embeds, sizes, strict=False):
            (lift, *others), _ = embed.layers()
            A, P = lift.weight.flatten(1).shape
            if A >= 96:  # smaller ones are for tests and laptops
                kinds.add((k, A, *(len(layer.weight) for layer in others), P == 3))
    return [["bfloat16", list(sizes), points] for *sizes, points in sorted(kinds)]


def worst(kernels: dict[str, list[dict]], what: str) -> tuple[int, str]:
    return max((use[what], name) for name, uses in kernels.items() for use in uses)


@pytest.mark.slow
@CAPABILITIES
def test_shipped_sizes_fit(capability, tmp_path):
    kinds = shipped()
    assert ["bfloat16", [16, 128, 256, 512, 96], True] in kinds and len(kinds) >= 10
    for kind, kernels in compiled(capability, kinds, tmp_path).items():
        others = {"moments_kernel"} if json.loads(kind)[2] else {"column_kernel", "norm_backward_kernel"}
        assert set(kernels) == KERNELS | others
        assert worst(kernels, "shared")[0] <= SHARED[capability] * 1024, f"{kind}: {worst(kernels, 'shared')}"
        assert worst(kernels, "stack")[0] <= STACK, f"{kind}: {worst(kernels, 'stack')}"


@pytest.mark.slow
@CAPABILITIES
def test_allowed_sizes_compile(capability, tmp_path):
    """Odd sizes, the largest groups, all dtypes. Where a device has too little shared memory, the first use finds it out."""
    kinds = [
        ["bfloat16", [7, 16, 24, 20, 18], True],
        ["bfloat16", [1, 130, 65, 33, 17], False],
        ["float16", [65, 128, 256, 512, 384], True],
        ["bfloat16", [LARGEST_GROUP, 128, 256, 512, 384], True],
        ["float32", [32, 128, 256, 512, 384], True],
        ["float32", [8, 96, 96, 192, 192], False],
    ]
    found = compiled(capability, kinds, tmp_path)
    for kind, kernels in found.items():
        assert not worst(kernels, "tf32")[0], f"{kind} rounds float32 to TF32"
    largest = worst(found[json.dumps(kinds[3])], "shared")[0]
    assert (largest <= SHARED[capability] * 1024) == (SHARED[capability] > 99)
