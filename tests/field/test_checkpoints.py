"""Checkpoints of other programs and damaged ones: the weights, or one message; nothing in a file is run (K11)."""

import argparse
import collections
import datetime
import gzip
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from models import build_model, load_weights
from tools import weights as command
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint

TINY = {"NAME": "Point_MAE", "num_group": 4, "group_size": 8, "transformer_config": {
    "trans_dim": 24, "depth": 1, "num_heads": 2, "encoder_dims": 24, "decoder_depth": 1, "decoder_num_heads": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(TINY)


def same(model, path_or_dict):
    """Load into another model and compare all tensors."""
    torch.manual_seed(1)
    other = build_model(TINY)
    load_weights(other, path_or_dict)
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


WRAPPED = {
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "several": lambda state: {"base_model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    "lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    "lightning and compiled": lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
    "nested": lambda state: {"model": {"base_model": state}},
    "nested otherwise": lambda state: {"state_dict": {"model": state}, "lr": 0.1},
    "model_state": lambda state: {"model_state": state},
    "net": lambda state: {"net": state, "acc": np.float64(0.5)},
    "average": lambda state: {"state_dict_ema": state},
    "arrays": lambda state: {"model": {key: value.numpy() for key, value in state.items()}},
    "ordered": lambda state: collections.OrderedDict(state),
    "with a number for a key": lambda state: {**state, 5: torch.zeros(3)},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_k11_wrappers(tmp_path, model, name):
    torch.save(WRAPPED[name](model.state_dict()), tmp_path / "a.pth")
    assert same(model, tmp_path / "a.pth")


def test_k11_objects_are_left_out_and_named(tmp_path, model, caplog):
    saved = {
        "model": model.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("a/b"),
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "when": datetime.datetime(2020, 1, 1),
    }
    torch.save(saved, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert set(found) == {"model", "log"} and "argparse.Namespace" in caplog.text
    assert same(model, found)


class Runs:
    """Pickles to a call that leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_k11_nothing_is_run_and_the_tensors_can_be_kept(tmp_path, model, capsys):
    trace = tmp_path / "trace"
    torch.save({"model": model.state_dict(), "x": Runs(trace)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: holds the Python object .*mkdir.*tools\.weights clean"):
        read_checkpoint(tmp_path / "a.pth")
    assert command.main(["clean", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 0
    assert not trace.exists()
    assert same(model, tmp_path / "b.pth")
    assert command.main(["clean", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 2
    assert "exists" in capsys.readouterr().err


def test_k11_safetensors_and_compressed_files(tmp_path, model):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert same(model, tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.pth.gz").write_bytes(gzip.compress((tmp_path / "a.pth").read_bytes()))
    with pytest.raises(UserError, match=r"is compressed by gzip; unpack it first"):
        read_checkpoint(tmp_path / "a.pth.gz")


def test_files_without_weights_say_their_keys(tmp_path):
    torch.save({"epoch": 3, "note": "none"}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="its keys are epoch, note"):
        load_weights(build_model(TINY), tmp_path / "a.pth")


def test_k2_weights_that_are_not_finite_are_refused_by_name(tmp_path, model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    name = next(key for key in state if key.endswith("norm1.weight"))
    state[name][3] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"a.pth: the tensor {name} holds NaN"):
        load_weights(build_model(TINY), tmp_path / "a.pth")


def test_negative_variances_are_refused(tmp_path, model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    name = next(key for key in state if key.endswith("running_var"))
    state[name][0] = -1
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"the variance {name} is negative"):
        load_weights(build_model(TINY), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "kind", [lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)]
)  # fmt: skip
def test_tensors_of_odd_kinds(model, kind):
    state = dict(model.state_dict())
    name = next(key for key, value in state.items() if value.is_floating_point() and value.dim() == 2)
    with pytest.raises(UserError, match="sparse, quantised or empty"):
        load_weights(build_model(TINY), {**state, name: kind(state[name])})


def test_a_flipped_bit_is_found(tmp_path, model):
    """torch itself does not compare the checksums of its archive."""
    path = tmp_path / "a.pth"
    torch.save(model.state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pth: is damaged: the checksum of"):
        read_checkpoint(path)


def test_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(UserError, match="is a named pipe"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a device"):
        read_checkpoint(tmp_path / "b.pth")


def test_whole_modules_and_plain_pickles(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds the Python object torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"a": Runs(tmp_path / "trace")}))
    with pytest.raises(UserError, match=r"b\.pth"):
        read_checkpoint(tmp_path / "b.pth")
    assert not (tmp_path / "trace").exists()


def test_k15_a_second_interrupt_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """Torch reports its archive, which it could not close, in place of the interrupt."""

    def save(state, file):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch does

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a.pth", {})
    assert list(tmp_path.iterdir()) == []
