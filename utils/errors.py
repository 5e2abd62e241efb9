"""The error that is meant for the person at the keyboard, and how commands end with it."""

import difflib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable

MOST_NAMES = 2000  # that are compared with one that is not known


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, with which value, and how to put it right.

    `main.py` prints the message on stderr and exits with status 2, without a traceback.
    """


class Stopped(KeyboardInterrupt):
    """A command was asked to stop by a signal; `signal_number` says by which."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


def run_command(run: Callable[[], int | None], *, debug: bool = False, stopped: str = "") -> int:
    """Call `run` as the body of a command; returns its exit status: 0, 2 with one message on stderr, 128 + signal when stopped.

    Bad input, files and disks that cannot be read or written, and a lack of memory are messages; anything else is a bug of this
    program and keeps its traceback.

    Args:
        debug: print the traceback of a message too.
        stopped: what to say besides when the command was stopped.
    """
    try:
        return run() or 0
    except KeyboardInterrupt as error:
        number = getattr(error, "signal_number", signal.SIGINT)
        by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        say(f"stopped by {by}{f'; {stopped}' if stopped else ''}")
        return 128 + number
    except BrokenPipeError:
        # Whoever read the output has gone, as `| head` does. Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, MemoryError, RecursionError, ImportError, *_of_devices())):
            raise
        if debug:
            traceback.print_exc()
        hint = "" if isinstance(error, UserError) or debug else " (--debug shows where)"
        say(f"error: {_cause(error)}{hint}")
        return 2


def _of_devices() -> tuple[type[Exception], ...]:
    """Return what PyTorch raises where a device has no memory left; nothing where PyTorch is not imported."""
    kind = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    return () if kind is None else (kind,)


def _cause(error: Exception) -> str:
    if isinstance(error, _of_devices()):
        used = str(error).partition(" If reserved but unallocated")[0]  # what follows is advice for programmers
        return f"{used} End what else uses the device (nvidia-smi lists it), ask for less, or use --device cpu"
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}; close other programs, or ask for less"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; flatten it"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{printable(error.filename)}: {error.strerror or error}; check the path and its permissions"
    return str(error) or type(error).__name__


def say(message: str) -> None:
    """Print a line on stderr, where there is one."""
    if sys.stderr is not None:
        print(printable(message), file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Say whether stderr is a terminal; services and windowed programs may have no stderr at all."""
    return sys.stderr is not None and sys.stderr.isatty()


class stop_signals:
    """Context in which SIGTERM and SIGHUP raise `Stopped`, so that what is open is closed; only the main thread can have it."""

    def __enter__(self) -> "stop_signals":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # A handler that was set to ignore stays: nohup asks for that.
                if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                    self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @staticmethod
    def _stop(number: int, _frame) -> None:
        raise Stopped(number)


def printable(text: object) -> str:
    """Return text that any stream can print: bytes of a file name that are no UTF-8 are escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def suggest(name: str, known: Iterable[str], *, what: str = "known", otherwise: str | None = None) -> str:
    """Return "did you mean ...?" with the close names, else `otherwise` or the list of all `known` ones; for the end of a message."""
    known = sorted(str(entry) for entry in known)[:MOST_NAMES]
    by_lower = {entry.lower(): entry for entry in known}
    close = [by_lower[match] for match in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"{what}: {', '.join(known) or 'none'}"
