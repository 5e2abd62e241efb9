"""What a run leaves behind and goes on from: checkpoints of runs, rows of metrics, TensorBoard files, plans, signals."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from datasets.preparing.convert import PLAN, Settings, convert
from tools.run_state import RunState
from tools.train import EpochLog, StopRequest
from utils.errors import UserError, run_command, stop_signals
from utils.event_files import drop_scalars
from utils.files import save_checkpoint
from utils.metrics_log import MetricsWriter, read_rows

# The state of a run


def state(width=4, kind=torch.optim.AdamW):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    return RunState(model, optimizer, seed=0)


@pytest.fixture
def saved(tmp_path):
    """Return the checkpoint of a run after one step, and a function that writes it."""
    run = state()
    run.model(torch.randn(5, 3)).sum().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.epoch = 0
    path = tmp_path / "ckpt-last.pth"

    def write(change=lambda content: None):
        content = run.checkpoint({})
        save_checkpoint(path, content)
        content = torch.load(path, weights_only=True)
        change(content)
        save_checkpoint(path, content)
        return path

    return write


def put(*keys, value):
    def change(content):
        node = content
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def test_a_whole_state_is_restored(saved):
    run = state()
    run.restore(saved())
    assert run.epoch == 0 and run.optimizer.state_dict()["state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("optimizer", "state", 0, "exp_avg", value=torch.zeros(2)), "optimizer does not fit parameter 0"),
        (
            put("optimizer", "state", 1, "exp_avg_sq", value=torch.full((4,), np.nan)),
            "optimizer does not fit parameter 1",
        ),
        (put("optimizer", "state", 9, value={}), "optimizer does not fit parameter 9"),
        (put("optimizer", "state", value={}), "lost its state"),
        (put("optimizer", value=None), "its optimizer is none"),
        (put("optimizer", "param_groups", 0, "params", value=[0]), "other parameters"),
        (put("base_model", "0.weight", value=torch.full((4, 3), np.nan)), "0.weight holds NaN"),
        (put("base_model", "1.running_var", value=-torch.ones(4)), "variance 1.running_var is negative"),
        (put("base_model", "0.weight", value=torch.zeros(7)), "does not fit this configuration"),
        (put("pending", value=None), "pending"),
        (put("pending", "step", value=99), "pending.step"),
        (put("pending", "rows", value=["a"]), "pending.rows"),
        (put("pending", "evaluations", value=[0.5]), "pending.evaluations"),
        (put("pending", "gradients", value=3), "pending.gradients"),
        (put("epoch", value="3"), "epoch"),
        (put("epoch", value=-7), "epoch"),
        (put("random", value={}), "random"),
        (put("metrics", value=3), "metrics"),
    ],
)
def test_states_that_were_changed_are_refused_before_the_first_step(saved, change, message):
    with pytest.raises(UserError, match=rf"ckpt-last\.pth: .*{message}"):
        state().restore(saved(change))


def test_another_optimizer_or_model(saved):
    for run in (state(kind=torch.optim.SGD), state(width=5)):
        with pytest.raises(UserError, match=r"ckpt-last\.pth"):
            run.restore(saved())


# Rows and scalars


def test_rows_that_are_none_and_epochs_that_are_missing_are_said(tmp_path, caplog):
    rows = [
        {"kind": "epoch", "epoch": 0, "loss": 1.0},
        {"kind": "epoch", "epoch": "x"},
        {"epoch": 1},
        [1],
        {"kind": "epoch", "epoch": 3, "loss": 1.0},
        {"kind": "step", "epoch": 4, "step": [0]},
        {"kind": "svm", "epoch": {}, "accuracy": 1},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[" * 5000 + "\n{broken\n")
    MetricsWriter(tmp_path, resume_from=(4, 2)).close()
    assert [row["epoch"] for row in read_rows(path)] == [0, 3]
    assert "no rows of the epochs 1-2" in caplog.text and "are no rows" in caplog.text


def test_lost_rows_are_said(tmp_path, caplog):
    MetricsWriter(tmp_path, resume_from=(3, 0)).close()
    assert "no rows of the epochs 0-2" in caplog.text


def test_a_damaged_event_file_is_left_as_it_is(tmp_path, caplog):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0" + b"\xff" * 24)
    drop_scalars([path], "Loss", 0)
    assert path.read_bytes().endswith(b"\xff" * 24) and "is damaged" in caplog.text


def test_scalars_are_on_the_disk_when_a_checkpoint_counts_on_them(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    from utils.event_files import _records

    writer = MetricsWriter(tmp_path)
    for step in range(5):
        writer.scalar("Loss", 1.0, step)
    writer.flush()  # and no close: the process is killed
    (path,) = (tmp_path / "TFBoard" / "train").iterdir()
    events = [Event.FromString(payload) for _, payload in _records(path.read_bytes())]
    assert [event.step for event in events if event.HasField("summary")] == list(range(5))
    writer.close()


@pytest.mark.parametrize("stopped", [1, 3, 4, 7])
def test_rows_stay_on_the_grid_after_a_stop(stopped):
    """What is handed out at multiples of the interval is the same, wherever a run stopped."""

    def rows(first, end, before):
        handed = []
        log = EpochLog(lambda start, part: handed.append(start + len(part)), every=4, rows=before)
        for step in range(first, end):
            log.add({"loss": torch.tensor(float(step))}, 0.1, torch.tensor(True))
        log.read()
        return handed, log.rows

    whole, _ = rows(0, 10, [])
    first, before = rows(0, stopped, [])
    then, after = rows(stopped, 10, before)
    assert [row["loss"] for row in after] == list(range(10))
    assert sorted({*(end for end in first if end % 4 == 0), *then}) == whole


# Plans of conversions


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        np.save(tmp_path / "in" / f"{i}.npy", np.random.default_rng(i).normal(size=(50, 3)))
    return tmp_path / "in"


def go(source, out):
    return convert(source, out, Settings(points=32), workers=1)


def content_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["../../victim.txt", "{victim}", "sub/victim.txt"])
def test_a_plan_deletes_nothing_outside_its_folder(source, tmp_path, name):
    victim = tmp_path / "elsewhere" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("mine")
    go(source, tmp_path / "whole")
    content = json.loads((tmp_path / "whole" / PLAN).read_text())
    work = tmp_path / "out.converting"
    work.mkdir()
    (work / "sub").symlink_to(victim.parent)
    (tmp_path / "victim.txt").write_text("mine")
    content["files"] = {name.format(victim=victim): ["x", 1, 1]}
    (work / PLAN).write_text(json.dumps(content))
    go(source, tmp_path / "out")
    assert victim.read_text() == "mine" and (tmp_path / "victim.txt").exists()


def test_a_folder_without_a_plan_is_begun_anew(source, tmp_path):
    (tmp_path / "out.converting").mkdir()
    assert go(source, tmp_path / "out").complete
    (tmp_path / "two.converting").mkdir()
    (tmp_path / "two.converting" / PLAN).write_text("{")
    assert go(source, tmp_path / "two").complete
    (tmp_path / "mine.converting").mkdir()
    (tmp_path / "mine.converting" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files of something else"):
        go(source, tmp_path / "mine")


def test_finished_clouds_that_were_cut_are_done_again(source, tmp_path):
    (source / "bad.npy").write_bytes(b"none")
    assert not go(source, tmp_path / "out").complete
    (source / "bad.npy").unlink()
    cut = tmp_path / "out.converting" / "1.npy"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert go(source, tmp_path / "out").skipped == 2
    go(source, tmp_path / "whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    cut = tmp_path / "out" / "1.npy"
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"1\.npy is not as this conversion left it"):
        go(source, tmp_path / "out")


def test_k14_one_process_where_there_are_no_semaphores(source, tmp_path, monkeypatch, caplog):
    import datasets.preparing.convert as module

    def none(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "ProcessPoolExecutor", none)
    for i in range(20):
        np.save(source / f"more{i}.npy", np.random.default_rng(i).normal(size=(50, 3)))
    assert convert(source, tmp_path / "out", Settings(points=32), workers=2).complete
    assert "one process does it all" in caplog.text


def test_k16_names_that_are_no_text(source, tmp_path):
    os.rename(source / "0.npy", source / os.fsdecode(b"caf\xe9.npy"))
    assert go(source, tmp_path / "out").complete
    assert (tmp_path / "out" / "caf_.npy").is_file()


# Signals, threads, messages of commands


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_k15_signals_that_ask_to_stop(name):
    number = getattr(signal, name)
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.agreed(torch.device("cpu")) and stop.signal_number == number


def test_k15_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop_signals():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.agreed(torch.device("cpu"))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_k13_outside_the_main_thread(tmp_path):
    result = []

    def work():
        with StopRequest() as stop, stop_signals():
            result.append(stop.agreed(torch.device("cpu")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [False]


def raising(error):
    raise error


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9.99 GiB of which 118.75 MiB is free. "
    "If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True."
)  # before anything is trained: weights or clouds do not fit next to what others keep there


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("a: is bad; mend it"), 2, "error: a: is bad; mend it"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "a/b: Permission denied; check the path"),
        (MemoryError(), 2, "not enough memory"),
        (torch.OutOfMemoryError(FULL), 2, "118.75 MiB is free. End what else uses the device"),
        (RecursionError(), 2, "nested too deeply"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_errors_are_one_message(capsys, error, status, words):
    assert run_command(lambda: raising(error)) == status
    assert words in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(lambda: raising(RuntimeError("shapes do not match")))


def test_k15_commands_end_by_signals_with_their_number(capsys):
    with stop_signals():
        assert run_command(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_k13_without_a_stderr(monkeypatch):
    import sys

    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(lambda: raising(UserError("x"))) == 2


def test_k12_a_user_without_a_name_or_home(monkeypatch, tmp_path):
    import getpass
    from pathlib import Path

    from datasets.cache import cache_folder
    from utils.environment import settle_environment

    monkeypatch.setattr(getpass, "getuser", lambda: raising(KeyError("uid not found: 12345")))
    monkeypatch.setattr(Path, "home", lambda: raising(RuntimeError("Could not determine home directory.")))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "USER", "XDG_CACHE_HOME", "M2AE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    settle_environment()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] and os.environ["USER"]
    assert cache_folder().is_absolute()
