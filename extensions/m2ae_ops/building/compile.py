"""Run the commands of a recipe: objects in parallel, each kept for the next build as soon as it is finished, then the link."""

import logging
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import BuildError
from .recipe import Half

SAY_EVERY = 10.0  # seconds between two lines that say how far a build is
_LOG = logging.getLogger("m2ae_ops")


def compile_half(half: Half, target: Path, objects: Path) -> None:
    """Compile what is not yet in the folder `objects`, and link it into `target`, which appears when it is complete.

    The compilers' output goes to build.log in the target's folder, and to the log at level DEBUG.

    Raises:
        BuildError: a compiler failed or does not start.
        OSError: a folder cannot be written.
    """
    for folder in (target.parent, objects):
        folder.mkdir(parents=True, exist_ok=True)
    missing = {objects / name: command for name, command in half.objects.items() if not (objects / name).exists()}
    answers, said = [], time.monotonic()
    with ThreadPoolExecutor(_jobs()) as pool:
        for answer in pool.map(_make, missing.keys(), missing.values()):
            answers.append(answer)
            if time.monotonic() - said >= SAY_EVERY and len(answers) < len(missing):
                said = time.monotonic()
                _LOG.warning("compiled %d of %d files", len(answers), len(missing))
    if not any(answer.returncode for answer in answers):
        answers.append(_make(target, [*half.link[0], *(str(objects / name) for name in half.objects), *half.link[1]]))
    text = "".join(f"{shlex.join(answer.args)}\n{answer.stdout}" for answer in answers)
    log_file = target.parent / "build.log"
    log_file.write_text(text)
    _LOG.debug("%s", text)
    if any(answer.returncode for answer in answers):
        raise BuildError(f"the compiler failed; its output is in {log_file}")


def _jobs() -> int:
    """Return how many compilations run at a time: $MAX_JOBS, or as many as this process may use cores."""
    wanted = os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise BuildError(f"MAX_JOBS={wanted} is not a number of at least 1")
    return int(wanted)


def _make(result: Path, command: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a compiler. The result appears in one step, whoever else makes it too."""
    part = result.with_name(f"{result.name}.{os.getpid()}.part")
    command = [*command, "-o", str(part)]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error}") from error
    if answer.returncode == 0:
        os.replace(part, result)
    part.unlink(missing_ok=True)
    return answer
