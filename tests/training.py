"""A training loop around a toy task, without a recipe and without files."""

import logging
from types import SimpleNamespace

import torch

from tools.run_state import RunState
from tools.train import Display, Task, Trainer

DISPLAY = Display(scale=1000.0, epoch_tag="Loss/Epoch/Loss_1", batch_tags={"loss": "Loss", "lr": "LR"})


class Bar:
    """A progress bar that shows nothing."""

    samples_per_second = 0.0

    def update(self, *args, **keys):
        pass

    close = update


class Log(logging.LoggerAdapter):
    """A log that goes nowhere."""

    def __init__(self):
        super().__init__(logging.getLogger("m2ae.tests"))

    def progress(self, *args, **keys):
        return Bar()


class Given:
    """Batches that were made before; each has its `step`."""

    cloud_set = SimpleNamespace(names=None)

    def __init__(self, batches):
        self.made = batches

    def __len__(self):
        return len(self.made)

    def epoch(self, epoch, first_step=0):
        return iter(self.made[first_step:])


class Stop:
    """Asked to stop after some batches; remembers when it was asked."""

    signal_number = 15

    def __init__(self, answer=lambda count: False):
        self.answer, self.count = answer, 0

    def agreed(self, device):
        self.count += 1
        return self.answer(self.count)


class ToyTask(Task):
    """Compute losses by a function of the batch."""

    display = DISPLAY

    def __init__(self, run, model, loss, updates_per_batch=1):
        super().__init__(run, model, None)
        self.loss, self.updates_per_batch = loss, updates_per_batch

    def prepare(self, batch, epoch):
        return batch

    def compute(self, model, inputs):
        return self.loss(inputs)


def toy_run(*, accum=1, divide=True, clip=None, log_every=100, lr=1.0, folder=None, precision="fp32", per_step=False, **flags):
    """Return the context of a run with the keys that the loop reads."""
    config = SimpleNamespace(
        step_per_update=accum,
        grad_norm_clip=clip,
        precision=precision,
        scheduler=SimpleNamespace(type="function", kwargs=None, lag=0, per_step=per_step),
        optimizer=SimpleNamespace(kwargs=SimpleNamespace(lr=lr)),
        legacy_names=lambda: set() if divide else {"undivided_accumulation"},
        log_every=log_every,
        total_bs=4,
        seed=0,
        bnmscheduler=None,
        max_epoch=0,
        max_epoch_inclusive=True,
    )
    args = SimpleNamespace(
        **{"micro_batches": 1, "compile": False, "cuda_graph": "off", "evaluation": "between", **flags}
    )
    return SimpleNamespace(config=config, args=args, folder=folder, device=torch.device("cpu"), log=Log(), seed=0)


def toy_trainer(run, model, optimizer, batches, loss, *, trainer=Trainer, stop=None, writer=None, **keys):
    """Return a trainer of a toy task."""
    state = RunState(model, optimizer, seed=0)
    task = ToyTask(run, model, loss, **keys)
    return trainer(task, state, Given(list(batches)), writer=writer, stop=stop or Stop())
