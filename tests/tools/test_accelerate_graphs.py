"""CUDA graphs: the same numbers as steps that run as they are, and what makes capturing begin again or give up.

Without a GPU a stand-in captures: like a graph it does nothing when it is made, and reads and writes the same memory each time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import main
from models.layers import packing
from tests.steps import roomy
from tests.training import toy_run, toy_trainer
from tools import accelerate
from tools.accelerate import WARM_UP, AcceleratedTrainer, StepGraph, data_dependent, why_no_graph
from tools.train import EpochLog, NonFiniteLoss
from utils.errors import UserError

# Rates that are the same number in single precision, in which a device holds them.
RATE = 2.0**-7


class Again:
    """Stands for a CUDA graph: runs the function itself at each replay, with the learning rates that lay there when it was made."""

    made = 0

    def __init__(self, function, optimizer):
        Again.made += 1
        self._function, self._groups, self.outputs = function, optimizer.param_groups, None
        self._rates = [group["lr"] for group in self._groups]
        assert all(isinstance(rate, torch.Tensor) for rate in self._rates)
        assert all(group["capturable"] for group in self._groups)

    def replay(self):
        numbers = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        self.outputs = self._function()
        for group, number in zip(self._groups, numbers, strict=True):
            group["lr"] = number


def refuse(function, optimizer):
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


@dataclass(frozen=True)
class Batch:
    step: int
    rows: int
    advice: float = 1.0

    def stream(self, name):
        return name


def train(graph=None, *, sizes=(4,) * 10, advices=None):
    """Train a small net with dropout on a few batches; returns its losses, its weights and the optimizer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, lr=1.0)
    batches = [Batch(number, rows, (advices or [1.0] * len(sizes))[number]) for number, rows in enumerate(sizes)]
    trainer = toy_trainer(
        toy_run(clip=1.0, per_step=True),
        net,
        optimizer,
        batches,
        lambda inputs: {"loss": inputs["advice"] * net(inputs["points"]).square().mean()},
        trainer=AcceleratedTrainer,
    )
    draw = lambda batch: torch.randn(batch.rows, 3, generator=torch.Generator().manual_seed(batch.step))  # noqa: E731
    trainer.task.prepare = lambda batch, epoch: {"points": draw(batch), "advice": batch.advice}
    trainer.schedule = lambda epoch, fraction: RATE * (1 + (fraction > 0.5))
    if graph is not None:
        trainer.graph, trainer.step = graph(optimizer, net.buffers()), trainer.captured_step
    log = EpochLog(lambda first, rows: None, every=3)
    complete = trainer.train_steps(0, log)
    log.read()
    assert complete
    return [row["loss"] for row in log.rows], [p.detach() for p in net.parameters()], optimizer


def graph_of(capture, warnings=None, **keys):
    def build(optimizer, buffers):
        keys.setdefault("warn", (warnings if warnings is not None else []).append)
        take = lambda function, _: capture(function, optimizer)  # noqa: E731
        return StepGraph(optimizer, buffers, torch.device("cpu"), capture=take, **keys)

    return build


@pytest.fixture(autouse=True)
def count():
    Again.made = 0


def assert_same(there, here):
    assert there[0] == here[0]
    for a, b in zip(there[1], here[1], strict=True):
        assert torch.equal(a, b)


def test_captured_steps_give_the_same_numbers():
    there = train(graph_of(Again))
    assert Again.made == 1
    assert_same(there, train())
    (group,) = there[2].param_groups
    assert isinstance(group["lr"], float) and group["capturable"] is False
    assert all(p.grad is None for p in group["params"])


def test_other_inputs_begin_again():
    """A shorter last batch runs as it is; a number that a graph would hold makes a new one."""
    sizes = (4,) * (WARM_UP + 2) + (3,)
    assert_same(train(graph_of(Again), sizes=sizes), train(sizes=sizes))
    assert Again.made == 1
    advices = [1.0] * (WARM_UP + 2) + [2.0] * (WARM_UP + 2)
    found = {"sizes": (4,) * len(advices), "advices": advices}
    Again.made = 0
    assert_same(train(graph_of(Again), **found), train(**found))
    assert Again.made == 2


