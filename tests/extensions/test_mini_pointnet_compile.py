"""The Triton kernels compile to machine code for devices that are not here, at all sizes that the recipes ship and at the edges of others.

What is compiled is what training runs: numbers of groups and of tiles are no part of a compiled kernel.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensions.m2ae_ops.private.fused.check import rounds_to_tf32

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a block may have, by compute capability (CUDA C++ programming guide, technical specifications)."""
STACK = 512  # bytes a thread may keep outside of its registers
KERNELS = {"peak_kernel", "join_kernel", "winners_kernel", "join_backward_kernel", "members_backward_kernel"}
CAPABILITIES = pytest.mark.parametrize("capability", list(SHARED))


@functools.cache
def compiled(capability: int) -> dict[str, list[dict]]:
    """Return what the kernels of each kind use, by set; compiled in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.extensions.fused_compile", str(capability)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-3000:]
    sets: dict[str, list[dict]] = {"shipped": [], "allowed": []}
    for row in map(json.loads, answer.stdout.splitlines()):
        sets[row["set"]].append(row)
    return sets


def worst(row: dict, what: str) -> tuple[int, str]:
    return max((use[what], name) for name, uses in row["kernels"].items() for use in uses)


@pytest.mark.slow
@CAPABILITIES
def test_shipped_sizes_fit(capability):
    rows = compiled(capability)["shipped"]
    assert ["bfloat16", [16, 128, 256, 512, 96], True] in [row["kind"] for row in rows] and len(rows) >= 10
    for row in rows:
        others = {"moments_kernel"} if row["kind"][2] else {"column_kernel", "norm_backward_kernel"}
        assert set(row["kernels"]) == KERNELS | others
        assert worst(row, "shared")[0] <= SHARED[capability] * 1024, f"{row['kind']}: {worst(row, 'shared')}"
        assert worst(row, "stack")[0] <= STACK, f"{row['kind']}: {worst(row, 'stack')}"


@pytest.mark.slow
@CAPABILITIES
def test_allowed_sizes_compile(capability):
    """Odd sizes, the largest groups, all dtypes. Where a device has too little shared memory, the first use finds it out."""
    rows = compiled(capability)["allowed"]
    assert {row["kind"][0] for row in rows} == {"float16", "bfloat16", "float32"}
    for row in rows:
        dtype, (k, *_), _ = row["kind"]
        rounds = rounds_to_tf32(capability // 10, getattr(torch, dtype), k)
        assert worst(row, "tf32")[0] == rounds, f"{row['kind']}: TF32 in place of float32: {not rounds}"
        if dtype != "float32":
            fits = worst(row, "shared")[0] <= SHARED[capability] * 1024
            assert fits == (k <= 64 or SHARED[capability] > 99), f"{row['kind']}: {worst(row, 'shared')}"
