"""What may fail on a machine: a batch that does not fit into memory, a model that does not compile."""

import json
import logging

import pytest
import torch

from datasets.batches import Batch
from tests.training import toy_run, toy_trainer
from tools import accelerate
from tools.accelerate import (
    compile_model,
    compile_regions,
    dry_run,
    fewest_micro_batches,
    is_whole,
    too_large,
    undo_compile,
)
from utils.device import check_precision
from utils.errors import UserError


class Greedy(torch.nn.Module):
    """A model with a norm that holds up to `room` clouds."""

    def __init__(self, room):
        super().__init__()
        self.room, self.sizes = room, []
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, points):
        self.sizes.append(len(points))
        if len(points) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.norm(points.flatten(0, 1)).square().sum()


def trainer_of(model, loss=None, **flags):
    """Return a trainer of a model that has no optimizer, because nothing is updated."""
    loss = loss or (lambda batch: {"loss": model(batch.points)})
    return toy_trainer(toy_run(**flags), model, None, [], loss)


def batch(clouds=12):
    points = torch.randn(clouds, 8, 3, generator=torch.Generator().manual_seed(0))
    return Batch(points, None, torch.arange(clouds), step=0)


def test_batches_are_cut_into_micro_batches():
    whole = Batch(
        torch.arange(21.0).view(7, 1, 3), torch.arange(7), torch.arange(7), 4, parts=torch.arange(7).view(7, 1)
    )
    pieces = whole.split(3)
    assert [len(piece.indices) for piece in pieces] == [3, 2, 2] and {piece.step for piece in pieces} == {4}
    for name in ("points", "labels", "indices", "parts"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
    assert [piece.stream("mask") for piece in pieces] == ["mask", "mask, piece 1", "mask, piece 2"]
    assert len(whole.split(20)) == 7 and whole.split(1)[0].labels is not None and batch().split(2)[1].labels is None


def test_fewest_micro_batches_leave_no_trace():
    model = Greedy(room=3)
    model.norm.weight.grad = torch.ones(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fewest_micro_batches(trainer_of(model), batch()) == 4 and model.sizes == [12, 6, 3]
    assert torch.equal(model.norm.weight.grad, torch.ones(3)) and model.norm.bias.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fewest_micro_batches(trainer_of(Greedy(room=12)), batch()) == 1
    assert fewest_micro_batches(trainer_of(Greedy(room=1)), batch()) == 12
    with pytest.raises(UserError, match="single cloud of 8 points"):
        fewest_micro_batches(trainer_of(Greedy(room=0)), batch())


def test_other_errors_pass():
    def broken(points):
        raise RuntimeError("shapes do not match")

    model = Greedy(room=3)
    model.forward = broken
    with pytest.raises(RuntimeError, match="shapes"):
        fewest_micro_batches(trainer_of(model), batch())


def test_micro_batches_are_chosen_only_when_asked(caplog):
    assert dry_run(trainer_of(Greedy(room=3), micro_batches=2), batch()) == 2
    with caplog.at_level(logging.INFO):
        assert dry_run(trainer_of(Greedy(room=3), micro_batches="auto"), batch()) == 4
    assert "4 micro-batches" in caplog.text


def test_the_message_names_what_fits():
    text = str(too_large(trainer_of(Greedy(room=3)), batch()))
    assert "batch of 12 does not fit" in text and "total_bs=3" in text and "--micro_batches 4" in text


def test_a_model_that_does_not_compile_runs_without(caplog):
    from models import build_model

    model = build_model({"NAME": "Point_MAE", "num_group": 8, "group_size": 4, "transformer_config": {
        "trans_dim": 24, "encoder_dims": 24, "depth": 1, "num_heads": 2, "embed_widths": [8, 8, 8], "decoder_depth": 1,
        "decoder_num_heads": 2}})  # fmt: skip

    def refuse(graph, inputs):
        raise NotImplementedError("no compiler here")

    for module in model.MAE_encoder.blocks.blocks:
        module.compile(backend=refuse)
    tried = trainer_of(model, lambda batch: model(batch.points), compile=True)
    points = Batch(torch.randn(3, 64, 3), None, torch.arange(3), step=0)
    with caplog.at_level(logging.WARNING):
        assert dry_run(tried, points) == 1
    assert caplog.text.count("--compile: failed") == 1
    assert torch.isfinite(model(points.points)["loss"])
    compile_regions(model)
    undo_compile(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_what_fails_as_a_whole_is_compiled_by_regions(caplog, monkeypatch):
    """One warning, and a model that runs."""
    from models import build_model
    from tests.models.small import SMALL

    model = build_model(SMALL)

    def refuse(graph, inputs):
        raise NotImplementedError("too much at once")

    model.compile(backend=refuse)
    monkeypatch.setattr(
        accelerate, "compile_regions", lambda model: model.h_encoder.encoder_norms[0].compile(backend="eager")
    )
    tried = trainer_of(model, lambda batch: model(batch.points), compile=True)
    with caplog.at_level(logging.WARNING):
        assert dry_run(tried, Batch(torch.randn(2, 64, 3), None, torch.arange(2), step=0)) == 1
    assert caplog.text.count("--compile: failed for the whole model, so only its regions are compiled") == 1
    assert not is_whole(model) and model.h_encoder.encoder_norms[0]._compiled_call_impl is not None


@pytest.mark.parametrize(("device", "keys", "whole"), [
    ("meta", {}, True),
    ("cpu", {}, False),
    ("meta", {"legacy": ["near_padding"]}, False),
    ("meta", {"loss": "emd"}, False),
])  # fmt: skip
def test_what_is_compiled(device, keys, whole):
    from models import build_model
    from tests.models.small import SMALL

    model = build_model({**SMALL, **keys})
    compile_model(model, torch.device(device))
    assert is_whole(model) is whole
    assert (model.h_encoder.encoder_blocks[0].blocks[0]._compiled_call_impl is None) is whole


@pytest.mark.parametrize(("device", "whole"), [("meta", True), ("cpu", False)])
@pytest.mark.parametrize("name", ["Point_M2AE_ModelNet40", "Point_M2AE_SEG"])
def test_classifiers_and_segmenters_are_compiled_whole_too(name, device, whole):
    """Nothing is hidden from their encoders, so no shape follows the data."""
    from models import build_model

    model = build_model({"NAME": name, "encoder_dims": [12, 24, 48], "encoder_depths": [1, 1, 1]})
    compile_model(model, torch.device(device))
    assert is_whole(model) is whole


def test_bf16_on_a_device_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    with pytest.raises(UserError, match=r"bf16: cuda:0 \(an old card\) has none"):
        check_precision("bf16", torch.device("cuda", 0))
    for precision, device in (("bf16", "cpu"), ("fp32", "cuda"), ("fp16", "cuda")):
        check_precision(precision, torch.device(device))


def test_micro_batches_train_as_a_whole_batch(tmp_path, monkeypatch):
    """A classifier's head has batch norms, so a run in micro-batches is another run; but it is one, with as many updates."""
    import main

    monkeypatch.chdir(tmp_path)
    flags = ["--config", "cfgs/debug/point-m2ae.yaml", "--device", "cpu", "--val_freq", "9", "--set", "max_epoch=0"]
    flags += [
        "--set",
        "dataset.train.clouds=64",
        "--set",
        "svm.random_weights=false",
        "--set",
        "dataset.svm.train.clouds=40",
    ]
    flags += ["--set", "dataset.svm.test.clouds=20", "--set", "svm.cross_validate=false", "--set", "log_every=1"]
    assert main.main([*flags, "--exp_name", "pieces", "--micro_batches", "3"]) == 0
    rows = (tmp_path / "experiments/debug/point-m2ae/pieces/metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, rows) if row["kind"] == "step"]
    assert len(steps) == 2 and all(row["loss"] > 0 for row in steps)
