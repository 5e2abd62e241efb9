"""Programs that are waited for: what they return, and that a signal stops both."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from utils.errors import Stopped
from utils.programs import run_program

SAVES = "trap 'echo saved > out; exit 143' TERM; echo > begun; while :; do sleep 0.05; done"


def test_status_of_the_program():
    assert run_program(["sh", "-c", "exit 3"]) == 3
    with pytest.raises(Stopped) as stopped:
        run_program(["sh", "-c", "kill -HUP $$"])
    assert stopped.value.signal_number == signal.SIGHUP


def test_a_signal_is_handed_on_and_waits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop():
        while not Path("begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped) as stopped:
        run_program(["sh", "-c", SAVES])
    assert stopped.value.signal_number == signal.SIGTERM and Path("out").read_text() == "saved\n"