def test_nothing_is_captured_while_it_warms_up():
    train(graph_of(Again), sizes=(4,) * WARM_UP)
    assert Again.made == 0


def test_where_capturing_fails_steps_run_as_they_are():
    warnings = []
    there = train(graph_of(refuse, warnings))
    assert warnings == ["operation not permitted"]
    assert_same(there, train())
    assert isinstance(there[2].param_groups[0]["lr"], float)


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class TooLarge(Again):
    """Leaves no memory for its first replay."""

    def replay(self):
        raise NO_MEMORY


class Uncopied(Again):
    """Leaves no memory for the copies of weights: the first tensor that is copied after it was made is one too many."""

    def __init__(self, function, optimizer):
        super().__init__(function, optimizer)
        keep, self._clone = torch.Tensor.clone, None

        def clone(tensor):
            torch.Tensor.clone = keep
            raise NO_MEMORY

        torch.Tensor.clone = clone


class Narrow(Again):
    """Leaves no memory for the step itself, which runs once more after the graph's first replay."""

    def replay(self):
        super().replay()
        weight = self._groups[0]["params"][0]

        def out_of_memory(gradient):
            handle.remove()
            raise NO_MEMORY

        handle = weight.register_hook(out_of_memory)


def lose_the_compiler(function, optimizer):
    """As Triton does where a kernel is first compiled inside a capture: its errors are no RuntimeErrors."""
    raise Exception("CompilationError: at 12:4")


FAILURES = {
    "before": ({"lacks_memory": lambda: "it needs about 9 MB and 8 MB are free"}, Again, "it needs about 9 MB"),
    "inside": ({}, refuse, "operation not permitted"),
    "inside, compiler": ({}, lose_the_compiler, "CompilationError: at 12:4"),
    "after, copies": ({}, Uncopied, "CUDA out of memory"),
    "after, replay": ({}, TooLarge, "CUDA out of memory"),
    "after, the step itself": ({}, Narrow, "CUDA out of memory"),
}


@pytest.mark.parametrize("stage", FAILURES)
def test_a_failure_leaves_the_run_as_if_no_graph_had_been_tried(stage):
    keys, capture, expected = FAILURES[stage]
    warnings = []
    there = train(graph_of(capture, warnings, **keys))
    (warning,) = warnings
    assert warning.startswith(expected)
    assert_same(there, train())
    (group,) = there[2].param_groups
    assert isinstance(group["lr"], float) and group["capturable"] is False
    assert all(p.grad is None for p in group["params"])


@pytest.mark.parametrize("stage", FAILURES)
def test_a_graph_that_is_asked_for_and_fails_is_an_error(stage):
    keys, capture, expected = FAILURES[stage]

    def insist(why):
        raise UserError(f"--cuda_graph on: {why}")

    with pytest.raises(UserError, match=f"--cuda_graph on: {expected}"):
        train(graph_of(capture, warn=insist, **keys))


def test_a_device_that_a_capture_has_broken_ends_the_run():
    """Then no plain step would run either: the generator still counts for the graph."""
    trouble = lambda device: "Offset increment outside graph capture encountered unexpectedly."  # noqa: E731
    with pytest.raises(UserError, match=r"operation not permitted.*start again with --cuda_graph off.*--resume"):
        train(graph_of(refuse, trouble=trouble))


@pytest.mark.parametrize("invalidated", [True, False])
def test_a_pool_is_given_back_once(invalidated, monkeypatch):
    """Where memory ran out inside, the capture has ended by itself, and its graph gives the pool back; a second time would abort."""
    done = []

    def end(index, pool):
        if not invalidated:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        done.append("end")

    def draw(size, device):
        if invalidated:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    generator = SimpleNamespace(clone_state=lambda: "clone", graphsafe_set_state=done.append)
    monkeypatch.setattr(torch.cuda, "set_stream", done.append)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: done.append("release"))
    monkeypatch.setattr(torch, "rand", draw)
    accelerate._leave_capture(torch.device("cuda", 0), "the stream before", (0, 1))
    assert done == ["the stream before", *(["end", "release", "clone"] if invalidated else [])]


