"""A whole model under the compiler: one graph for every method and task, and the losses of a model that is not compiled."""

import pytest
import torch

from models.layers import attention, embed
from tests.steps import STEPS, SUPERVISED, first_step, fix_shapes

QUICK = ("point-m2ae", "fine-tuning point-mae", "segmentation point-m2ae")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*STEPS, *SUPERVISED)],
)
def test_a_whole_model_is_one_graph(name, tmp_path, monkeypatch):
    """With fixed shapes and without the CPU's fused kernels, as on a GPU; PyTorch's own kernels then run the graph."""
    for module in (embed, attention):
        monkeypatch.setattr(module, "can_fuse", lambda *args: False)
    losses, gradients = [], []
    for compiled in (False, True):
        torch.compiler.reset()
        taken = first_step(name, tmp_path)
        fix_shapes(taken)
        step = taken.parts()
        batch = next(taken.batches.epoch(0))
        inputs = step.ready(batch, step.ahead(batch))
        if compiled:
            taken.model.compile(backend="eager", fullgraph=True, dynamic=False)
        torch.manual_seed(1)
        loss = step.compute(inputs)["loss"]
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in taken.model.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for plain, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5 * max(plain.abs().max().item(), 1e-3))
