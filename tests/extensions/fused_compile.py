"""Compile the Triton kernels of the mini-PointNet for a GPU that is not here; print what each kind of them uses, as JSON.

    python -m tests.extensions.fused_compile 90 --out benchmarks/results/fused-compiled.json

for compute capability 9.0: the kinds that a recipe of full size ships, and those at the edges of what is allowed. To run in a process of
its own, without Triton's interpreter (TRITON_INTERPRET). What was compiled before, by the same compiler from the same source, comes from
the cache folder.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from datasets import DATASETS
from extensions.m2ae_ops.building import cache_folder
from extensions.m2ae_ops.private.fused import backward, check, forward, launch
from extensions.m2ae_ops.private.fused.limits import LARGEST_GROUP
from extensions.m2ae_ops.reference import embedding as reference
from models import MODELS, build_model
from models.layers.embed import PatchEmbed
from utils.config.load import load_config
from utils.config.merge import to_dict
from utils.files import write_atomic
from utils.provenance import ROOT, provenance

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.float64: "*fp64",
}
TOOLS = Path(nvidia.__file__).parent / "bin"
SMALLEST = 96  # columns of the hidden rows; recipes with fewer are for tests and laptops
ALLOWED = (
    ("bfloat16", (7, 16, 24, 20, 18), True),
    ("bfloat16", (1, 130, 65, 33, 17), False),
    ("bfloat16", (64, 128, 256, 512, 384), True),
    ("float16", (65, 128, 256, 512, 384), True),
    ("bfloat16", (LARGEST_GROUP, 128, 256, 512, 384), True),
    ("bfloat16", (LARGEST_GROUP, 192, 192, 384, 384), False),
    ("float32", (32, 128, 256, 512, 384), True),
    ("float32", (8, 96, 96, 192, 192), False),
    ("float32", (LARGEST_GROUP, 128, 256, 512, 384), True),
)
"""Kinds that no recipe ships: (dtype of products, (k, A, W, C, D), of points). Odd sizes, the largest groups, all dtypes."""


def shipped() -> list[tuple]:
    """Return the kinds of mini-PointNet of all recipes of full size."""
    kinds, seen = set(), []
    for path in sorted((ROOT / "cfgs").rglob("*.yaml")):
        if path.parent.name == "dataset":
            continue
        config = load_config(path, models=MODELS, datasets=DATASETS).model
        if to_dict(config) in seen:
            continue
        seen.append(to_dict(config))
        with torch.device("meta"):
            model = build_model(config)
        embeds = [module for module in model.modules() if type(module) is PatchEmbed]  # none in detectors
        sizes = embeds and (getattr(config, "group_sizes", None) or [config.group_size])
        for embed, k in zip(embeds, sizes, strict=False):
            (lift, *others), _ = embed.layers()
            A, P = lift.weight.flatten(1).shape
            if A >= SMALLEST:
                kinds.add(("bfloat16", (k, A, *(len(layer.weight) for layer in others)), P == 3))
    return sorted(kinds)


# ---- what the kernels are launched with ------------------------------------------------------------------------------

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


def launches(dtype: str, sizes: tuple[int, ...], points: bool) -> list[tuple]:
    """Return the kernels and arguments of the first-use check, which are those of training up to numbers that compile to nothing."""
    CALLS.clear()
    with launch.programs(check.FEW_PROGRAMS):
        groups = check.GROUPS + check.TILE // sizes[0]
        check.differences(launch, reference, (groups, *sizes), points=points, dtype=getattr(torch, dtype), device="cpu")
    return list(CALLS)


# ---- what they compile to --------------------------------------------------------------------------------------------


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


class Compiler:
    """Compiles for one device what it has not compiled before; `known` says what each source uses, by its hash."""

    def __init__(self, capability: int):
        self.capability, self.known, self.used = capability, {}, set()
        ptxas = TOOLS / ("ptxas-blackwell" if capability >= 100 else "ptxas")
        version = subprocess.run([str(ptxas), "--version"], capture_output=True, text=True, check=True).stdout
        self._salt = f"{capability} {triton.__version__} {version}"
        self._file = cache_folder() / "fused-compiled" / f"{capability}.jsonl"
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.known[row.pop("key")] = row

    def __call__(self, source: ASTSource, options: dict) -> dict:
        """Return the usage of a kernel, see `usage`, and the seconds of a processor that it took to compile."""
        key = hashlib.sha256(f"{self._salt} {source.hash()} {sorted(options.items())}".encode()).hexdigest()
        self.used.add(key)
        if key not in self.known:
            began = sum(os.times()[:4])
            found = usage(source, options, self.capability)
            self.known[key] = found | {"seconds": round(sum(os.times()[:4]) - began, 2)}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key} | self.known[key]) + "\n")
        return self.known[key]

    @property
    def seconds(self) -> float:
        """Seconds of a processor that all kernels asked for took, now or when they were compiled."""
        return sum(self.known[key]["seconds"] for key in self.used)


def usage(source: ASTSource, options: dict, capability: int) -> dict:
    """Return the bytes of shared memory of a block, the bytes that a thread keeps outside of its registers, and whether TF32 is used."""
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = int(text.split("STACK:")[1].split()[0])
    return {"shared": code.metadata.shared, "stack": stack, "tf32": "tf32" in code.asm["ptx"]}


def compiled(compiler: Compiler, kinds: dict[str, list]) -> Iterator[dict]:
    """Compile sets of kinds; yields what the kernels of each kind use, by their names."""
    for name, members in kinds.items():
        for dtype, sizes, points in members:
            found = {}
            for kernel, bound in launches(dtype, sizes, points):
                found.setdefault(kernel.__name__, []).append(compiler(*source_of(kernel, bound)))
            yield {"set": name, "kind": [dtype, list(sizes), points], "kernels": found}


# ---- the summary -----------------------------------------------------------------------------------------------------


def summarise(rows: list[dict], compiler: Compiler) -> dict:
    """Return counts, and of each set the largest use of shared memory and, by kernel, of memory in place of registers."""
    summary = {"kernels": len(compiler.used), "seconds": round(compiler.seconds)}
    for name in dict.fromkeys(row["set"] for row in rows):
        members = [row for row in rows if row["set"] == name]
        uses = [
            (use, kernel, row["kind"]) for row in members for kernel, many in row["kernels"].items() for use in many
        ]
        largest, kernel, kind = max(uses, key=lambda entry: entry[0]["shared"])
        spilled: dict[str, int] = {}
        for use, kernel_, _ in uses:
            spilled[kernel_] = max(spilled.get(kernel_, 0), use["stack"])
        summary[name] = {
            "kinds": len(members),
            "launches": len(uses),
            "shared_bytes": largest["shared"],
            "shared_by": f"{kernel}, {kind}",
            "stack_bytes": {kernel_: value for kernel_, value in sorted(spilled.items()) if value},
        }
    return summary


def main(arguments: list[str] | None = None) -> None:
    """Compile all kinds for one device, and print a line of each."""
    parser = argparse.ArgumentParser(prog="tests.extensions.fused_compile", description=__doc__)
    parser.add_argument("capability", type=int, help="of the device, times ten")
    parser.add_argument("--out", type=Path, help="file of results, where the rows of other devices stay")
    args = parser.parse_args(arguments)
    kinds = {"shipped": shipped(), "allowed": list(ALLOWED)}
    watch(args.capability)
    compiler, rows = Compiler(args.capability), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # binaries take a megabyte each
        for row in compiled(compiler, kinds):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"devices": {}}
        report["about"] = {key: value for key, value in provenance().items() if key != "Command"}
        report["about"] |= {"triton": triton.__version__}
        report["devices"][f"{args.capability / 10}"] = summarise(rows, compiler)
        report["devices"] = dict(sorted(report["devices"].items(), key=lambda entry: float(entry[0])))
        text = json.dumps(report, indent=1) + "\n"
        write_atomic(args.out, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
