"""No host waits for its device inside a training step: on stand-ins without a GPU, and with CUDA's own check on one."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from models.layers.packing import plan_packing
from tests.steps import STEPS, SUPERVISED, first_step, fixed_shapes
from tests.training import toy_run, toy_trainer
from tests.watch import HostWaits
from tools.accelerate import data_dependent
from tools.optim import build_optimizer
from tools.sampling import subset
from tools.train import EpochLog, update
from utils import device as devices


@pytest.fixture
def waits(monkeypatch):
    """Return a watch; memory counts as locked where it is asked to be, and stand-ins know no other precision."""
    found, real = HostWaits(), torch.autocast
    monkeypatch.setattr(devices, "_lock", found.lock)
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **keys: contextlib.nullcontext() if kind == "meta" else real(kind, **keys)
    )
    return found


# Where the set of clouds lies is the same code for all: once by default for what trains without and with labels.
PLACES = [
    pytest.param(
        name, resident, marks=[] if resident or name in ("point-mae", "fine-tuning point-mae") else pytest.mark.slow
    )
    for name in (*STEPS, *SUPERVISED)
    for resident in (False, True)
]


@pytest.mark.parametrize(("name", "resident"), PLACES)
def test_a_step_on_stand_ins(name, resident, tmp_path, waits):
    """From the draw of the batch to the gradients: sampling, augmentation, guide, model, backward."""
    step = first_step(name, tmp_path).to("meta", resident=resident)
    with waits:
        out = step.loss()
        out["loss"].backward()
    assert waits.found == []
    assert waits.staged and out["loss"].is_meta
    assert all(p.grad is not None for p in step.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", (*STEPS, *SUPERVISED))
def test_what_is_captured_reads_nothing_from_the_host(name, tmp_path, waits):
    """A CUDA graph would copy from the same memory of the host each time: nothing is copied, not even without waiting."""
    taken = first_step(name, tmp_path).to("meta", resident=True)
    with waits:
        inputs = taken.inputs()
    assert data_dependent(taken.model, torch.device("meta")) is None
    assert name in SUPERVISED or inputs["masked"].dtype == torch.bool
    del waits.staged[:]
    with waits:
        taken.task.compute(taken.model, inputs)["loss"].backward()
    assert waits.found == [] and waits.staged == []


@pytest.mark.parametrize("name", (*STEPS, *SUPERVISED))
def test_parts_of_a_step_are_the_step(name, tmp_path):
    """What is prepared, completed and computed gives the loss of one call, bit for bit."""
    loss = first_step(name, tmp_path).loss()["loss"]
    taken = first_step(name, tmp_path)
    torch.manual_seed(1)
    assert taken.task.compute(taken.model, taken.inputs())["loss"].item() == loss.item()


@pytest.mark.parametrize("name", ["point-mae", "point-m2ae", "fine-tuning point-m2ae"])
def test_the_loop_around_a_step(name, tmp_path):
    """Clipping, the check for finite gradients, the optimizer and the log: nothing is read but at the log interval."""
    step = first_step(name, tmp_path)
    optimizer = build_optimizer(step.model, step.config.optimizer)
    log = EpochLog(lambda first, rows: None, every=100)
    with fixed_shapes():
        losses = [step.loss() for _ in range(2)]
    batches = [SimpleNamespace(step=position, stream=str) for position in range(2)]
    loss = lambda batch: {"loss": losses[batch.step]["loss"]}  # noqa: E731
    trainer = toy_trainer(toy_run(clip=1.0, lr=1e-3), step.model, optimizer, batches, loss)
    waits = HostWaits(everywhere=True)
    with waits:
        trainer.train_steps(0, log)
    assert waits.found == []
    log.read()
    assert len(log.rows) == 2


def test_what_the_watch_finds(waits):
    """Each way of waiting is seen, with the line of the project that does it."""
    values, masked = torch.zeros(2, 4, device="meta"), torch.zeros(2, 4, dtype=torch.bool, device="meta")
    for wait, message in (
        (lambda: values.sum().item(), "_local_scalar_dense"),
        (lambda: values[masked], "aten.index.Tensor"),
        (lambda: masked.nonzero(), "nonzero"),
        (lambda: torch.zeros(2).to("meta"), "copy from cpu to meta"),
        (lambda: values.copy_(torch.zeros(2, 4)), "copy from cpu to meta"),
        (lambda: torch.tensor([1.0], device="meta"), "tensor of numbers"),
        (lambda: values.new_tensor(1.0), "new_tensor of numbers"),
        (lambda: plan_packing(masked, 3, tight=True), "m2ae_ops/ordering.py"),
    ):
        del waits.found[:]
        with waits, contextlib.suppress(RuntimeError, NotImplementedError):
            wait()
        assert waits.found and message in waits.found[0], message
    del waits.found[:]
    with waits:
        devices.send(torch.zeros(2), "meta", torch.float64)
        subset(torch.zeros(2, 8, 3, device="meta"), 4, torch.Generator().manual_seed(0))
        torch.where(masked, values, 0.0) + values.new_full((), 2.0)
    assert waits.found == []


def test_sending_on_the_cpu_copies_nothing():
    values = torch.arange(3.0)
    assert devices.send(values, "cpu") is values
    assert devices.send(values, torch.device("cpu"), torch.float64).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", (*STEPS, *SUPERVISED))
def test_a_step_on_a_gpu(name, precision, tmp_path):
    """The same with CUDA's own check, and the same loss as on the CPU."""
    here = first_step(name, tmp_path).loss(precision=precision)
    step = first_step(name, tmp_path).to("cuda", resident=True)
    optimizer = build_optimizer(step.model, step.config.optimizer)
    there = step.loss(precision=precision)  # what is initialised once may wait
    there["loss"].backward()
    update(optimizer, clip=None, scaler=None, repeats=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.loss(precision=precision)["loss"].backward()
        update(optimizer, clip=1.0, scaler=None, repeats=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close = {"fp32": 0.01, "bf16": 0.05}[precision]  # an image teacher runs in half precision on a GPU
    assert there["loss"].item() == pytest.approx(here["loss"].item(), rel=close)
