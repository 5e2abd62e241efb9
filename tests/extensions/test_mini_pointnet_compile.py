"""The Triton kernels compile to machine code for Hopper and Blackwell at the sizes of the recipes; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# Kernels compile in a process of their own: Triton is not to be in its interpreter there.
SCRIPT = """
import json, os, subprocess, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends import nvidia
from triton.compiler import ASTSource
from extensions.m2ae_ops.private.fused import backward, check, forward, launch
from extensions.m2ae_ops.reference import embedding as reference

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.float64: "*fp64"}
capability, dtype, sizes, points = json.loads(sys.argv[1])
calls = []


class Launched:
    # Takes the place of a kernel: keeps what it is launched with.
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **options: calls.append((self.kernel, dict(zip(self.kernel.arg_names, args)) | options))


for module in (forward, backward):
    for name in [name for name in vars(module) if name.endswith("_kernel")]:
        setattr(module, name, Launched(getattr(module, name)))
torch.cuda.get_device_capability = lambda device: (capability // 10, 0)
torch.Tensor.is_cuda = property(lambda self: True)
check.differences(launch, reference, sizes, points=points, dtype=getattr(torch, dtype), device="cpu")

found = {}
for kernel, bound in calls:
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature, values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = bound[name]
        if name in constants:
            signature[name], values[(place,)] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {name: bound[name] for name in ("num_warps", "num_stages") if name in bound}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    path = os.path.join(os.environ["TRITON_CACHE_DIR"], "kernel.cubin")
    open(path, "wb").write(code.asm["cubin"])
    tool = os.path.join(os.path.dirname(nvidia.__file__), "bin", "cuobjdump")
    usage = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    stack = int(usage.split("STACK:")[1].split()[0])
    found.setdefault(kernel.__name__, []).append([code.metadata.shared, stack, "tf32" in code.asm["ptx"]])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize(
    ("dtype", "sizes", "points"),
    [
        ("bfloat16", (64, 16, 128, 256, 512, 96), True),
        ("bfloat16", (64, 8, 192, 192, 384, 384), False),
        ("bfloat16", (64, 7, 16, 24, 20, 18), True),
        ("float32", (64, 32, 128, 256, 512, 384), True),
        ("float32", (64, 8, 96, 96, 192, 192), False),
    ],
)
def test_kernels_compile(capability, dtype, sizes, points, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    order = json.dumps([capability, dtype, sizes, points])
    answer = subprocess.run([sys.executable, "-c", SCRIPT, order], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout)
    others = {"moments_kernel"} if points else {"column_kernel", "norm_backward_kernel"}
    kernels = {"peak_kernel", "join_kernel", "winners_kernel", "join_backward_kernel", "members_backward_kernel"}
    assert set(found) == kernels | others
    for name, uses in found.items():
        for shared, stack, tf32 in uses:
            assert shared <= 227 * 1024, f"{name} wants more shared memory than a multiprocessor has"
            assert stack <= 512, f"{name} keeps {stack} bytes a thread outside of its registers"
            assert not tf32, f"{name} rounds float32 to TF32"