class Stale(Again):
    """Forgets to take one step of the optimizer over, as a graph would that holds other weights."""

    def replay(self):
        weights = [p.detach().clone() for group in self._groups for p in group["params"]]
        super().replay()
        for p, kept in zip((p for group in self._groups for p in group["params"]), weights, strict=True):
            p.detach().copy_(kept)


class Off(Again):
    """Gives another loss."""

    def replay(self):
        super().replay()
        values, finite = self.outputs
        self.outputs = {"loss": values["loss"] * 1.5}, finite


@pytest.mark.parametrize("wrong", [Stale, Off])
def test_a_graph_that_differs_is_not_used(wrong):
    """That shows before it takes the place of a step, and leaves no trace."""
    warnings = []
    assert_same(train(graph_of(wrong, warnings)), train())
    assert warnings == ["a captured step differs from the step itself"] and Again.made == 1


def test_a_step_that_is_not_finite_is_skipped_and_reported():
    with pytest.raises(NonFiniteLoss, match="step 7"):
        train(graph_of(Again), advices=[1.0] * 7 + [float("nan")] * 3)


def run_like(**changes):
    config = SimpleNamespace(step_per_update=1, precision="bf16", **{})
    for key, value in changes.items():
        setattr(config, key, value)
    return SimpleNamespace(device=torch.device(changes.get("device", "cuda")), config=config)


@pytest.mark.parametrize(
    ("changes", "micro_batches", "data_dependent", "reason"),
    [
        ({}, 1, None, None),
        ({"device": "cpu"}, 1, None, "steps run on cpu"),
        ({"step_per_update": 2}, 1, None, "step_per_update is 2"),
        ({}, 4, None, "into 4 micro-batches"),
        ({"precision": "fp16"}, 1, None, "fp16"),
        ({}, 1, "the loss emd runs until all points are matched", "the loss emd runs until"),
    ],
)
def test_what_cannot_be_captured(changes, micro_batches, data_dependent, reason):
    model = nn.Module()
    model.data_dependent = data_dependent
    found = why_no_graph(run_like(**changes), model, micro_batches=micro_batches)
    assert found is None if reason is None else reason in found


@pytest.fixture
def opened(monkeypatch):
    """Return a function that opens the graph of a trainer as if on a GPU with some free memory."""
    model = nn.Linear(1000, 1000)  # 4 MB of weights, roughly

    def open_it(asked, *, free, step=10 << 20, confirmed=True):
        monkeypatch.setattr(accelerate, "why_no_graph", lambda *args, **keys: None)
        monkeypatch.setattr(accelerate, "step_memory", lambda trainer, batch: step)
        monkeypatch.setattr(accelerate, "free_memory", lambda device: free << 20)
        monkeypatch.setattr(accelerate, "is_confirmed", lambda name, device: confirmed)
        run = toy_run(cuda_graph=asked)
        said = []
        run.log = SimpleNamespace(warning=said.append, info=said.append)
        optimizer = torch.optim.AdamW(model.parameters())
        state = SimpleNamespace(model=model, optimizer=optimizer)
        graph = accelerate.open_graph(SimpleNamespace(run=run, state=state, micro_batches=1), None)
        return graph, said

    return open_it


def test_memory_is_asked_for_before_anything_is_captured(opened):
    graph, said = opened("auto", free=60)
    assert isinstance(graph, StepGraph) and not said
    graph, (warning,) = opened("auto", free=40)
    assert graph is None and "it needs about 46 MB of memory and 40 MB are free" in warning
    with pytest.raises(UserError, match=r"--cuda_graph on: .* it needs about 46 MB .*use --cuda_graph off"):
        opened("on", free=40)
    assert opened("auto", free=40, step=None) == (None, [])  # the loop says which batch would fit


def test_what_no_run_has_confirmed_is_not_used_by_itself(opened):
    assert opened("auto", free=60, confirmed=False) == (None, [])
    assert opened("on", free=60, confirmed=False)[0] is not None
    assert opened("off", free=60) == (None, [])


