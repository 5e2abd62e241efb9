"""A whole model under the compiler: one graph for every method and task, and the losses of a model that is not compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from extensions.m2ae_ops.private import choice
from tests.steps import STEPS, SUPERVISED, first_step, fixed_shapes
from tools.accelerate import compile_model

QUICK = ("point-m2ae", "fine-tuning point-mae", "segmentation point-m2ae")


@pytest.fixture
def plain_layers(monkeypatch):
    """Do without the CPU's fused kernels, as a GPU does."""
    monkeypatch.setattr(choice, "eager_cpu", lambda x: False)


def loss_and_gradients(
    name: str, folder: Path, prepare: Callable[[nn.Module], None]
) -> tuple[float, list[torch.Tensor]]:
    """Take the first step of a debug recipe with fixed shapes, after `prepare` had the model."""
    torch.compiler.reset()
    taken = first_step(name, folder)
    with fixed_shapes():
        inputs = taken.inputs()
        prepare(taken.model)
        torch.manual_seed(1)
        loss = taken.task.compute(taken.model, inputs)["loss"]
    loss.backward()
    return loss.item(), [p.grad for p in taken.model.parameters() if p.grad is not None]


def agree(compiled, plain) -> None:
    assert compiled[0] == pytest.approx(plain[0], rel=1e-6)
    for found, expected in zip(compiled[1], plain[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(expected.abs().max().item(), 1e-3))


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*STEPS, *SUPERVISED)],
)
def test_a_whole_model_is_one_graph(name, tmp_path, plain_layers):
    """PyTorch's own kernels run the graph."""
    whole = lambda model: model.compile(backend="eager", fullgraph=True, dynamic=False)  # noqa: E731
    agree(loss_and_gradients(name, tmp_path, whole), loss_and_gradients(name, tmp_path, lambda model: None))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_the_compiler_makes_draws_and_computes_the_same(device, tmp_path, plain_layers):
    """Whole, as off the CPU, and region by region; without `COMPILE_OPTIONS` drop path would take other numbers."""
    compiled = loss_and_gradients("point-mae", tmp_path, lambda model: compile_model(model, torch.device(device)))
    agree(compiled, loss_and_gradients("point-mae", tmp_path, lambda model: None))
