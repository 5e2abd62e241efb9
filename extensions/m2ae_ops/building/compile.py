"""Run the commands of a recipe: objects in parallel, each kept for the next build as soon as it is finished, then the link."""

import logging
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import BuildError
from .recipe import Half

KEEP_DAYS = 14  # objects that no build has used for so long are removed
SAY_EVERY = 10.0  # seconds between two lines that say how far a build is
Answer = tuple[bool, str]  # whether a compiler succeeded, and its output
_LOG = logging.getLogger("m2ae_ops")


def compile_half(half: Half, target: Path, objects: Path, *, verbose: bool = False) -> None:
    """Compile what is not yet in the folder `objects`, and link it into `target`, which appears when it is complete.

    The compilers' output goes to build.log in the target's folder, and to the terminal with `verbose`.

    Raises:
        BuildError: a compiler failed or does not start.
        OSError: a folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    objects.mkdir(parents=True, exist_ok=True)
    missing = [item for item in half.objects if not _use(objects / item.name)]
    with ThreadPoolExecutor(_jobs()) as pool:
        commands = [[*item.command, "-c", str(item.source.resolve())] for item in missing]
        answers = list(_watched(pool.map(_make, [objects / item.name for item in missing], commands), len(missing)))
    if all(succeeded for succeeded, _ in answers):
        before, after = half.link
        answers.append(_make(target, [*before, *(str(objects / item.name) for item in half.objects), *after]))
    text, log_file = "".join(text for _, text in answers), target.parent / "build.log"
    log_file.write_text(text)
    if verbose:
        print(text)
    if not all(succeeded for succeeded, _ in answers):
        raise BuildError(f"the compiler failed; its output is in {log_file}")
    _prune(objects)


def _watched(answers: Iterable[Answer], total: int) -> Iterator[Answer]:
    """Yield the answers of compilers, and say every `SAY_EVERY` seconds how many of `total` are there."""
    said = time.monotonic()
    for done, answer in enumerate(answers, start=1):
        yield answer
        if time.monotonic() - said >= SAY_EVERY and done < total:
            said = time.monotonic()
            _LOG.warning("compiled %d of %d files", done, total)


def _jobs() -> int:
    """Return how many compilations run at a time: $MAX_JOBS, or as many as this process may use cores."""
    wanted = os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise BuildError(f"MAX_JOBS={wanted} is not a number of at least 1")
    return int(wanted)


def _use(path: Path) -> bool:
    """Mark a file as in use, so that it is not removed; return whether there is one."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _make(result: Path, command: Sequence[str]) -> Answer:
    """Run a compiler; return whether it succeeded, and its output. The result appears in one step, whoever else makes it too."""
    part = result.with_name(f"{result.name}.{os.getpid()}.part")
    command = [*command, "-o", str(part)]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error}") from error
    if answer.returncode == 0:
        os.replace(part, result)
    part.unlink(missing_ok=True)
    return answer.returncode == 0, f"{shlex.join(command)}\n{answer.stdout}"


def _prune(objects: Path) -> None:
    oldest = time.time() - KEEP_DAYS * 86400
    for path in objects.glob("*.o*"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:  # another process was quicker
            continue