@pytest.mark.parametrize(
    ("confirmed", "asked", "side", "said"),
    [
        (
            (),
            "auto",
            False,
            "without side stream and CUDA graph: not yet confirmed on H200; `python -m tools.doctor` does that",
        ),
        ((), "off", False, "without side stream: not yet confirmed on H200; `python -m tools.doctor` does that"),
        (
            ("CUDA graph",),
            "on",
            False,
            "without side stream: not yet confirmed on H200; `python -m tools.doctor` does that",
        ),
        (
            ("side stream",),
            "auto",
            True,
            "without CUDA graph: not yet confirmed on H200; `python -m tools.doctor` does that",
        ),
        (("side stream", "CUDA graph"), "auto", True, None),
    ],
)
def test_one_line_says_what_is_off(confirmed, asked, side, said, monkeypatch):
    monkeypatch.setattr(accelerate, "is_confirmed", lambda name, device: name in confirmed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    lines = []
    log = SimpleNamespace(info=lines.append)
    run = SimpleNamespace(device=torch.device("cuda"), args=SimpleNamespace(cuda_graph=asked), log=log)
    assert accelerate.uses_side_stream(run) is side
    assert lines == ([said] if said else [])
    run.device = torch.device("cpu")
    assert accelerate.uses_side_stream(run) is False and len(lines) <= 1


def train_recipe(recipe, name, *flags, epochs=2, device="cpu", settings=()):
    """Train a recipe below `cfgs` on a few clouds; returns (epoch, step, loss) of each step."""
    judged = ["dataset.svm=null"] if recipe.startswith("debug/") else ["dataset.val.clouds=20"]
    size = ["max_epoch_inclusive=false", f"max_epoch={epochs}", "total_bs=4", "dataset.train.clouds=20"]
    rates = ["log_every=1", "scheduler.type=function", f"optimizer.kwargs.lr={RATE / 8}"]
    keys = [part for setting in (*judged, *size, *rates, *settings) for part in ("--set", setting)]
    root = Path(__file__).parent.parent.parent
    argv = ["--config", str(root / "cfgs" / f"{recipe}.yaml"), "--exp_name", name, "--device", device]
    assert main.main([*argv, *keys, *flags]) == 0
    lines = Path(f"experiments/{recipe}/{name}/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    return [(row["epoch"], row["step"], row["loss"]) for row in rows]


MOMENTUM = "bnmscheduler={type: Lambda, kwargs: {decay_step: 1, bn_decay: 0.5, bn_momentum: 0.5, lowest_decay: 0.01}}"
# Runs with what a graph could hold by mistake: a curriculum, rates a layer, momenta, a frozen encoder, two updates on one gradient.
RUNS = {
    "debug/point-m2ae": (1, (), ()),
    "debug/gm3d": (2, (), ()),
    "fine-tuning/point-m2ae/debug": (2, ("--scratch_model",), ("model.smooth=0.3", MOMENTUM)),
    "fine-tuning/gm3d/debug": (1, ("--scratch_model",), ("optimizer.layer_decay=0.5", "augmentation=rotate")),
    "fine-tuning/inter-mae/debug": (1, ("--scratch_model", "--transfer", "mlp3"), ()),
    "segmentation/point-mae/debug": (1, (), ("legacy=[double_step]",)),
    "segmentation/point-m2ae/debug": (1, (), ()),
}


def small(recipe):
    """Make the sets of part segmentation smaller; all other recipes are small enough."""
    sets = ("train", "val") if recipe.startswith("segmentation/") else ()
    return [f"dataset.{entry}.N_POINTS=256" for entry in sets]


@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_with_captured_steps(recipe, tmp_path, monkeypatch):
    """A whole run of each task, its first epochs evaluated in between."""
    epochs, flags, settings = RUNS[recipe]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packing, "visible_first", roomy)
    how = {"epochs": epochs, "settings": [*settings, *small(recipe)]}
    as_it_is, refused = train_recipe(recipe, "plain", *flags, **how), []

    def capture(trainer, batch):
        state = trainer.state
        assert data_dependent(state.model, torch.device("meta")) is None and trainer.micro_batches == 1
        return graph_of(Again, refused)(state.optimizer, state.model.buffers())

    monkeypatch.setattr(accelerate, "open_graph", capture)
    assert train_recipe(recipe, "captured", *flags, **how) == as_it_is
    # Begun again where something that a graph holds has changed: the number of guided patches, the momentum.
    assert Again.made == (1 if epochs == 1 else 2) and not refused


def test_asking_for_what_cannot_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parent.parent.parent
    argv = ["--config", str(root / "cfgs/debug/point-mae.yaml"), "--device", "cpu", "--cuda_graph", "on"]
    assert main.main(argv) == 2
    assert "--cuda_graph on: steps cannot be captured, steps run on cpu" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe",
    [
        *(f"debug/{method}" for method in ("point-mae", "pcp-mae", "i2p-mae", "inter-mae", "gm3d-point-m2ae")),
        *(f"fine-tuning/{method}/debug" for method in ("point-mae", "i2p-mae", "gm3d-point-m2ae")),
        *RUNS,
    ],
)
def test_a_run_on_a_gpu(recipe, precision, tmp_path, monkeypatch, caplog):
    """Captured steps on a GPU follow those that run as they are."""
    monkeypatch.chdir(tmp_path)
    _, flags, settings = RUNS.get(recipe, (2, (), ()))
    flags, how = (*flags, "--precision", precision), {"settings": [*settings, *small(recipe)], "device": "cuda"}
    plain = train_recipe(recipe, "plain", *flags, "--cuda_graph", "off", **how)
    captured = train_recipe(recipe, "captured", *flags, "--cuda_graph", "on", **how)
    assert "without a CUDA graph" not in caplog.text
    for there, here in zip(captured, plain, strict=True):
        assert there[:2] == here[:2] and there[2] == pytest.approx(here[2], rel=0.05 if precision == "bf16" else 1e-2)


