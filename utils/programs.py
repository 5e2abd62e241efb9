"""Other programs that this one starts and waits for."""

import signal
import subprocess
from collections.abc import Sequence

from utils.errors import Stopped, stop_signals

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_program(command: Sequence[str]) -> int:
    """Run a command and return its exit status. A signal that stops this process is handed on, and waits for the command to save.

    Raises:
        Stopped: this process or the command was stopped by a signal.
    """
    with stop_signals(), subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt as error:
            number = getattr(error, "signal_number", signal.SIGINT)
            if number != signal.SIGINT:  # a terminal sends Ctrl-C to both
                process.send_signal(number)
            process.wait()
            raise Stopped(number) from None
    stopped = code - 128 if code > 128 else -code
    if stopped in STOPS:
        raise Stopped(stopped)
    return code
