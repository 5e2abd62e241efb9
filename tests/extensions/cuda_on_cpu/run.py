"""Run sets of cases in a process of their own, with a sanitizer's library loaded first."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.extensions.cuda_on_cpu.build import Variant, build, compiler

ROOT = Path(__file__).parents[3]
LIBRARIES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# A fiber takes half a megabyte of ThreadSanitizer's memory: no clusters of 16 blocks.
ARGUMENTS = {"thread": ("--device", "largest_cluster=4")}
SETTINGS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66",
}


@dataclass(frozen=True)
class Outcome:
    """What a run gave: its totals (None where it did not get to them), its status, and what it said."""

    totals: dict | None
    status: int
    said: str

    @property
    def clean(self) -> bool:
        """Whether there were no differences and no reports."""
        return self.status == 0 and self.totals is not None and not self.totals["differences"]

    def complaints(self) -> list[str]:
        """Return the first lines that name what is wrong."""
        lines = [
            line for line in self.said.splitlines() if line.startswith(("SUMMARY:", "==")) or "runtime error" in line
        ]
        reports = [line for line in lines if "=====" not in line]
        found = [*reports[:5], *(self.totals or {}).get("differences", [])[:5]]
        return found or ([] if self.clean else [f"status {self.status}: {self.said[-2000:]}"])


def missing(variant: str) -> str | None:
    """Say what this machine lacks for a variant, or return None."""
    if compiler() is None:
        return "needs g++"
    for name in LIBRARIES.get(variant, ()):
        if not Path(_library(name)).is_absolute():
            return f"needs {name}"
    if variant == "thread" and not shutil.which("setarch"):
        return "needs setarch"
    return None


def run_cases(variant: Variant, *arguments: str) -> Outcome:
    """Build a variant and run cases.py on it with the given arguments."""
    command = [sys.executable, "-m", "tests.extensions.cuda_on_cpu.cases", str(build(variant))]
    command += [*ARGUMENTS.get(variant.name, ()), *arguments]
    env = {**os.environ, **SETTINGS, "OMP_NUM_THREADS": "1"}
    if preloaded := LIBRARIES.get(variant.name):
        env["LD_PRELOAD"] = " ".join(_library(name) for name in preloaded)
    if variant.name == "thread":
        # Older kernels of ThreadSanitizer do not know how far addresses may be randomised.
        command = ["setarch", platform.machine(), "-R", *command]
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, errors="replace")
    totals = None
    for line in answer.stdout.splitlines():
        if line.startswith('{"cases"'):
            totals = json.loads(line)
    return Outcome(totals, answer.returncode, answer.stdout + answer.stderr)


def _library(name: str) -> str:
    return subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