def train_on_a_gpu(build, *, width, rows=64):
    """Train a wide net for a few steps; returns losses and what was said."""
    torch.manual_seed(0)
    device, said = torch.device("cuda"), []
    net = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 1)).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True, lr=1e-3)
    loss = lambda inputs: {"loss": build(net, inputs)}  # noqa: E731
    batches = [Batch(number, rows) for number in range(8)]
    trainer = toy_trainer(toy_run(), net, optimizer, batches, loss, trainer=AcceleratedTrainer)
    draw = lambda step: torch.randn(rows, 8, generator=torch.Generator().manual_seed(step))  # noqa: E731
    trainer.task.prepare = lambda batch, epoch: draw(batch.step).to(device)
    trainer.graph = StepGraph(optimizer, net.buffers(), device, warn=said.append)
    trainer.step = trainer.captured_step
    log = EpochLog(lambda first, rows: None, every=3)
    assert trainer.train_steps(0, log)
    log.read()
    return [row["loss"] for row in log.rows], said


@pytest.mark.gpu
def test_a_step_that_waits_for_the_device_is_not_captured():
    """The capture is invalidated; dropout goes on drawing, and memory is handed out again."""
    losses, said = train_on_a_gpu(lambda net, x: net(x).square().mean() * (1.0 + 0.0 * net(x).sum().item()), width=64)
    assert len(losses) == 8 and len(said) == 1 and all(loss == loss for loss in losses)
    assert not torch.cuda.is_current_stream_capturing() and torch.rand(3, device="cuda").isfinite().all()


@pytest.mark.gpu
def test_a_step_that_fills_the_memory_runs_on_without_a_graph():
    """At 60 % of the memory a graph has no room next to the step itself."""
    torch.cuda.empty_cache()
    rows = 4096
    width = int(0.6 * torch.cuda.mem_get_info()[0] / (rows * 4 * 4))  # the step keeps about four such arrays
    losses, said = train_on_a_gpu(lambda net, x: net(x).square().mean(), width=width, rows=rows)
    assert len(losses) == 8 and len(said) == 1 and "out of memory" in said[0]
