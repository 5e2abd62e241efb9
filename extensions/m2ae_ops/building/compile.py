"""Run the commands of a recipe: objects in parallel by ninja, kept for the next build, then the link."""

import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .compiler import find_ninja
from .errors import BuildError
from .recipe import Half, Object

KEEP_DAYS = 14  # objects that no build has used for so long are removed


def compile_half(half: Half, target: Path, objects: Path, *, verbose: bool = False) -> None:
    """Compile what is not yet in the folder `objects`, link, and move the finished library to `target` in one step.

    The compilers' output goes to build.log beside the target, and to the terminal with `verbose`.

    Raises:
        BuildError: a compiler failed.
        OSError: a folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    objects.mkdir(parents=True, exist_ok=True)
    log_file = target.parent / "build.log"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
        work = Path(folder)
        succeeded, text = _compile_missing(half, work, objects)
        if succeeded:
            before, after = half.link
            library = work / half.library
            files = [str(objects / item.name) for item in half.objects]
            succeeded, output = _run([*before, *files, *after, "-o", str(library)])
            text += output
        log_file.write_text(text)
        if verbose:
            print(text)
        if not succeeded:
            raise BuildError(f"the compiler failed; its output is in {log_file}")
        os.replace(library, target)
    _prune(objects)


def _compile_missing(half: Half, work: Path, objects: Path) -> tuple[bool, str]:
    """Compile into `work`, then keep what succeeded, so that the next attempt has less to do."""
    missing = []
    for item in half.objects:
        try:
            os.utime(objects / item.name)  # in use, so not to be pruned
        except FileNotFoundError:
            missing.append(item)
    if not missing:
        return True, ""
    ninja = find_ninja()
    succeeded, text = _with_ninja(ninja, missing, work) if ninja else _with_threads(missing, work)
    for item in missing:
        if (work / item.name).exists():
            os.replace(work / item.name, objects / item.name)
    return succeeded, text


def _with_ninja(ninja: str, items: list[Object], work: Path) -> tuple[bool, str]:
    lines = ["rule compile", "  command = $line"]
    for item in items:
        line = shlex.join(_command(item, work)).replace("$", "$$")
        lines += [f"build {item.name}: compile", f"  line = {line}"]
    (work / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    return _run([ninja, "-C", str(work), "-v", "-k", "0", *jobs])


def _with_threads(items: list[Object], work: Path) -> tuple[bool, str]:
    """Stand in for ninja where there is none."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        answers = list(pool.map(lambda item: _run(_command(item, work)), items))
    return all(ok for ok, _ in answers), "".join(text for _, text in answers)


def _command(item: Object, work: Path) -> list[str]:
    return [*item.command, "-c", str(item.source.resolve()), "-o", str(work / item.name)]


def _run(command: list[str]) -> tuple[bool, str]:
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error}") from error
    return answer.returncode == 0, f"{shlex.join(command)}\n{answer.stdout}"


def _prune(objects: Path) -> None:
    oldest = time.time() - KEEP_DAYS * 86400
    for path in objects.glob("*.o"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:  # another process was quicker
            continue
