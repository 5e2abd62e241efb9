"""The shared loop: accumulation, clipping, non-finite steps, and where it may stop."""

from types import SimpleNamespace

import pytest
import torch

from tools.engine import EpochLog, NonFiniteLoss, StopRequest, train_one_epoch


def toy(
    values,
    *,
    accum=1,
    every=100,
    divide=True,
    clip=None,
    may_stop=lambda position: False,
    first=0,
    updates_per_batch=1,
    lr=1.0,
):
    """Train one weight on the losses weight * value with plain SGD; returns the weight, the log and the optimizer."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=lr, fused=True)
    flushed = []
    log = EpochLog(lambda at, rows: flushed.append((at, len(rows))), every=every)
    complete = train_one_epoch(
        lambda batch: {"loss": (weight * batch.value).sum(), "loss_extra": torch.tensor(2.0)},
        [SimpleNamespace(step=step, value=value) for step, value in enumerate(values)][first:],
        optimizer,
        steps=len(values),
        schedule=lambda epoch, fraction: lr,
        epoch=0,
        accum=accum,
        divide=divide,
        clip=clip,
        updates_per_batch=updates_per_batch,
        log=log,
        may_stop=may_stop,
    )
    return weight, log, flushed, complete


def test_plain_steps_and_log():
    weight, log, flushed, complete = toy([1.0, 2.0, 3.0], every=2)
    assert complete and weight.item() == -6.0
    log.read()
    assert flushed == [(0, 2), (2, 1)]
    assert [row["loss_extra"] for row in log.rows] == [2.0] * 3 and log.rows[0]["lr"] == 1.0


def test_accumulation_divides_and_steps_on_what_is_left():
    weight, *_ = toy([1.0, 2.0, 4.0], accum=2)
    assert weight.item() == pytest.approx(-(1.5 + 4.0))


def test_published_accumulation_sums_and_keeps_what_is_left():
    weight, *_ = toy([1.0, 2.0, 4.0], accum=2, divide=False)
    assert weight.item() == -3.0 and weight.grad.item() == 4.0


def test_clipping_and_two_updates_per_batch():
    assert toy([3.0], clip=1.0)[0].item() == pytest.approx(-1.0, rel=1e-5)
    assert toy([3.0], clip=1.0, updates_per_batch=2)[0].item() == pytest.approx(-4.0, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_steps_change_nothing_and_are_found_at_the_next_reading(bad):
    weight, log, *_ = toy([1.0, bad, 2.0])
    assert weight.item() == -3.0
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        log.read()
    assert caught.value.step == 1


def test_stops_between_updates_only():
    asked = []
    weight, log, _, complete = toy(
        [1.0] * 5, accum=2, may_stop=lambda position: asked.append(position) or position == 4
    )
    assert not complete and weight.item() == -2.0
    log.read()
    assert len(log.rows) == 4


def test_stop_request_remembers_a_signal():
    import os
    import signal

    with StopRequest() as stop:
        assert not stop.agreed(torch.device("cpu"))
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(torch.device("cpu")) and stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
