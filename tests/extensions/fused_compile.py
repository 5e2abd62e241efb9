"""Compile the Triton kernels of the mini-PointNet for a GPU that is not here; print what each of them uses, as JSON.

    python -m tests.extensions.fused_compile '[90, [["bfloat16", [16, 128, 256, 512, 96], true], ...]]'

for compute capability 9.0 and kinds (dtype of products, (k, A, W, C, D), of points). To run in a process of its own, without Triton's
interpreter.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from extensions.m2ae_ops.private.fused import backward, check, forward, launch
from extensions.m2ae_ops.reference import embedding as reference

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.float64: "*fp64",
}
TOOL = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


CALLS: list[tuple] = []


class Launched:
    """Takes the place of a kernel and keeps what it is launched with."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **options: CALLS.append(
            (self.kernel, dict(zip(self.kernel.arg_names, args, strict=False)) | options)
        )


def watch(capability: int) -> None:
    """Let the steps launch nothing, and take CPU tensors for those of a device."""
    for module in (forward, backward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, Launched(getattr(module, name)))
    torch.cuda.get_device_capability = lambda device=None: divmod(capability, 10)
    torch.Tensor.is_cuda = property(lambda self: True)


def launches(dtype: str, sizes: list[int], points: bool) -> list[tuple]:
    """Return the kernels and arguments of the first-use check, which are those of training up to numbers that compile to nothing."""
    CALLS.clear()
    with launch.programs(check.FEW_PROGRAMS):
        groups = check.GROUPS + check.TILE // sizes[0]
        check.differences(launch, reference, (groups, *sizes), points=points, dtype=getattr(torch, dtype), device="cpu")
    return list(CALLS)


def source_of(kernel, bound: dict) -> tuple[ASTSource, dict]:
    """Return what Triton compiles for the arguments of a launch, specialised as its launcher does, and the options."""
    signature, values, attributes = {}, {}, {}
    for parameter in kernel.params:
        value, place = bound[parameter.name], (parameter.num,)
        if parameter.is_constexpr or (value is not None and not torch.is_tensor(value) and _is_one(parameter, value)):
            signature[parameter.name], values[place] = "constexpr", value
        elif torch.is_tensor(value):
            signature[parameter.name], attributes[place] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[place] = [["tt.divisibility", 16]]
    options = {name: bound[name] for name in ("num_warps", "num_stages") if name in bound}
    return ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes), options


def _is_one(parameter, value: int) -> bool:
    return value == 1 and not parameter.do_not_specialize


def usage(source: ASTSource, options: dict, capability: int) -> dict:
    """Return the bytes of shared memory of a block, the bytes that a thread keeps outside of its registers, and whether TF32 is used."""
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [str(TOOL), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = int(text.split("STACK:")[1].split()[0])
    return {"shared": code.metadata.shared, "stack": stack, "tf32": "tf32" in code.asm["ptx"]}


def main(capability: int, kinds: list) -> None:
    watch(capability)
    done = {}
    for dtype, sizes, points in kinds:
        found = {}
        for kernel, bound in launches(dtype, sizes, points):
            source, options = source_of(kernel, bound)
            key = source.hash() + repr(options)
            if key not in done:
                done[key] = usage(source, options, capability)
            found.setdefault(kernel.__name__, []).append(done[key])
        print(json.dumps({"kind": [dtype, sizes, points], "kernels": found}), flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main(*json.loads(sys.argv[1]))
